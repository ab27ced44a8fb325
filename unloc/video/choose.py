"""Which decoder reads a stream: one that is exact there and, among the exact ones, the faster; the reason is kept.

The rule of `auto`. PyAV is exact on every stream: it decodes in order, or only needed groups under a check of every
time stamp that comes out. decord is exact where nothing in `unsound_by_facts` speaks against it and its own count and
time stamps are those of the packets. Of the two, PyAV is the faster on every kind of stream measured, sparse or dense
(benchmarks/decoding.py), so `auto` reads with PyAV, and says whether decord could have read the stream at all.
"""

from pathlib import Path

from unloc.errors import InputError
from unloc.video.decord_reader import DecordReader, unsound_by_facts
from unloc.video.facts import Progress, VideoFacts, no_report, scan
from unloc.video.pyav_reader import PyAVReader

DECODERS = ("auto", "decord", "pyav")
Reader = DecordReader | PyAVReader


def open_video(
    path: Path, decoder: str = "auto", *, allow_partial: bool = False, on_progress: Progress = no_report
) -> tuple[Reader, VideoFacts, str]:
    """A reader of the file, its facts, and why this decoder reads it.

    Raises VideoError with a reason where the file cannot be read or the decoder asked for is unsound there, InputError
    for an unknown decoder.
    """
    if decoder not in DECODERS:
        raise InputError(f"--decoder: got {decoder!r}, expected one of {', '.join(DECODERS)}")
    facts = scan(path, on_progress)
    if decoder == "decord":
        return DecordReader(facts, allow_partial=allow_partial, on_progress=on_progress), facts, "asked for"
    reader = PyAVReader(facts, allow_partial=allow_partial, on_progress=on_progress)
    return reader, facts, "asked for" if decoder == "pyav" else why_pyav(facts)


def why_pyav(facts: VideoFacts) -> str:
    """The reason that the cache keeps for `auto`."""
    unsound = unsound_by_facts(facts)
    return (
        f"decord is not exact here: {unsound}" if unsound else "nothing speaks against decord here; PyAV is the faster"
    )
