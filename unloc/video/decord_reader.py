"""Frames by decord, read in order: its random access returns wrong frames on ordinary files, its sequence does not.

It reports no error when it is wrong, so each stream is checked first: it must have as many frames as packets are shown,
with the packets' time stamps up to a constant, which decord subtracts.
"""

from collections.abc import Iterator

import av
import decord
import numpy as np

from unloc.callbacks import Heartbeat
from unloc.errors import VideoError, one_line
from unloc.video.facts import VideoFacts, open_stream
from unloc.video.pyav_reader import TIME_TOLERANCE, PyAVReader, ShownFrame, display_matrix, shown_at

decord.logging.set_level(decord.logging.QUIET)

SOUND_CODECS = {"h264", "hevc", "mpeg4", "vp8", "vp9", "mjpeg", "h263"}
SOUND_CONTAINERS = {"mov", "matroska", "avi"}  # in MPEG-TS it returned other frames under right time stamps
SOUND_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}
MIN_SIDE = 64  # below it a row's padding turns into a fourth channel, and 1 pixel fails
DECORD_ERRORS = (decord.DECORDError, RuntimeError, IndexError)  # it raises all three for undecodable input


class DecordReader(PyAVReader):
    """All frames or none: allow_partial changes nothing but the check of the file."""

    name = "decord"

    def __init__(self, facts: VideoFacts, allow_partial: bool = False, on_progress: Heartbeat = lambda: None) -> None:
        """Raises VideoError (reason `unsound`) where decord's frames could be wrong ones."""
        super().__init__(facts, allow_partial, on_progress)
        if reason := unsound_by_facts(facts) or self._unsound_by_frames() or self._unsound_by_stamps():
            message = f"{facts.path}: decord may return wrong frames here: {reason}; use --decoder auto or pyav"
            raise VideoError(message, reason="unsound")

    def frames_at(self, wanted_seconds: np.ndarray) -> Iterator[ShownFrame]:
        """All frames up to the last wanted one are decoded, the wanted ones converted."""
        times = self.facts.packet_times
        shown = shown_at(wanted_seconds, times)
        for index in range(int(shown[-1]) + 1):
            self.on_progress()
            try:
                frame = self._reader.next()
            except (*DECORD_ERRORS, StopIteration) as error:
                message = f"decord stops at frame {index} of {len(times)} ({one_line(error)})"
                raise VideoError(f"{self.facts.path}: {message}", reason="decode_error") from None
            first, stop = np.searchsorted(shown, [index, index + 1]).tolist()
            if first < stop:
                yield ShownFrame(list(range(first, stop)), float(times[index]), frame.asnumpy())

    def _unsound_by_frames(self) -> str | None:
        """decord scales all frames to the first one's size, and applies matrices that are no rotation by quarters."""
        sizes = set()
        with open_stream(self.facts.path) as (container, stream, _):
            if self.facts.codec != "vp9":  # only VP9 changes size off a key frame
                stream.codec_context.skip_frame = "NONKEY"
            try:
                for frame in container.decode(stream):
                    self.on_progress()
                    a, b, c, d = display_matrix(frame) or (1, 0, 0, 1)
                    if not ((a == d != 0 and b == c == 0) or (b == -c != 0 and a == d == 0)):
                        return "its display matrix is not a rotation by quarter turns"
                    sizes.add(f"{frame.width}x{frame.height}")
                    if len(sizes) > 1:
                        return f"the frame size changes ({' and '.join(sorted(sizes))})"
            except av.error.FFmpegError as error:
                return f"a frame does not decode ({one_line(error)})"
        return None

    def _unsound_by_stamps(self) -> str | None:
        """Open decord's own reader and compare the frames that it announces with the packets."""
        try:
            self._reader = decord.VideoReader(str(self.facts.path), ctx=decord.cpu(0), num_threads=1)
            stamps = np.asarray(self._reader.get_frame_timestamp(range(len(self._reader))), dtype=np.float64)
        except DECORD_ERRORS as error:
            return f"it fails to open the file ({one_line(error)})"
        times = self.facts.packet_times
        if len(self._reader) != len(times):
            return f"it announces {len(self._reader)} frames, {len(times)} are shown"
        starts = stamps.reshape(len(times), -1)[:, 0]
        if not np.isfinite(starts).all() or np.ptp(starts - times) > 10 * TIME_TOLERANCE:
            return "its time stamps are not those of the packets"
        return None


def unsound_by_facts(facts: VideoFacts) -> str | None:
    """Why decord cannot be trusted with this stream, from its facts alone; None where no fact speaks against it."""
    container, pixels, num_packets = facts.container.split(",")[0], facts.pixel_format, len(facts.packets)
    listed = facts.num_frames_from_header if "mov" in facts.container else 0
    reasons = {
        f"codec {facts.codec} is not one that decord's FFmpeg 4.1 decodes soundly": facts.codec not in SOUND_CODECS,
        f"container {container} is not one that it reads soundly": container not in SOUND_CONTAINERS,
        f"pixel format {pixels} is converted differently by its FFmpeg 4.1": pixels not in SOUND_PIXEL_FORMATS,
        f"{facts.width}x{facts.height} is too small for its rows": min(facts.width, facts.height) < MIN_SIDE,
        f"{facts.num_damaged} packets are cut short or zeroed, which may keep it busy for minutes": facts.num_damaged,
        "the file has a hole": facts.hole_seconds or facts.bad_box is not None,
        f"an edit list hides {facts.num_discarded} packets": facts.num_discarded,
        f"an edit list leaves {num_packets} of {listed} packets": 0 < listed != num_packets,
        "interlaced": facts.interlaced,
        "packets without presentation times": not facts.has_pts,
        "MPEG-4 in AVI may pack B-frames": "avi" in facts.container and facts.codec == "mpeg4",
        "repeated time stamps": (np.diff(facts.packet_times) <= 0).any(),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
