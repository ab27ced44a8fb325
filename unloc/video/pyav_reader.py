"""Frames by PyAV, chosen by presentation time; only wanted frames are converted.

Where the facts say which packet becomes which frame, only the groups of pictures with wanted frames are decoded,
without unwanted non-reference frames. Each wanted frame must come out intact with its own time stamp; where one does
not, the rest is read by decoding every frame in order.
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType
from av.video.stream import VideoStream

from unloc.callbacks import Heartbeat
from unloc.errors import VideoError
from unloc.video.facts import LOST_SHARE_ALLOWED, VideoFacts, open_stream, packets_of

TIME_TOLERANCE = 1e-4  # seconds; a frame that begins at the wanted time must not be missed by rounding to milliseconds
NEAR = 1e-3  # seconds; a frame and its packet state the same time
HOLE_LEAP = 4.0  # median frame distances; in a file with a hole no frame is taken to be shown longer
SECOND_FIELD = 0.75  # frames; the second field of a frame comes half a frame after the first
TURN_TOLERANCE_DEGREES = 1.01  # fixed-point matrices are not exact
SKIP_CODECS = {"h264", "mpeg4", "hevc"}  # their non-reference frames are marked, and ffmpeg's decoders can skip them
SKIP_CONTAINERS = ("mov", "matroska")
MIN_GAP = 3  # packets; decoding a shorter gap costs less than flushing the decoder
SEEK_BYTES = 4_000_000  # a longer gap is skipped by seeking in the file, not read
MAX_SWAPPED = 2  # frames; how far packed B-frames, or missing stamps, displace a key frame


class ShownFrame(NamedTuple):
    """One decoded frame and the wanted times it answers."""

    positions: list[int]  # indices into the wanted times
    time_seconds: float  # when the frame is really shown from
    image: np.ndarray  # (H, W, 3) uint8 RGB, rotated as the file asks


class DecodePlan(NamedTuple):
    """What to decode for some wanted times."""

    positions: dict[int, list[int]]  # time stamp of each frame to return → indices into the wanted times it answers
    ranges: list[range]  # packets in the file's order, disjoint and rising; each is decoded from a fresh state
    skip_unreferenced: bool  # may frames be skipped that no other frame needs?


class PyAVReader:
    """Reads one video once, on one thread. Exact on every stream that ffmpeg decodes."""

    name = "pyav"

    def __init__(self, facts: VideoFacts, allow_partial: bool = False, on_progress: Heartbeat = lambda: None) -> None:
        """Raises VideoError for a file that was cut off or has a large hole, unless allow_partial."""
        self.facts, self.allow_partial, self.on_progress = facts, allow_partial, on_progress
        self.decoded_seconds: list[float] = []  # of all frames; empty where only parts had to be decoded
        self.reason = "asked for"  # why this decoder reads the file
        self.num_errors = 0  # packets that did not decode
        self._converter = av.video.reformatter.VideoReformatter()  # building its tables costs more than using it
        if allow_partial:
            return
        length_seconds = facts.end_seconds - facts.first_seconds
        if facts.hole_seconds > LOST_SHARE_ALLOWED * length_seconds:
            message = f"{facts.path}: a hole of zeros takes {facts.hole_seconds:.2f} s; --allow-partial reads the rest"
            raise VideoError(message, reason="decode_error")
        if facts.is_truncated:
            frames = f" of {facts.num_frames_from_header}" if facts.num_frames_from_header else ""
            readable = facts.num_bytes if facts.bad_box is None else facts.bad_box
            num_bytes = f"{readable} of {max(facts.stated_bytes or 0, facts.num_bytes)} bytes"
            found = f"{len(facts.packets)}{frames} frames, {num_bytes}, {length_seconds:.2f} s are readable"
            message = f"{facts.path}: the file is cut off: {found}; --allow-partial reads them"
            raise VideoError(message, reason="truncated")

    def frames_at(self, wanted_seconds: np.ndarray) -> Iterator[ShownFrame]:
        """The frame shown at each wanted time (rising, see `shown_at`). Raises VideoError where too little decodes."""
        wanted_seconds = np.asarray(wanted_seconds, dtype=np.float64)
        done: set[int] = set()
        if plan := make_plan(self.facts, wanted_seconds):
            for shown in self._by_plan(plan):
                done.update(shown.positions)
                yield shown
        remaining = [(position, time) for position, time in enumerate(wanted_seconds.tolist()) if position not in done]
        if remaining:
            yield from self._in_order(remaining)

    def _by_plan(self, plan: DecodePlan) -> Iterator[ShownFrame]:
        """Each frame of a plan once. Ends early where the stream does not behave as the facts say."""
        due, stamps = dict(plan.positions), self.facts.packets["stamp"]
        with open_stream(self.facts.path) as (container, stream, origin):
            try:
                for packet_index, frame in self._planned_frames(plan, container, stream):
                    # A range that begins by gradual refresh, or a corrupt frame, is not what reading in order gives.
                    if frame.is_corrupt or (frame.pts == stamps[packet_index] and frame.pict_type != PictureType.I):
                        return
                    if frame.pts in due:
                        time_seconds = float(frame.pts * stream.time_base) - origin
                        yield ShownFrame(due.pop(frame.pts), time_seconds, self._image(frame))
            except MemoryError:
                raise
            except av.error.FFmpegError:
                return

    def _planned_frames(
        self, plan: DecodePlan, container: InputContainer, stream: VideoStream
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """(index of the first packet of its range, frame); ends early where the packets are not those of the facts."""
        stamps, context = self.facts.packets["stamp"], stream.codec_context
        packets, index = packets_of(container, stream), 0
        for wanted in plan.ranges:
            if self.facts.packets["size"][index : wanted.start].sum() > SEEK_BYTES:
                # To the packet where the range starts, or an earlier one that the container finds.
                container.seek(int(stamps[wanted.start]), stream=stream)
                packets = packets_of(container, stream)
                packet = next(packets, None)
                found = np.flatnonzero(stamps == packet.pts) if packet is not None else []
                if len(found) != 1 or found[0] > wanted.start:
                    return
                packets, index = chain([packet], packets), int(found[0])
            second_field_is_due = False
            for current in range(index, wanted.stop):
                self.on_progress()
                packet = next(packets, None)
                if packet is None or packet.pts != stamps[current]:
                    return
                if current < wanted.start:
                    continue
                if plan.skip_unreferenced:
                    is_due = packet.pts in plan.positions
                    context.skip_frame = "DEFAULT" if is_due or second_field_is_due else "NONREF"
                    second_field_is_due = is_due
                for frame in packet.decode():
                    yield wanted.start, frame
            for frame in context.decode(None):
                yield wanted.start, frame
            context.flush_buffers()
            index = wanted.stop

    def _in_order(self, wanted: list[tuple[int, float]]) -> Iterator[ShownFrame]:
        """The frames at wanted (position, time) pairs, rising; every frame up to the last wanted one is decoded. Raises
        VideoError where over a tenth of the frames was lost, of all or of those read; guessed ones are not lost.
        """
        facts, shown, to_end = self.facts, None, True
        timed = self._by_packet_times if facts.stamps_in_output_order else self._by_own_stamps
        with open_stream(facts.path) as (container, stream, origin):
            for time_seconds, frame in timed(self._frames(container, stream), origin):
                if shown is not None and time_seconds <= shown[0]:
                    continue  # a repeated time stamp is not a new moment
                self.decoded_seconds.append(time_seconds)
                due = []
                while shown is not None and wanted and wanted[0][1] < time_seconds - TIME_TOLERANCE:
                    due.append(wanted.pop(0)[0])
                if due:
                    yield ShownFrame(due, shown[0], self._image(shown[1]))
                shown = (time_seconds, frame)
                if not wanted:
                    to_end = False
                    break
        if shown is None:
            raise VideoError(f"{facts.path}: no frame decodes", reason="no_frames")
        if not self.allow_partial:
            first, last = self.decoded_seconds[0], self.decoded_seconds[-1]
            times = facts.packet_times if to_end else facts.packet_times[facts.packet_times <= last]
            lost = self._is_lost(times)
            if lost.mean() > LOST_SHARE_ALLOWED:
                where = f"first loss near {times[lost][0]:.2f} s, decoded {first:.2f}-{last:.2f} s"
                message = f"{lost.mean():.0%} of {len(times)} frames do not decode ({where})"
                raise VideoError(f"{facts.path}: {message}; --allow-partial keeps what decodes")
        if wanted:
            yield ShownFrame([position for position, _ in wanted], shown[0], self._image(shown[1]))

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
        """With the sorted times of the packets, one after another. A key frame comes after all frames whose packets
        precede its packet, and after those of later packets that are out already: its place, even if frames were lost
        or repeated.
        """
        facts = self.facts
        is_packed = facts.codec == "mpeg4" and bool((np.diff(facts.packets["stamp"]) > 0).all())
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
        while self.num_errors <= len(self.facts.packets) + 16:  # a demuxer may repeat its error forever
            self.on_progress()
            try:
                frames = next(packets).decode()
            except StopIteration:
                return
            except MemoryError:
                raise
            except av.error.FFmpegError:
                self.num_errors += 1
            else:
                yield from frames

    def _image(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8, turned upright as the file asks."""
        image = self._converter.reformat(frame, format="rgb24").to_ndarray()
        turns = quarter_turns(frame)
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

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
        """For each packet's time: was no frame decoded there? The second field of an H.264 frame is not lost if packets
        decode without errors: it comes half a frame later.
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


def make_plan(facts: VideoFacts, wanted_seconds: np.ndarray) -> DecodePlan | None:
    """What to decode; None where the facts do not say which packet becomes which frame, so that all must be decoded. A
    frame needs the packets since the last key frame before it both in the file and in presentation (open GOPs).
    """
    stamps, key_indices = facts.packets["stamp"], np.flatnonzero(facts.packets["is_key"])
    if not facts.has_pts or facts.stamps_in_output_order or facts.num_damaged:
        return None
    if len(facts.packet_times) < len(stamps) or len(np.unique(stamps)) < len(stamps):
        return None
    positions: dict[int, list[int]] = {}
    needed: list[tuple[int, int]] = []
    targets = np.argsort(stamps)[shown_at(wanted_seconds, facts.packet_times)]
    for position, index in enumerate(targets.tolist()):
        positions.setdefault(int(stamps[index]), []).append(position)
        keys = key_indices[(key_indices <= index) & (stamps[key_indices] <= stamps[index])]
        if not len(keys):
            return None
        # An H.264 frame may be two packets, one for each field.
        needed.append((int(keys[-1]), min(index + (facts.codec == "h264"), len(stamps) - 1)))
    ranges: list[range] = []
    for first, last in sorted(needed):
        if ranges and first < ranges[-1].stop + MIN_GAP:
            first, last = ranges[-1].start, max(ranges[-1].stop - 1, last)
            ranges.pop()
        ranges.append(range(first, last + 1))
    # Fields of one frame may differ in being referenced; HEVC marks by temporal layer, so there must be one only.
    can_skip = facts.codec in SKIP_CODECS and facts.container.startswith(SKIP_CONTAINERS) and not facts.interlaced
    return DecodePlan(positions, ranges, can_skip and (facts.codec != "hevc" or facts.num_temporal_layers == 1))


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
    """Counterclockwise quarter turns, 0 to 3, that bring the frame upright, without a mirror that comes with them. 0
    for a matrix that is not a rotation by 90, 180 or 270 degrees to within one: all zeros, skewed, or a mirror.
    """
    a, b, c, d = display_matrix(frame) or (0, 0, 0, 0)
    wide, high = math.hypot(a, c), math.hypot(b, d)
    if wide == 0 or high == 0:
        return 0
    degrees = -math.degrees(math.atan2(b / high, a / wide))
    turns = round(degrees / 90)
    is_mirror = turns % 4 == 2 and a * d - b * c < 0
    return 0 if is_mirror or abs(degrees - 90 * turns) > TURN_TOLERANCE_DEGREES else turns % 4
