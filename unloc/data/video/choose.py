"""Which decoder reads a stream: decord where it proves sound, PyAV everywhere else, and the reason is kept."""

from pathlib import Path

from unloc.data.video.decord_reader import DecordReader
from unloc.data.video.facts import VideoFacts, scan
from unloc.data.video.pyav_reader import PyAVReader
from unloc.errors import InputError, VideoError

DECODERS = ("auto", "decord", "pyav")
Reader = DecordReader | PyAVReader


def open_video(path: Path, decoder: str = "auto", *, allow_partial: bool = False) -> tuple[Reader, VideoFacts, str]:
    """A reader of the file, its facts, and why this decoder reads it.

    Raises VideoError with a reason where the file cannot be read, InputError for an unknown decoder.
    """
    if decoder not in DECODERS:
        raise InputError(f"--decoder: got {decoder!r}, expected one of {', '.join(DECODERS)}")
    facts = scan(path)
    if decoder == "pyav":
        return PyAVReader(facts, allow_partial=allow_partial), facts, "asked for"
    try:
        return DecordReader(facts), facts, "asked for" if decoder == "decord" else "its frames and times prove sound"
    except VideoError as error:
        if decoder == "decord" or error.reason != "unsound":
            raise
        return PyAVReader(facts, allow_partial=allow_partial), facts, str(error).split(": ", 1)[-1]
