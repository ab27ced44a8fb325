"""What a page shows of video files: a link or the file itself, and frames of a moment as small JPEGs."""

import io
import mimetypes
import os
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from unloc.errors import VideoError
from unloc.video.facts import scan
from unloc.video.pyav_reader import PyAVReader

EMBED_BYTES = 8 << 20  # of the largest file that a page takes in
FRAME_HEIGHT = 120


def video_source(path: Path, page: Path, *, embed: bool) -> str:
    """The file as a data: URI if it is to be embedded and small, else its path relative to the folder of the page."""
    if embed and path.stat().st_size <= EMBED_BYTES:
        kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
        return f"data:{kind};base64,{b64encode(path.read_bytes()).decode()}"
    # Not resolved: a browser joins the link to the path by which the page was opened, links of the file system or not.
    return quote(os.fsencode(os.path.relpath(path, page.parent)))


def frames_at(path: Path, times: Sequence[float]) -> list[str]:
    """A JPEG as a data: URI of the frame shown at each time in seconds; "" where the file cannot be read there."""
    found, order = [""] * len(times), np.argsort(times, kind="stable")
    try:
        reader = PyAVReader(scan(path), allow_partial=True)
        for shown in reader.frames_at(np.asarray(times, dtype=np.float64)[order]):
            image = Image.fromarray(shown.image)
            width = image.width * reader.facts.sample_aspect_ratio * FRAME_HEIGHT / image.height
            content = io.BytesIO()
            image.resize((max(1, round(width)), FRAME_HEIGHT)).save(content, format="JPEG", quality=72)
            uri = f"data:image/jpeg;base64,{b64encode(content.getvalue()).decode()}"
            for position in shown.positions:
                found[order[position]] = uri
    except VideoError:
        pass
    return found


def duration_of(path: Path) -> float | None:
    """Measured seconds of a video; None where the file cannot be read."""
    try:
        return scan(path).end_seconds
    except VideoError:
        return None
