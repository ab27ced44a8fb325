"""Videos: facts of a stream, and frames at wanted times from decord or PyAV behind one small interface."""

import av
import decord

from unloc.data.video.choose import DECODERS, open_video
from unloc.data.video.facts import ShownFrame, VideoFacts, scan

# ffmpeg's own complaints say nothing that the errors and the ledger do not; on stderr they drown the progress bar.
av.logging.set_level(None)
decord.logging.set_level(decord.logging.QUIET)

__all__ = ["DECODERS", "ShownFrame", "VideoFacts", "open_video", "scan"]
