"""What the decoders share: their interface, the check that a video is complete, the frame shown at a time, rotation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import av
import numpy as np

from unloc.errors import VideoError
from unloc.video import OnProgress, no_progress
from unloc.video.facts import LOST_SHARE_ALLOWED, VideoFacts

TIME_TOLERANCE = 1e-4  # seconds; a frame that begins at the wanted time must not be missed by rounding to milliseconds
NEAR = 1e-3  # seconds; a frame and its packet state the same time
HOLE_LEAP = 4.0  # median frame distances; in a file with a hole no frame is taken to be shown longer
SECOND_FIELD = 0.75  # frames; the second field of a frame comes half a frame after the first
TURN_TOLERANCE_DEGREES = 1.01  # fixed-point matrices are not exact


@dataclass(frozen=True)
class ShownFrame:
    """One decoded frame and the wanted times it answers."""

    positions: list[int]
    """Indices into the wanted times."""
    time_seconds: float
    """When the frame is really shown from."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB, rotated as the file asks."""


class FrameReader(ABC):
    """Reads one video once, on one thread."""

    name: ClassVar[str]

    def __init__(self, facts: VideoFacts, allow_partial: bool = False, on_progress: OnProgress = no_progress) -> None:
        """Raises VideoError for a file that was cut off or has a large hole, unless allow_partial."""
        self.facts, self.allow_partial, self.on_progress = facts, allow_partial, on_progress
        self.decoded_seconds: list[float] = []
        """Times of all decoded frames; empty where only parts had to be decoded, without a failure."""
        self.reason = "asked for"
        """Why this decoder reads the file."""
        self.num_errors = 0
        """Packets that did not decode."""
        if allow_partial:
            return
        length_seconds = facts.end_seconds - facts.first_seconds
        if facts.hole_seconds > LOST_SHARE_ALLOWED * length_seconds:
            message = f"{facts.path}: a hole of zeros takes {facts.hole_seconds:.2f} s; --allow-partial reads the rest"
            raise VideoError(message, reason="decode_error")
        if facts.is_truncated:
            frames = f" of {facts.num_frames_from_header}" if facts.num_frames_from_header else ""
            readable = facts.num_bytes if facts.bad_box is None else facts.bad_box
            raise VideoError(
                f"{facts.path}: the file is cut off: {facts.num_packets}{frames} frames, {readable} of "
                f"{max(facts.stated_bytes or 0, facts.num_bytes)} bytes, {length_seconds:.2f} s are readable; "
                "--allow-partial reads them",
                reason="truncated",
            )

    @abstractmethod
    def frames_at(self, wanted_seconds: np.ndarray) -> Iterator[ShownFrame]:
        """The frame shown at each wanted time (rising), as `shown_at`. Raises VideoError where too little decodes."""

    def _require_decoded(self, *, to_end: bool) -> None:
        """Raises VideoError (`decode_error`) where over a tenth of the frames was lost: of all, or of those read.

        Frames that the decoder completed by guessing count as decoded: some old streams are so throughout, and look
        right.
        """
        times, first, last = self.facts.packet_times, self.decoded_seconds[0], self.decoded_seconds[-1]
        due = times if to_end else times[times <= last]
        lost = self._is_lost(due)
        if lost.mean() > LOST_SHARE_ALLOWED:
            raise VideoError(
                f"{self.facts.path}: {lost.mean():.0%} of {len(due)} frames do not decode (first loss near "
                f"{due[lost][0]:.2f} s, decoded {first:.2f}-{last:.2f} s); --allow-partial keeps what decodes",
                reason="decode_error",
            )

    def covered_seconds(self) -> float:
        """Seconds of the video for which a frame was decoded, holes left out; all where only parts were decoded."""
        times = self.facts.packet_times
        shown_for = np.append(np.diff(times), self.facts.last_duration_seconds)
        if self.facts.hole_seconds > 0:
            shown_for = np.minimum(shown_for, HOLE_LEAP * np.median(shown_for))
        if self.decoded_seconds:
            was_read = times <= self.decoded_seconds[-1] + NEAR
            shown_for = shown_for[~self._is_lost(times) | ~was_read]
        return float(shown_for.sum())

    def _is_lost(self, packet_times: np.ndarray) -> np.ndarray:
        """For each packet's time: was no frame decoded there?

        Some cameras and broadcasts code the two fields of an H.264 frame as two packets. The second field is not lost
        where packets decode without errors: its time is half a frame after the first.
        """
        frame_times = np.asarray(self.decoded_seconds)
        after = np.searchsorted(frame_times, packet_times + NEAR)
        since = packet_times - frame_times[np.maximum(after - 1, 0)]
        lost = np.abs(since) > NEAR
        if self.facts.codec == "h264" and len(frame_times) > 1:
            second_fields = lost & (since > 0) & (since < SECOND_FIELD * np.median(np.diff(frame_times)))
            if self.num_errors < second_fields.sum() / 2:
                lost &= ~second_fields
        return lost


def shown_at(wanted_seconds: np.ndarray, frame_times: np.ndarray) -> np.ndarray:
    """Index of the frame shown at each time: the last that begins at or before it, else the first."""
    after = np.searchsorted(frame_times, np.asarray(wanted_seconds) + TIME_TOLERANCE, side="right")
    return np.maximum(after - 1, 0)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of the matrix (x, y) → (a x + c y, b x + d y) in the file (ISO/IEC 14496-12 §6.2.2), if any."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            values = np.frombuffer(bytes(data), dtype=np.int32)
            return tuple(int(values[place]) for place in (0, 1, 3, 4))
    return None


def quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise quarter turns, 0 to 3, that bring the frame upright.

    0 for a matrix that is not a rotation by 90, 180 or 270 degrees to within one: all zeros, skewed, or a mirror. A
    rotation that also mirrors is applied without the mirror.
    """
    a, b, c, d = display_matrix(frame) or (0, 0, 0, 0)
    wide, high = math.hypot(a, c), math.hypot(b, d)
    if wide == 0 or high == 0:
        return 0
    degrees = -math.degrees(math.atan2(b / high, a / wide))
    turns = round(degrees / 90)
    is_mirror = turns % 4 == 2 and a * d - b * c < 0
    return 0 if is_mirror or abs(degrees - 90 * turns) > TURN_TOLERANCE_DEGREES else turns % 4


def is_exact_turn(frame: av.VideoFrame) -> bool:
    """Is the matrix, if any, a rotation by quarter turns and nothing else?"""
    a, b, c, d = display_matrix(frame) or (1, 0, 0, 1)
    return (a == d != 0 and b == c == 0) or (b == -c != 0 and a == d == 0)
