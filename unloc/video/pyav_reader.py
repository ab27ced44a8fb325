"""Frames by PyAV, chosen by presentation time; only wanted frames are converted.

Where the packets' facts say which frames they become, only the groups of pictures that hold wanted frames are decoded,
without the non-reference frames that nobody wants. That way is checked as it goes: each wanted frame must come out
whole with its own time stamp, else everything still wanted is read again by decoding every frame in order.
"""

from collections.abc import Iterator

import av
import numpy as np

from unloc.errors import VideoError
from unloc.video.facts import (
    Progress,
    ShownFrame,
    VideoFacts,
    best_stream,
    no_report,
    open_container,
    packets_of,
    start_seconds,
)
from unloc.video.orientation import quarter_turns
from unloc.video.plan import TIME_TOLERANCE, DecodePlan, Stretch, make_plan
from unloc.video.report import DecodeReport, check_losses, check_whole

SEEK_BYTES = 4_000_000  # a longer stretch that nobody needs is jumped over in the file, not read
MAX_SWAPPED = 2  # frames; how far from its place a packed B-frame, or a stream with few stamps, puts a key frame's


class _NotAsPlannedError(Exception):
    """The stream does not behave as its packets say; never leaves this module."""


class PyAVReader:
    """Reads one video once, on one thread."""

    name = "pyav"

    def __init__(self, facts: VideoFacts, *, allow_partial: bool = False, on_progress: Progress = no_report) -> None:
        self.facts, self.allow_partial, self.on_progress = facts, allow_partial, on_progress
        self.report = DecodeReport()
        check_whole(facts, allow_partial=allow_partial)

    def frames_at(self, wanted_seconds: np.ndarray) -> Iterator[ShownFrame]:
        """The frame shown at each wanted time (rising): the last that begins at or before it, else the first.

        Raises VideoError where nothing decodes, or more is lost than allowed and allow_partial is off.
        """
        wanted_seconds = np.asarray(wanted_seconds, dtype=np.float64)
        delivered: set[int] = set()
        plan = make_plan(self.facts, wanted_seconds)
        if plan is not None:
            try:
                for shown in _PlannedDecode(self.facts, plan, self.on_progress).frames():
                    delivered.update(shown.positions)
                    yield shown
            except _NotAsPlannedError:
                pass  # what came so far is right; the rest is read in order
        rest = [(position, time) for position, time in enumerate(wanted_seconds.tolist()) if position not in delivered]
        if rest:
            yield from self._in_order(rest)

    def _in_order(self, wanted: list[tuple[int, float]]) -> Iterator[ShownFrame]:
        """Every frame decoded from the first on, up to the last wanted."""
        to_rgb, held, ended = RgbConverter(), None, True
        for time_seconds, frame in self._decode():
            due = []
            while held is not None and wanted and wanted[0][1] < time_seconds - TIME_TOLERANCE:
                due.append(wanted.pop(0)[0])
            if due:
                yield ShownFrame(due, held[0], to_rgb(held[1]))
            held = (time_seconds, frame)
            if not wanted:
                ended = False
                break
        if held is None:
            raise VideoError(f"{self.facts.path}: no frame decodes", reason="no_frames")
        if not self.allow_partial:
            check_losses(self.facts, self.report, ended=ended)
        if wanted:
            yield ShownFrame([position for position, _ in wanted], held[0], to_rgb(held[1]))

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """(time in seconds, frame) in rising time; broken packets are counted and passed over."""
        path = self.facts.path
        with open_container(path) as container:
            stream = best_stream(container, path)
            stream.codec_context.thread_count = 1  # one core a worker; also, some streams differ by thread type
            frames = self._frames(container, stream)
            last = -np.inf
            timed = self._in_output_order if self.facts.stamps_in_output_order else self._stamped
            for time_seconds, frame in timed(frames, start_seconds(container)):
                if time_seconds <= last:
                    continue  # a repeated time stamp is not a new moment
                last = time_seconds
                self.report.add(time_seconds, is_corrupt=bool(frame.is_corrupt))
                yield time_seconds, frame

    def _stamped(self, frames: Iterator[av.VideoFrame], origin: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """With times in seconds; where a frame has none, one frame's length after the frame before it."""
        spacing, time_seconds = 1.0 / (self.facts.rate_from_header or 25.0), None
        for frame in frames:
            if frame.pts is not None and frame.time_base is not None:
                time_seconds = float(frame.pts * frame.time_base) - origin
            else:
                time_seconds = 0.0 if time_seconds is None else time_seconds + spacing
            yield time_seconds, frame

    def _in_output_order(self, frames: Iterator[av.VideoFrame], origin: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """With the sorted times of the packets, one after another.

        All frames whose packets precede a key frame's are shown before it, and so are those of later packets that have
        come out by then. That tells its place, whatever was lost or came twice on the way to it.
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
                return  # frames beyond those that the packets announce have no time
            yield float(times[place]), frame
            place += 1

    def _frames(
        self, container: av.container.InputContainer, stream: av.video.stream.VideoStream
    ) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while True:
            self.on_progress()
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self.report.add_error()
                if self.report.num_errors > self.facts.num_packets + 16:
                    return  # the demuxer itself repeats its error for ever
                continue
            yield from frames


class _PlannedDecode:
    """One pass over the stretches of a plan. Raises _NotAsPlannedError as soon as something is not as planned."""

    def __init__(self, facts: VideoFacts, plan: DecodePlan, on_progress: Progress) -> None:
        self.facts, self.plan, self.on_progress = facts, plan, on_progress
        self.due = dict(plan.positions)
        self.to_rgb = RgbConverter()

    def frames(self) -> Iterator[ShownFrame]:
        """Each wanted frame once."""
        with open_container(self.facts.path) as container:
            stream = best_stream(container, self.facts.path)
            stream.codec_context.thread_count = 1
            self.origin, self.time_base = start_seconds(container), stream.time_base
            packets = _CountedPackets(self.facts, container, stream, self.on_progress)
            for stretch in self.plan.stretches:
                packets.skip_to(stretch.first)
                yield from self._stretch(packets, stretch)
        if self.due:
            raise _NotAsPlannedError

    def _stretch(self, packets: "_CountedPackets", stretch: Stretch) -> Iterator[ShownFrame]:
        context, skip = packets.stream.codec_context, self.plan.skip_unreferenced
        start = int(self.facts.packet_stamps[stretch.first])
        second_field_is_due = False
        try:
            for packet in packets.take(stretch.last):
                if skip:
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
            # A stretch that begins by gradual refresh, or a broken frame, is not what reading in order would give.
            if frame.is_corrupt or (frame.pts == start and not is_intra(frame)):
                raise _NotAsPlannedError
            if frame.pts in self.due:
                time_seconds = float(frame.pts * self.time_base) - self.origin
                yield ShownFrame(self.due.pop(frame.pts), time_seconds, self.to_rgb(frame))


class _CountedPackets:
    """The stream's packets with their place among those that were scanned."""

    def __init__(
        self,
        facts: VideoFacts,
        container: av.container.InputContainer,
        stream: av.video.stream.VideoStream,
        on_progress: Progress,
    ) -> None:
        self.facts, self.container, self.stream, self.on_progress = facts, container, stream, on_progress
        self.packets, self.next_index = packets_of(container, stream), 0

    def skip_to(self, index: int) -> None:
        """Leave out what comes before the packet at index."""
        if self.facts.packet_bytes[self.next_index : index].sum() > SEEK_BYTES:
            self._seek(index)
        while self.next_index < index:
            self._next()

    def take(self, last: int) -> Iterator[av.Packet]:
        """The packets up to and with the one at `last`."""
        while self.next_index <= last:
            yield self._next()

    def _next(self) -> av.Packet:
        self.on_progress()
        packet = next(self.packets, None)
        if packet is None or packet.pts != self.facts.packet_stamps[self.next_index]:
            raise _NotAsPlannedError
        self.next_index += 1
        return packet

    def _seek(self, index: int) -> None:
        """Jump to the key frame at index, or to whichever packet before it the container finds."""
        self.container.seek(int(self.facts.packet_stamps[index]), stream=self.stream)
        packets = packets_of(self.container, self.stream)
        packet = next(packets, None)
        found = np.flatnonzero(self.facts.packet_stamps == packet.pts) if packet is not None else []
        if len(found) != 1 or found[0] > index:
            raise _NotAsPlannedError
        self.packets, self.next_index = _chain(packet, packets), int(found[0])


def _chain(first: av.Packet, others: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield first
    yield from others


def is_intra(frame: av.VideoFrame) -> bool:
    """Is it coded without other frames?"""
    return frame.pict_type == av.video.frame.PictureType.I


class RgbConverter:
    """Frames to (H, W, 3) uint8, turned upright as the file asks."""

    def __init__(self) -> None:
        self.reformatter = av.video.reformatter.VideoReformatter()  # kept: building its tables costs more than using it

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """The image."""
        image = self.reformatter.reformat(frame, format="rgb24").to_ndarray()
        turns = quarter_turns(frame)
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
