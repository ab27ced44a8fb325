"""Facts of a video stream, measured from its packets: headers are wrong about durations, frame counts and rates.

Time zero is the container's start, as for the ffmpeg command line; a stream that begins later keeps its offset.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.codec import Properties
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from unloc.callbacks import Heartbeat
from unloc.errors import VideoError, one_line
from unloc.video.mpeg4 import Mpeg4Packets

av.logging.set_level(None)  # ffmpeg's own messages would break the progress bar; errors carry what matters

LOST_SHARE_ALLOWED = 0.10  # of the frames; with more lost a video counts as broken
FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,flv,live_flv,kux,asf,ogg,nut,mxf,rm,ivf,dv,gxf,wtv,nuv,nsv,pva,dhav,swf,smk,bink,flic,"
    "roq,gif,apng,webp,yuv4mpegpipe,mjpeg,mpjpeg,m4v,mpegvideo,h263,h264,hevc,vvc,obu,av1,vc1,vc1test,cavsvideo,dirac"
)
# A playlist, a session description or a name like %d.png would make the library open other files, even over a network.
ONE_FILE = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
LEAP = 4.0  # median frame distances; a larger jump between two packets may be a hole, reordered B-frames jump less
TAIL_BYTES = 1 << 20  # searched for zeros after the last packet
ZERO_HOLE = bytes(16_384)  # longer than a block of silence in uncompressed sound
ZERO_RUN = bytes(48)  # longer than any run of zeros at a packet's border seen in intact files
PACKETS_AT_ONCE = 50_000
PACKET = np.dtype(
    [(name, "i8") for name in ("stamp", "dts", "duration", "size", "position")]
    + [(name, "?") for name in ("has_pts", "has_dts", "is_key", "is_shown")]
)


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What demuxing says about a video; nothing is decoded."""

    path: Path
    container: str  # ffmpeg's name of the format
    codec: str
    pixel_format: str
    width: int
    height: int
    sample_aspect_ratio: Fraction  # width over height of a stored pixel; frames keep these, a player would stretch
    packets: np.ndarray  # rows of PACKET in the file's order; `stamps_in_output_order` says what the stamps mean
    packet_times: np.ndarray  # rising presentation times in seconds of all packets that are shown
    clock_start_seconds: float  # the container's start, which was subtracted from the file's own time stamps
    last_duration_seconds: float
    num_discarded: int  # packets hidden by an edit list
    num_damaged: int  # packets that are cut short, or begin or end in zeros: a hole in the file
    num_temporal_layers: int  # of an HEVC stream in MP4 or Matroska; 0 where unknown
    hole_seconds: float  # time without packets where the file has a hole of zeros
    bad_box: int | None  # byte at which a hole ends the boxes of an MP4/MOV file: fragments after it are not found
    stated_bytes: int | None  # length of the file as its container states it
    num_bytes: int
    num_frames_from_header: int  # 0 where the header does not say
    rate_from_header: float  # average frames per second, 0 where the header does not say
    interlaced: bool  # true where the stream's field order is known and not progressive
    has_pts: bool  # false where some packets have no presentation time
    # True where a packet's stamp is not the time of its own frame (AVI and ASF count packets, MPEG-4 packs B-frames),
    # but the sorted stamps are the times of the frames in the order in which a decoder returns them.
    stamps_in_output_order: bool

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

    @property
    def is_truncated(self) -> bool:
        """Was it cut off: are there fewer bytes than stated and frames missing, or is it broken between fragments?"""
        indexed = self.num_frames_from_header if "mov" in self.container else 0
        if self.stated_bytes is not None:
            misses_frames = len(self.packets) < indexed or self.num_damaged > 0 or indexed == 0
            return self.stated_bytes > self.num_bytes and misses_frames
        if self.bad_box is not None and indexed == 0:
            return True
        # An edit list also leaves out packets that the index counts.
        return self.num_discarded == 0 and len(self.packets) < (1 - LOST_SHARE_ALLOWED) * indexed


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream, float]]:
    """The opened file, its best video stream (not simply the first), the container's start. Raises VideoError."""
    if not path.is_file():
        raise VideoError(f"{path}: file does not exist", reason="not_found")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: file is empty", reason="empty_file")
    try:
        # Some real files have metadata that is not UTF-8.
        container = av.open(f"file:{path}", metadata_errors="replace", options=ONE_FILE)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        with path.open("rb") as handle:
            is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in handle.read(256))
        if is_text:
            raise VideoError(f"{path}: is a text (a list of files?), not a video", reason="unreadable") from None
        if message := missing_mp4_index(path):
            raise VideoError(f"{path}: {message}", reason="truncated") from None
        raise VideoError(f"{path}: cannot be opened as a video ({one_line(error)})", reason="unreadable") from None
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise VideoError(f"{path}: has no video stream that can be decoded", reason="no_video_stream")
        if stream.disposition & Disposition.attached_pic:
            raise VideoError(f"{path}: has no video stream, only a picture for its sound", reason="no_video_stream")
        stream.codec_context.thread_count = 1  # a worker has one core, and some streams differ by kind of thread
        yield container, stream, (container.start_time or 0) / av.time_base


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """The stream's packets in the file's order, up to where the file ends or breaks."""
    with suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            if packet.size > 0:  # the last one is an empty flush packet
                yield packet


def is_damaged(packet: av.Packet) -> bool:
    """Is it cut short, or does it begin or end in a run of zeros that no codec writes?"""
    data = bytes(packet)
    has_zeros = data.startswith(ZERO_RUN) or data.endswith(ZERO_RUN)
    return packet.is_corrupt or (has_zeros and len(data) >= 2 * len(ZERO_RUN))


def scan(path: Path, on_progress: Heartbeat = lambda: None) -> VideoFacts:
    """Read all packets once, decode none. Raises VideoError with a reason where there is nothing to decode."""
    with open_stream(path) as (container, stream, clock_start):
        context, name = stream.codec_context, container.format.name
        headers = bytes(context.extradata or b"")
        mpeg4 = Mpeg4Packets(headers) if context.name == "mpeg4" else None
        parts, rows, num_discarded, num_damaged = [], [], 0, 0
        for packet in packets_of(container, stream):
            on_progress()
            num_discarded += packet.is_discard
            num_damaged += is_damaged(packet)
            shown = not packet.is_discard and (mpeg4 is None or mpeg4.shows_frame(packet))
            position = -1 if packet.pos is None else packet.pos
            numbers = (packet.pts or 0, packet.dts or 0, packet.duration or 0, packet.size, position)
            rows.append((*numbers, packet.pts is not None, packet.dts is not None, packet.is_keyframe, shown))
            if len(rows) == PACKETS_AT_ONCE:  # as tuples those of hours of video fill the memory
                parts.append(np.array(rows, dtype=PACKET))
                rows.clear()
        packets = np.concatenate([*parts, np.array(rows, dtype=PACKET)])
        has_pts = bool(packets["has_pts"].all())
        packets["stamp"], is_timed, counts_frames = _stamps(packets, stream)
        packets["is_shown"] &= is_timed
        if name == "avi":  # it only counts packets, so times after a hole are wrong
            gaps = packets["position"][1:] - (packets["position"] + packets["size"])[:-1]
            hole = next(_holes(path, packets, gaps > len(ZERO_HOLE)), None)
            packets = packets if hole is None else packets[: hole + 1]
        stamps, is_shown = packets["stamp"], packets["is_shown"]
        if not is_shown.any():
            if "mov" in name and (message := missing_mp4_index(path)):
                raise VideoError(f"{path}: {message}", reason="truncated")
            if num_untimed := len(packets) - num_discarded:
                message = f"its {num_untimed} packets carry no time stamps, as in a raw stream; put it into a container"
                raise VideoError(f"{path}: {message} (ffmpeg -i IN -c copy OUT.mp4)", reason="unreadable")
            raise VideoError(f"{path}: the video stream holds no packet that is shown", reason="no_frames")

        time_base, rate = float(stream.time_base), float(stream.average_rate or 0)
        times = stamps * time_base - clock_start
        order = np.flatnonzero(is_shown)[np.argsort(times[is_shown], kind="stable")]
        shown_times = times[order]
        spacing = float(np.median(np.diff(shown_times))) if len(shown_times) > 1 else 0.0
        spacing = spacing if spacing > 0 else (1.0 / rate if rate > 0 else 0.0)
        duration = float(packets["duration"][order[-1]]) * time_base
        is_plausible = duration > 0 and (spacing == 0.0 or duration < 100 * spacing)
        reorders = bool(int(context.codec.properties) & Properties.REORDER.value)
        reorders = reorders and (mpeg4 is None or mpeg4.has_b_frames)
        is_in_output_order = (
            counts_frames
            or (reorders and name in ("avi", "asf"))  # they count packets, also for H.264 with B-frames
            or bool(reorders and context.has_b_frames and (np.diff(stamps) > 0).all())
            or (mpeg4 is not None and mpeg4.num_packed > 0)
        )
        length, bad_box = stated_bytes(path, name)
        has_layers = context.name == "hevc" and len(headers) > 22 and headers[0] == 1
        return VideoFacts(
            path=path,
            container=name,
            codec=context.name,
            pixel_format=context.pix_fmt or "",
            width=context.width,
            height=context.height,
            sample_aspect_ratio=Fraction(stream.sample_aspect_ratio or 1),
            packets=packets,
            packet_times=shown_times,
            clock_start_seconds=clock_start,
            last_duration_seconds=duration if is_plausible else spacing,
            num_discarded=num_discarded,
            num_damaged=num_damaged,
            # Byte 21 of the HEVC configuration record (ISO/IEC 14496-15 §8.3.3.1).
            num_temporal_layers=(headers[21] >> 3) & 7 if has_layers else 0,
            hole_seconds=_hole_seconds(path, packets, times, stream.frames),
            bad_box=bad_box,
            stated_bytes=length,
            num_bytes=path.stat().st_size,
            num_frames_from_header=stream.frames,
            rate_from_header=rate,
            interlaced=context.field_order > 1,
            has_pts=has_pts,
            stamps_in_output_order=is_in_output_order,
        )


def _stamps(packets: np.ndarray, stream: VideoStream) -> tuple[np.ndarray, np.ndarray, bool]:
    """(time stamp of each packet, which have one, whether stamps only count frames). Where presentation stamps are
    missing, decoding stamps are taken, else interpolated ones; with at most half known (H.264 in an MPEG program
    stream) they follow the stated rate, if the known ones agree.
    """
    pts, dts, has_pts, has_dts = (packets[key] for key in ("stamp", "dts", "has_pts", "has_dts"))
    if not has_pts.all() and has_dts.all():
        return dts, has_dts, True
    is_field_coded = stream.codec_context.name == "h264" and has_pts[:1].all() and (has_pts[1:] | has_pts[:-1]).all()
    if has_pts.all() or not has_pts.any() or is_field_coded:
        # A single H.264 packet without a stamp, after one that has it, is the second field of the same frame.
        return pts, has_pts, False
    indices, known = np.arange(len(pts)), np.flatnonzero(has_pts)
    between = np.interp(indices, known, np.where(has_dts, dts, pts)[known])
    if has_pts.mean() > 0.5:
        return np.where(has_pts, pts, np.round(between)).astype(np.int64), np.ones_like(has_pts), False
    if stream.average_rate:
        step = 1 / (float(stream.average_rate) * float(stream.time_base))
        steady = between[known[0]] + (indices - known[0]) * step
        between = steady if np.abs(steady - between)[: known[-1] + 1].max() < LEAP * step else between
    return np.round(between - between[0] + pts[known[0]]).astype(np.int64), np.ones_like(has_pts), True


def _holes(path: Path, packets: np.ndarray, is_candidate: np.ndarray) -> Iterator[int]:
    """Indices of the candidates, of all packets but the last, that zeros separate from the next packet."""
    ends = packets["position"] + packets["size"]
    for index in np.flatnonzero(is_candidate).tolist():
        if holds_zero_run(path, int(ends[index]), int(packets["position"][index + 1])):
            yield index


def _hole_seconds(path: Path, packets: np.ndarray, times: np.ndarray, num_announced: int) -> float:
    """Seconds lost to zeros: where time stamps jump, or announced frames are missing at the end, over zero bytes."""
    leaps = np.diff(times)
    typical = float(np.median(np.abs(leaps))) if len(leaps) else 0.0
    if not (packets["position"] >= 0).all() or typical == 0.0:
        return 0.0
    lost = sum(float(leaps[index]) - typical for index in _holes(path, packets, leaps > LEAP * typical))
    end = int((packets["position"] + packets["size"]).max())
    if num_announced > len(times) and holds_zero_run(path, end, end + TAIL_BYTES):
        lost += (num_announced - len(times)) * typical
    return lost


def mp4_boxes(path: Path) -> tuple[list[bytes], int, bool]:
    """(names of the top-level boxes, byte after the last, as it states, False where something else follows)."""
    names, end, num_bytes = [], 0, path.stat().st_size
    with path.open("rb") as handle:
        while end + 8 <= num_bytes:
            handle.seek(end)
            head = handle.read(16)
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            if size < 8 or not head[4:8].isascii() or not head[4:8].strip(b"\0"):
                return names, end, False
            names.append(head[4:8])
            end += size
    return names, end, True


def missing_mp4_index(path: Path) -> str | None:
    """The message for an MP4/MOV file that was cut off before the end of its index (`moov`); None for other files."""
    names, end, _ = mp4_boxes(path)
    num_bytes = path.stat().st_size
    if end <= num_bytes or names[0] not in (b"ftyp", b"wide", b"mdat", b"moov", b"free", b"skip"):
        return None
    where = "inside" if b"moov" in names else "before"
    return f"the file is cut off {where} its index, at {num_bytes} of at least {end} bytes; nothing can be read"


def stated_bytes(path: Path, container: str) -> tuple[int | None, int | None]:
    """(length that the container states, byte at which a hole ends the boxes of an MP4/MOV file); None: neither."""
    with path.open("rb") as handle:
        if "mov" in container:
            _, end, is_sound = mp4_boxes(path)
            handle.seek(end)
            has_hole = not is_sound and handle.read(8)[:4] == bytes(4)
            has_hole = has_hole and any(block.strip(b"\0") for block in iter(lambda: handle.read(1 << 20), b""))
            return (end if is_sound else None), (end if has_hole else None)
        if container == "avi":
            head = handle.read(12)
            is_stated = head[:4] == b"RIFF" and head[4:8] != bytes(4)
            return (8 + int.from_bytes(head[4:8], "little") if is_stated else None), None
        position = 0
        for _ in range(4 if "matroska" in container else 0):  # the EBML header, perhaps a void, then the segment
            handle.seek(position)
            head = handle.read(12)
            if len(head) < 12 or head[4] == 0:
                break
            length = 9 - head[4].bit_length()
            unknown = (1 << 7 * length) - 1
            size = int.from_bytes(head[4 : 4 + length], "big") & unknown
            if head[:4] == b"\x18\x53\x80\x67":  # the segment
                return (None if size == unknown else position + 4 + length + size), None
            position += 4 + length + size
    return None, None


def holds_zero_run(path: Path, start: int, stop: int) -> bool:
    """Do the bytes start … stop of the file hold a block of zeros?"""
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(ZERO_HOLE, start, stop) >= 0
