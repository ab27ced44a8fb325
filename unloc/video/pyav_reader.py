"""Frames by PyAV, chosen by presentation time; only wanted frames are converted.

Where the facts say which packet becomes which frame, only the groups of pictures with wanted frames are decoded,
without unwanted non-reference frames. This is verified on the way: each wanted frame must come out intact with its own
time stamp, else everything still wanted is read by decoding every frame in order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType
from av.video.stream import VideoStream

from unloc.errors import VideoError
from unloc.video import OnProgress
from unloc.video.facts import VideoFacts, best_stream, open_container, packets_of, start_seconds
from unloc.video.frame_reader import TIME_TOLERANCE, FrameReader, ShownFrame, quarter_turns, shown_at

SKIP_CODECS = {"h264", "mpeg4", "hevc"}  # their non-reference frames are marked, and ffmpeg's decoders can skip them
SKIP_CONTAINERS = ("mov", "matroska")
MIN_GAP = 3  # packets; decoding a shorter gap costs less than flushing the decoder
SEEK_BYTES = 4_000_000  # a longer gap is skipped by seeking in the file, not read
MAX_SWAPPED = 2  # frames; how far packed B-frames, or missing stamps, displace a key frame


@dataclass(frozen=True)
class DecodePlan:
    """What to decode for some wanted times."""

    positions: dict[int, list[int]]
    """Time stamp of each frame to return → indices into the wanted times that it answers."""
    ranges: list[range]
    """Packets in the file's order, disjoint and rising. Each is decoded from a fresh state, and the decoder flushed."""
    skip_unreferenced: bool
    """May frames be skipped that no other frame needs?"""


class PyAVReader(FrameReader):
    """Exact on every stream that ffmpeg decodes."""

    name = "pyav"

    def frames_at(self, wanted_seconds: np.ndarray) -> Iterator[ShownFrame]:
        """By plan where there is one, else, or after a plan failed, in order."""
        wanted_seconds = np.asarray(wanted_seconds, dtype=np.float64)
        done: set[int] = set()
        plan = make_plan(self.facts, wanted_seconds)
        if plan is not None:
            try:
                for shown in _PlannedPass(self.facts, plan, self.on_progress).frames():
                    done.update(shown.positions)
                    yield shown
            except _NotAsPlannedError:
                pass  # the frames so far are right; the others are read in order
        remaining = [(position, time) for position, time in enumerate(wanted_seconds.tolist()) if position not in done]
        if remaining:
            yield from self._in_order(remaining)

    def _in_order(self, wanted: list[tuple[int, float]]) -> Iterator[ShownFrame]:
        """The frames at wanted (position, time) pairs, rising; every frame up to the last wanted one is decoded."""
        to_rgb, shown, to_end = RgbConverter(), None, True
        for time_seconds, frame in self._decode():
            due = []
            while shown is not None and wanted and wanted[0][1] < time_seconds - TIME_TOLERANCE:
                due.append(wanted.pop(0)[0])
            if due:
                yield ShownFrame(due, shown[0], to_rgb(shown[1]))
            shown = (time_seconds, frame)
            if not wanted:
                to_end = False
                break
        if shown is None:
            raise VideoError(f"{self.facts.path}: no frame decodes", reason="no_frames")
        if not self.allow_partial:
            self._require_decoded(to_end=to_end)
        if wanted:
            yield ShownFrame([position for position, _ in wanted], shown[0], to_rgb(shown[1]))

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """(time in seconds, frame) in rising time."""
        path = self.facts.path
        with open_container(path) as container:
            stream = best_stream(container, path)
            stream.codec_context.thread_count = 1  # one core per worker; also, some streams differ by thread type
            last = -np.inf
            timed = self._by_packet_times if self.facts.stamps_in_output_order else self._by_own_stamps
            for time_seconds, frame in timed(self._frames(container, stream), start_seconds(container)):
                if time_seconds > last:  # a repeated time stamp is not a new moment
                    last = time_seconds
                    self.decoded_seconds.append(time_seconds)
                    yield time_seconds, frame

    def _by_own_stamps(self, frames: Iterator[av.VideoFrame], origin: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """With times in seconds; a frame without a stamp comes one frame's length after the previous one."""
        spacing, time_seconds = 1.0 / (self.facts.rate_from_header or 25.0), None
        for frame in frames:
            if frame.pts is not None and frame.time_base is not None:
                time_seconds = float(frame.pts * frame.time_base) - origin
            else:
                time_seconds = 0.0 if time_seconds is None else time_seconds + spacing
            yield time_seconds, frame

    def _by_packet_times(self, frames: Iterator[av.VideoFrame], origin: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """With the sorted times of the packets, one after another.

        Before a key frame are shown all frames whose packets precede its packet, and frames of later packets that have
        already come out. This tells its place even if frames were lost or repeated on the way.
        """
        facts = self.facts
        is_packed = facts.codec == "mpeg4" and bool((np.diff(facts.packet_stamps) > 0).all())
        slack = MAX_SWAPPED if is_packed or not facts.has_pts else 0
        times, place, since_key = facts.packet_times, 0, []
        for frame in frames:
            if frame.pts is not None:
                own = float(frame.pts * frame.time_base) - origin
                if frame.key_frame:
                    known = int(np.searchsorted(times, own - TIME_TOLERANCE)) + sum(time > own for time in since_key)
                    place, since_key = known if abs(known - place) > slack else place, []
                since_key.append(own)
            if place >= len(times):
                return  # frames beyond the announced packets have no time
            yield float(times[place]), frame
            place += 1

    def _frames(self, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        """All frames as the decoder returns them; packets that do not decode are counted and skipped."""
        packets = container.demux(stream)
        while True:
            self.on_progress()
            try:
                frames = next(packets).decode()
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self.num_errors += 1
                if self.num_errors > self.facts.num_packets + 16:
                    return  # the demuxer itself repeats its error forever
                continue
            yield from frames


def make_plan(facts: VideoFacts, wanted_seconds: np.ndarray) -> DecodePlan | None:
    """What to decode; None where the facts do not say which packet becomes which frame, so that all must be decoded.

    A frame needs the packets from the last key frame that precedes it both in the file and in presentation: leading
    frames of an open GOP follow their key frame in the file, but need the group before it.
    """
    stamps = facts.packet_stamps
    if not facts.has_pts or facts.stamps_in_output_order or facts.num_damaged:
        return None
    if len(facts.packet_times) < facts.num_packets or len(np.unique(stamps)) < len(stamps):
        return None
    positions: dict[int, list[int]] = {}
    needed: list[tuple[int, int]] = []
    targets = np.argsort(stamps)[shown_at(wanted_seconds, facts.packet_times)]
    for position, index in enumerate(targets.tolist()):
        positions.setdefault(int(stamps[index]), []).append(position)
        keys = facts.key_indices[: np.searchsorted(facts.key_indices, index, side="right")]
        keys = keys[stamps[keys] <= stamps[index]]
        if not len(keys):
            return None
        # An H.264 frame may be two packets, one for each field.
        needed.append((int(keys[-1]), min(index + (facts.codec == "h264"), facts.num_packets - 1)))
    ranges: list[range] = []
    for first, last in sorted(needed):
        if ranges and first < ranges[-1].stop + MIN_GAP:
            first, last = ranges[-1].start, max(ranges[-1].stop - 1, last)
            ranges.pop()
        ranges.append(range(first, last + 1))
    # Fields of one frame may differ in being referenced; HEVC marks by temporal layer, so there must be one only.
    can_skip = facts.codec in SKIP_CODECS and facts.container.startswith(SKIP_CONTAINERS) and not facts.interlaced
    return DecodePlan(positions, ranges, can_skip and (facts.codec != "hevc" or facts.num_temporal_layers == 1))


class _NotAsPlannedError(Exception):
    """The stream does not behave as its packets say; never leaves this module."""


class _PlannedPass:
    """One pass over the packet ranges of a plan. Raises _NotAsPlannedError where the stream behaves otherwise."""

    def __init__(self, facts: VideoFacts, plan: DecodePlan, on_progress: OnProgress) -> None:
        self.facts, self.plan, self.on_progress = facts, plan, on_progress
        self.due = dict(plan.positions)
        self.to_rgb, self.next_index = RgbConverter(), 0

    def frames(self) -> Iterator[ShownFrame]:
        """Each wanted frame once."""
        with open_container(self.facts.path) as container:
            self.container, self.stream = container, best_stream(container, self.facts.path)
            self.stream.codec_context.thread_count = 1
            self.origin = start_seconds(container)
            self.packets = packets_of(container, self.stream)
            for packet_range in self.plan.ranges:
                self._skip_to(packet_range.start)
                yield from self._decode(packet_range)
        if self.due:
            raise _NotAsPlannedError

    def _decode(self, packet_range: range) -> Iterator[ShownFrame]:
        context, start = self.stream.codec_context, int(self.facts.packet_stamps[packet_range.start])
        second_field_is_due = False
        try:
            for _ in packet_range:
                packet = self._next_packet()
                if self.plan.skip_unreferenced:
                    is_due = packet.pts in self.due
                    context.skip_frame = "DEFAULT" if is_due or second_field_is_due else "NONREF"
                    second_field_is_due = is_due
                yield from self._wanted(packet.decode(), start)
            yield from self._wanted(context.decode(None), start)
            context.flush_buffers()
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise _NotAsPlannedError from None

    def _wanted(self, frames: list[av.VideoFrame], start: int) -> Iterator[ShownFrame]:
        for frame in frames:
            # A range that begins by gradual refresh, or a corrupt frame, is not what reading in order would give.
            if frame.is_corrupt or (frame.pts == start and frame.pict_type != PictureType.I):
                raise _NotAsPlannedError
            if frame.pts in self.due:
                time_seconds = float(frame.pts * self.stream.time_base) - self.origin
                yield ShownFrame(self.due.pop(frame.pts), time_seconds, self.to_rgb(frame))

    def _next_packet(self) -> av.Packet:
        self.on_progress()
        packet = next(self.packets, None)
        if packet is None or packet.pts != self.facts.packet_stamps[self.next_index]:
            raise _NotAsPlannedError
        self.next_index += 1
        return packet

    def _skip_to(self, index: int) -> None:
        """Go to the packet at index: read up to it, or jump to it or to an earlier one that the container finds."""
        stamps = self.facts.packet_stamps
        if self.facts.packet_bytes[self.next_index : index].sum() > SEEK_BYTES:
            self.container.seek(int(stamps[index]), stream=self.stream)
            packets = packets_of(self.container, self.stream)
            packet = next(packets, None)
            found = np.flatnonzero(stamps == packet.pts) if packet is not None else []
            if len(found) != 1 or found[0] > index:
                raise _NotAsPlannedError
            self.packets, self.next_index = chain([packet], packets), int(found[0])
        while self.next_index < index:
            self._next_packet()


class RgbConverter:
    """Frames to (H, W, 3) uint8, turned upright as the file asks."""

    def __init__(self) -> None:
        self.reformatter = av.video.reformatter.VideoReformatter()  # kept: building its tables costs more than using it

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """The image of a frame."""
        image = self.reformatter.reformat(frame, format="rgb24").to_ndarray()
        turns = quarter_turns(frame)
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
