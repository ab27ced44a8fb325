"""What decoding met, what of a video it covered, and whether that is enough."""

from dataclasses import dataclass, field

import numpy as np

from unloc.errors import VideoError
from unloc.video.facts import VideoFacts

LOST_SHARE_ALLOWED = 0.10  # of frames, lost to broken packets, before a video counts as broken
HOLE_LEAP = 4.0  # typical distances; in a holed file a frame is taken to be shown no longer
SECOND_FIELD = 0.75  # frames; the second field of a frame comes half a frame after the first
NEAR = 1e-3  # seconds; a frame and its packet state the same time


@dataclass
class DecodeReport:
    """Filled while every frame is read in order; empty where only parts had to be decoded, and all went as planned."""

    times: list[float] = field(default_factory=list)
    num_corrupt: int = 0
    """Frames of which the decoder guessed parts."""
    num_errors: int = 0

    def add(self, time_seconds: float, *, is_corrupt: bool) -> None:
        """A frame came out."""
        self.times.append(time_seconds)
        self.num_corrupt += is_corrupt

    def add_error(self) -> None:
        """A packet did not decode."""
        self.num_errors += 1


def is_truncated(facts: VideoFacts) -> bool:
    """Was the file cut off? Its container states more bytes than there are, and frames are missing with them.

    Or a fragmented MP4 is broken between fragments, which hides all that follow.
    """
    indexed = facts.num_frames_from_header if "mov" in facts.container else 0
    if facts.stated_bytes is not None:
        missing = facts.num_packets < indexed or facts.num_damaged > 0 or indexed == 0
        return facts.stated_bytes > facts.num_bytes and missing
    if facts.bad_box is not None and indexed == 0:
        return True
    # An edit list also leaves packets out that the index counts.
    return facts.num_discarded == 0 and facts.num_packets < (1 - LOST_SHARE_ALLOWED) * indexed


def check_whole(facts: VideoFacts, *, allow_partial: bool) -> None:
    """Raises VideoError for a file cut off (reason `truncated`) or holed (`decode_error`), unless allow_partial."""
    if allow_partial:
        return
    length_seconds = facts.end_seconds - facts.first_seconds
    if facts.hole_seconds > LOST_SHARE_ALLOWED * length_seconds:
        raise VideoError(
            f"{facts.path}: a hole of zeros in the file takes {facts.hole_seconds:.2f} s of the video; "
            "--allow-partial takes what is there",
            reason="decode_error",
        )
    if not is_truncated(facts):
        return
    frames = f" of {facts.num_frames_from_header}" if facts.num_frames_from_header else ""
    readable = facts.num_bytes if facts.bad_box is None else facts.bad_box
    length = f", {readable} of {max(facts.stated_bytes or 0, facts.num_bytes)} bytes"
    raise VideoError(
        f"{facts.path}: the file is cut off: {facts.num_packets}{frames} frames{length}, "
        f"{length_seconds:.2f} s are there; --allow-partial takes what is there",
        reason="truncated",
    )


def check_losses(facts: VideoFacts, report: DecodeReport, *, ended: bool) -> None:
    """Raises VideoError (reason `decode_error`) where too much was lost, up to where was read (to the end, if ended).

    Frames of which parts were guessed count as decoded: some old streams decode so from end to end, and look right.
    """
    last = report.times[-1]
    due = facts.packet_times if ended else facts.packet_times[facts.packet_times <= last]
    lost = lost_packets(facts, report, due)
    if lost.mean() <= LOST_SHARE_ALLOWED:
        return
    raise VideoError(
        f"{facts.path}: {lost.mean():.0%} of {len(due)} frames do not decode (first loss near {due[lost][0]:.2f} s, "
        f"decoded {report.times[0]:.2f}-{last:.2f} s); --allow-partial takes what decodes",
        reason="decode_error",
    )


def lost_packets(facts: VideoFacts, report: DecodeReport, packet_times: np.ndarray) -> np.ndarray:
    """For each packet's time: was no frame decoded there?

    Cameras and broadcasts code the two fields of an H.264 frame as two packets. The second is not lost: it decodes
    without an error, and its time is half a frame after the first.
    """
    frame_times = np.asarray(report.times)
    if not len(frame_times):
        return np.ones(len(packet_times), dtype=bool)
    after = np.searchsorted(frame_times, packet_times + NEAR)
    since = packet_times - frame_times[np.maximum(after - 1, 0)]
    lost = np.abs(since) > NEAR
    if facts.codec == "h264" and len(frame_times) > 1:
        second_fields = lost & (since > 0) & (since < SECOND_FIELD * np.median(np.diff(frame_times)))
        if report.num_errors < second_fields.sum() / 2:
            lost &= ~second_fields
    return lost


def covered_seconds(facts: VideoFacts, report: DecodeReport) -> float:
    """Seconds of the video for which a frame was decoded: the shares of the packets there are, less the lost ones.

    All of it where the report is empty: then every wanted frame came out as planned. Time that a hole takes between
    two packets is not covered.
    """
    shown_for = np.append(np.diff(facts.packet_times), facts.last_duration_seconds)
    if facts.hole_seconds > 0:
        shown_for = np.minimum(shown_for, HOLE_LEAP * np.median(shown_for))
    if not report.times:
        return float(shown_for.sum())
    read = facts.packet_times <= report.times[-1] + NEAR
    return float(shown_for[~lost_packets(facts, report, facts.packet_times) | ~read].sum())
