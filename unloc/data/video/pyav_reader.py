"""Frames by PyAV: every frame decoded in order, only wanted ones converted. Exact on every stream that decodes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import numpy as np

from unloc.data.video.facts import ShownFrame, VideoFacts, best_stream, open_container, start_seconds
from unloc.errors import VideoError

TIME_TOLERANCE = 1e-4  # seconds; time stamps in milliseconds must not lose the frame that begins at the wanted time
LOST_SHARE_ALLOWED = 0.10  # of frames, lost to broken packets, before a video counts as broken


@dataclass
class DecodeReport:
    """What decoding met; filled while frames are read."""

    num_frames: int = 0
    num_errors: int = 0
    first_error_seconds: float | None = None
    last_seconds: float | None = None
    times: list[float] = field(default_factory=list)


class PyAVReader:
    """Reads one video once."""

    name = "pyav"

    def __init__(self, facts: VideoFacts, *, allow_partial: bool = False) -> None:
        self.facts, self.allow_partial = facts, allow_partial
        self.report = DecodeReport()

    def frames_at(self, wanted_seconds: np.ndarray) -> Iterator[ShownFrame]:
        """The frame shown at each wanted time (rising): the last that begins at or before it, else the first.

        Raises VideoError where nothing decodes, or more is lost than allowed and allow_partial is off.
        """
        wanted = list(enumerate(np.asarray(wanted_seconds, dtype=np.float64).tolist()))
        held: tuple[float, av.VideoFrame] | None = None
        ended = True
        for time_seconds, frame in self._decode():
            if held is not None:
                due = self._due(wanted, until=time_seconds)
                if due:
                    yield ShownFrame(due, held[0], to_rgb(held[1]))
            held = (time_seconds, frame)
            if not wanted:
                ended = False
                break
        if held is None:
            raise VideoError(f"{self.facts.path}: no frame decodes", reason="no_frames")
        self._check(ended=ended)
        if wanted:
            yield ShownFrame([position for position, _ in wanted], held[0], to_rgb(held[1]))

    @staticmethod
    def _due(wanted: list[tuple[int, float]], *, until: float) -> list[int]:
        due = []
        while wanted and wanted[0][1] < until - TIME_TOLERANCE:
            due.append(wanted.pop(0)[0])
        return due

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """(time in seconds, frame) in rising time; broken packets are counted and passed over."""
        path = self.facts.path
        with open_container(path) as container:
            stream = best_stream(container, path)
            stream.codec_context.thread_count = 1  # one core a worker; also, some streams differ by thread type
            origin, last = start_seconds(container), -np.inf
            for frame in self._frames(container, stream):
                time_seconds = self._time_of(frame, origin, last)
                if time_seconds <= last:
                    continue  # a repeated time stamp is not a new moment
                last = time_seconds
                self.report.num_frames += 1
                self.report.last_seconds = time_seconds
                self.report.times.append(time_seconds)
                yield time_seconds, frame

    def _time_of(self, frame: av.VideoFrame, origin: float, last: float) -> float:
        if frame.pts is not None and frame.time_base is not None:
            return float(frame.pts * frame.time_base) - origin
        rate = self.facts.rate_from_header or 25.0
        return 0.0 if last == -np.inf else last + 1.0 / rate

    def _frames(
        self, container: av.container.InputContainer, stream: av.video.stream.VideoStream
    ) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                return
            except av.error.FFmpegError:
                self._count_error()
                if self.report.num_errors > self.facts.num_packets + 16:
                    return  # the demuxer itself repeats its error for ever
                continue
            yield from frames

    def _count_error(self) -> None:
        self.report.num_errors += 1
        if self.report.first_error_seconds is None:
            self.report.first_error_seconds = self.report.last_seconds or 0.0

    def _check(self, *, ended: bool) -> None:
        """Was too much lost, up to where it was read (to the end, if `ended`)?"""
        if self.allow_partial:
            return
        report, facts = self.report, self.facts
        last = report.times[-1]
        due = facts.packet_times if ended else facts.packet_times[facts.packet_times <= last]
        lost = lost_share(due, np.asarray(report.times))
        if lost > LOST_SHARE_ALLOWED:
            where = facts.first_seconds if report.times[0] > facts.first_seconds + 1 else last
            where = where if report.first_error_seconds is None else report.first_error_seconds
            raise VideoError(
                f"{facts.path}: {lost:.0%} of {len(due)} frames do not decode (first loss near {where:.2f} s, decoded "
                f"{report.times[0]:.2f}-{last:.2f} s); --allow-partial takes what decodes",
                reason="decode_error",
            )
        if is_truncated(facts):
            raise VideoError(
                f"{facts.path}: the file ends after {facts.num_packets} of {facts.num_frames_from_header} frames "
                f"({facts.end_seconds:.2f} s are there); --allow-partial takes what is there",
                reason="truncated",
            )


def lost_share(packet_times: np.ndarray, frame_times: np.ndarray) -> float:
    """Share of the packets' times at which no frame was decoded."""
    if not len(frame_times):
        return 1.0
    right = np.clip(np.searchsorted(frame_times, packet_times), 0, len(frame_times) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.minimum(np.abs(frame_times[right] - packet_times), np.abs(frame_times[left] - packet_times))
    return float((nearest > 10 * TIME_TOLERANCE).mean())


def is_truncated(facts: VideoFacts) -> bool:
    """MP4 and MOV list every frame in an index: a file that holds clearly fewer was cut off."""
    indexed = "mov" in facts.container and facts.num_frames_from_header > 0
    return indexed and facts.num_packets < (1 - LOST_SHARE_ALLOWED) * facts.num_frames_from_header


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8, turned upright by the rotation that the file states."""
    image = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image
