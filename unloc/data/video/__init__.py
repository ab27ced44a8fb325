"""Videos: facts of a stream, and frames at wanted times from decord or PyAV behind one small interface."""

from unloc.data.video.choose import DECODERS, open_video
from unloc.data.video.facts import ShownFrame, VideoFacts, scan

__all__ = ["DECODERS", "ShownFrame", "VideoFacts", "open_video", "scan"]
