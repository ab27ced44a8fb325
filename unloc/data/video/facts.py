"""Facts of a video stream, measured from its packets: headers lie about durations, counts and frame rates.

Time zero is the container's start, the clock of the ffmpeg command line: seconds = pts - container start time. A
stream that begins later keeps its offset.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from unloc.errors import VideoError


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What demuxing tells; nothing is decoded."""

    path: Path
    container: str
    """Container format, ffmpeg's name."""
    codec: str
    """Codec, ffmpeg's name."""
    pixel_format: str
    """ffmpeg's name, as yuv420p."""
    width: int
    height: int
    packet_times: np.ndarray
    """Rising presentation times in seconds of all packets that are shown (none discarded)."""
    last_duration_seconds: float
    """How long the last frame is shown."""
    num_packets: int
    """All packets of the stream."""
    num_discarded: int
    """Packets that an edit list hides."""
    num_frames_from_header: int
    """0 where the header does not say."""
    rate_from_header: float
    """Average frame rate, 0 where the header does not say."""
    interlaced: bool
    """True where the stream's field order is not progressive."""
    has_pts: bool
    """False where packets carry no presentation times."""

    @property
    def first_seconds(self) -> float:
        """When the first frame is shown."""
        return float(self.packet_times[0])

    @property
    def last_seconds(self) -> float:
        """When the last frame begins."""
        return float(self.packet_times[-1])

    @property
    def end_seconds(self) -> float:
        """When the last frame ends: the measured duration of the video."""
        return self.last_seconds + self.last_duration_seconds


@dataclass(frozen=True)
class ShownFrame:
    """One decoded frame and the wanted times it answers."""

    positions: list[int]
    """Indices into the wanted times."""
    time_seconds: float
    """When the frame is really shown from."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB, rotated as the file asks."""


def open_container(path: Path) -> av.container.InputContainer:
    """The container, opened. Raises VideoError with a reason where it cannot be."""
    if not path.is_file():
        raise VideoError(f"{path}: file does not exist", reason="not_found")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: file is empty", reason="empty_file")
    try:
        # Some real files carry metadata that is not UTF-8; it is not ours to refuse them for that.
        return av.open(f"file:{path}", metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise VideoError(f"{path}: cannot be opened as a video ({_words(error)})", reason="unreadable") from None


def best_stream(container: av.container.InputContainer, path: Path) -> av.video.stream.VideoStream:
    """The best video stream (not simply the first). Raises VideoError where there is none."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise VideoError(f"{path}: has no video stream that can be decoded", reason="no_video_stream")
    return stream


def start_seconds(container: av.container.InputContainer) -> float:
    """The container's start on the clock of its time stamps."""
    return (container.start_time or 0) / av.time_base


def scan(path: Path) -> VideoFacts:
    """Read all packets once, decode none. Raises VideoError with a reason where there is nothing to decode."""
    with open_container(path) as container:
        stream = best_stream(container, path)
        origin = start_seconds(container)
        shown, durations, num_packets, num_discarded, has_pts = [], [], 0, 0, True
        for packet in _packets(container, stream):
            num_packets += 1
            num_discarded += bool(packet.is_discard)
            stamp = packet.pts if packet.pts is not None else packet.dts
            has_pts &= packet.pts is not None
            if stamp is not None and not packet.is_discard:
                shown.append(float(stamp * packet.time_base) - origin)
                durations.append(float((packet.duration or 0) * packet.time_base))
        if not shown:
            raise VideoError(f"{path}: the video stream holds no packet that is shown", reason="no_frames")
        order = np.argsort(shown, kind="stable")
        times = np.asarray(shown)[order]
        rate = float(stream.average_rate or 0)
        return VideoFacts(
            path=path,
            container=container.format.name,
            codec=stream.codec_context.name,
            pixel_format=stream.codec_context.pix_fmt or "",
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            packet_times=times,
            last_duration_seconds=_last_duration(times, durations[int(order[-1])], rate),
            num_packets=num_packets,
            num_discarded=num_discarded,
            num_frames_from_header=stream.frames,
            rate_from_header=rate,
            interlaced=_is_interlaced(stream),
            has_pts=has_pts,
        )


def _packets(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Iterator[av.Packet]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            return  # the file ends in the middle of something; what came before is what there is
        if packet.size > 0:  # the last one is an empty flush packet
            yield packet


def _last_duration(times: np.ndarray, stated: float, rate: float) -> float:
    """The last packet's own duration where it is plausible, else the typical distance of frames."""
    spacing = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    typical = spacing if spacing > 0 else (1.0 / rate if rate > 0 else 0.0)
    if stated > 0 and (typical == 0.0 or stated < 100 * typical):
        return stated
    return typical


def _is_interlaced(stream: av.video.stream.VideoStream) -> bool:
    order = getattr(stream.codec_context, "field_order", None)
    name = getattr(order, "name", str(order) if order is not None else "").lower()
    return name not in ("", "none", "unknown", "progressive", "0", "1")


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).replace("\n", " ")[:160]
