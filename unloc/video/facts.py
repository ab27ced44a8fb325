"""Facts of a video stream, measured from its packets: headers lie about durations, counts and frame rates.

Time zero is the container's start, the clock of the ffmpeg command line: seconds = pts - container start time. A
stream that begins later keeps its offset.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
from av.codec.codec import Properties
from av.stream import Disposition

from unloc.errors import VideoError
from unloc.video.mpeg4 import VopCounter
from unloc.video.truncation import ZERO_HOLE, first_bad_box, holds_zero_run, mp4_without_index, stated_bytes

# ffmpeg's own complaints say nothing that the errors and the ledger do not; on stderr they drown the progress bar.
av.logging.set_level(None)

FEW = 0.5  # share of packets with a time stamp up to which frames are counted
FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,flv,live_flv,kux,asf,ogg,nut,mxf,rm,ivf,dv,gxf,wtv,nuv,nsv,pva,dhav,swf,smk,bink,flic,"
    "roq,gif,apng,webp,yuv4mpegpipe,mjpeg,mpjpeg,m4v,mpegvideo,h263,h264,hevc,vvc,obu,av1,vc1,vc1test,cavsvideo,dirac"
)
# A playlist, a session description or a name like %d.png would make the library open other files, even over a network.
ONE_FILE = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
LEAP = 4.0  # typical distances of frames; B-frames in the file's order leap less, as a rule, and hold no hole
TAIL_BYTES = 1 << 20  # looked at behind the last packet that was found
UNTIMED_CONTAINERS = ("avi", "asf")  # they count packets in decoding order, or say it of H.264 with B-frames
ZERO_RUN = 48  # bytes; longer than any run of zeros at a packet's border seen in sound files


Progress = Callable[[], None]
"""Called now and then while a file is read, so that a long reading is told from one that hangs."""


def no_report() -> None:
    """A Progress that nobody follows."""


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
    sample_aspect_ratio: Fraction
    """Width over height of a stored pixel. Frames keep the stored pixels, as open_clip's transform and all published
    features take them; this says which videos a player would stretch."""
    packet_stamps: np.ndarray
    """(num_packets,) time stamps in the file's order; what they mean say `has_pts` and `stamps_in_output_order`."""
    packet_bytes: np.ndarray
    """(num_packets,) their sizes."""
    key_indices: np.ndarray
    """Rising positions of the key frames among all packets."""
    packet_times: np.ndarray
    """Rising presentation times in seconds of all packets that are shown (none discarded)."""
    clock_start_seconds: float
    """What was subtracted from the file's own time stamps: the container's start."""
    last_duration_seconds: float
    """How long the last frame is shown."""
    num_packets: int
    """All packets of the stream."""
    num_discarded: int
    """Packets that an edit list hides."""
    num_repeated: int
    """Packets whose time stamp an earlier one has."""
    num_damaged: int
    """Packets that are cut short or begin or end in zeros: a hole in the file."""
    num_temporal_layers: int
    """Of an HEVC stream in MP4 or Matroska; 0 where not known."""
    hole_seconds: float
    """Time without packets where the file holds a hole of zeros."""
    bad_box: int | None
    """Byte at which an MP4/MOV file stops being boxes; packets after it cannot be found in a fragmented file."""
    stated_bytes: int | None
    """How long the container's own structure says the file is; None where it does not."""
    num_bytes: int
    """How long the file is."""
    num_frames_from_header: int
    """0 where the header does not say."""
    rate_from_header: float
    """Average frame rate, 0 where the header does not say."""
    interlaced: bool
    """True where the stream's field order is not progressive."""
    has_pts: bool
    """False where some packets carry no presentation times."""
    stamps_in_output_order: bool
    """True where a packet's stamp is not the time of its own frame: AVI and ASF count packets, MPEG-4 packs B-frames.
    The stamps, sorted, are then the times of the frames in the order in which a decoder gives them."""

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
        return av.open(f"file:{path}", metadata_errors="replace", options=ONE_FILE)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        if _is_text(path):
            raise VideoError(f"{path}: is a text (a list of files?), not a video", reason="unreadable") from None
        missing = mp4_without_index(path)
        if missing:
            raise VideoError(f"{path}: {missing}", reason="truncated") from None
        raise VideoError(f"{path}: cannot be opened as a video ({_words(error)})", reason="unreadable") from None


def _is_text(path: Path) -> bool:
    with path.open("rb") as handle:
        head = handle.read(256)
    return all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)


def best_stream(container: av.container.InputContainer, path: Path) -> av.video.stream.VideoStream:
    """The best video stream (not simply the first). Raises VideoError where there is none."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise VideoError(f"{path}: has no video stream that can be decoded", reason="no_video_stream")
    if stream.disposition & Disposition.attached_pic:
        raise VideoError(f"{path}: has no video stream, only a picture beside the sound", reason="no_video_stream")
    return stream


def start_seconds(container: av.container.InputContainer) -> float:
    """The container's start on the clock of its time stamps."""
    return (container.start_time or 0) / av.time_base


def scan(path: Path, on_progress: Progress = no_report) -> VideoFacts:
    """Read all packets once, decode none. Raises VideoError with a reason where there is nothing to decode."""
    with open_container(path) as container:
        stream = best_stream(container, path)
        table = _PacketTable.read(container, stream, on_progress)
        if container.format.name == "avi":
            table = table.until_hole(path)
        if not table.is_shown.any():
            raise _nothing_shown(path, container.format.name, len(table.stamps) - table.num_discarded)
        times = table.stamps * float(stream.time_base) - start_seconds(container)
        order = np.flatnonzero(table.is_shown)[np.argsort(times[table.is_shown], kind="stable")]
        stated, rate = float(table.durations[order[-1]]) * float(stream.time_base), float(stream.average_rate or 0)
        context = stream.codec_context
        contradicts_itself = bool(table.reorders and context.has_b_frames and (np.diff(table.stamps) > 0).all())
        return VideoFacts(
            path=path,
            container=container.format.name,
            codec=context.name,
            pixel_format=context.pix_fmt or "",
            width=context.width,
            height=context.height,
            sample_aspect_ratio=Fraction(stream.sample_aspect_ratio or 1),
            packet_stamps=table.stamps,
            packet_bytes=table.sizes,
            key_indices=np.flatnonzero(table.is_key),
            packet_times=times[order],
            clock_start_seconds=start_seconds(container),
            last_duration_seconds=_last_duration(times[order], stated, rate),
            num_packets=len(times),
            num_discarded=table.num_discarded,
            num_repeated=len(times) - len(np.unique(table.stamps)),
            num_damaged=table.num_damaged,
            num_temporal_layers=_num_temporal_layers(context),
            hole_seconds=_hole_seconds(path, table, times, stream.frames),
            bad_box=first_bad_box(path) if "mov" in container.format.name else None,
            stated_bytes=stated_bytes(path, container.format.name),
            num_bytes=path.stat().st_size,
            num_frames_from_header=stream.frames,
            rate_from_header=rate,
            interlaced=_is_interlaced(stream),
            has_pts=table.has_pts,
            stamps_in_output_order=table.counts_frames
            or (table.reorders and container.format.name in UNTIMED_CONTAINERS)
            or contradicts_itself
            or table.num_packed > 0,
        )


def _nothing_shown(path: Path, format_name: str, num_without_time: int) -> VideoError:
    missing = mp4_without_index(path) if "mov" in format_name else None
    if missing:
        return VideoError(f"{path}: {missing}", reason="truncated")
    if num_without_time:
        words = f"its {num_without_time} packets carry no time stamps, as in a raw stream; put it into a container"
        return VideoError(f"{path}: {words} (ffmpeg -i IN -c copy OUT.mp4)", reason="unreadable")
    return VideoError(f"{path}: the video stream holds no packet that is shown", reason="no_frames")


@dataclass(frozen=True)
class _PacketTable:
    """What the packets say, in the file's order."""

    stamps: np.ndarray
    durations: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    is_key: np.ndarray
    is_shown: np.ndarray
    num_discarded: int
    num_damaged: int
    num_packed: int
    reorders: bool
    has_pts: bool
    counts_frames: bool
    COLUMNS: ClassVar = ("stamps", "durations", "sizes", "places", "is_key", "is_shown")

    @classmethod
    def read(
        cls, container: av.container.InputContainer, stream: av.video.stream.VideoStream, on_progress: Progress
    ) -> "_PacketTable":
        """Demux the stream once."""
        rows, num_discarded, num_damaged = [], 0, 0
        slots = _Mpeg4Slots(stream.codec_context) if stream.codec_context.name == "mpeg4" else None
        for packet in packets_of(container, stream):
            on_progress()
            num_discarded += packet.is_discard
            num_damaged += is_damaged(packet)
            shown = not packet.is_discard and (slots is None or slots.shows(packet))
            stamps = (packet.pts or 0, packet.dts or 0, packet.pts is not None, packet.dts is not None)
            rows.append(
                (*stamps, packet.duration or 0, packet.size, _place(packet), packet.is_keyframe, shown),
            )
        table = np.asarray(rows, dtype=np.int64).reshape(-1, 9).T
        (pts, dts), (has_pts, has_dts), (durations, sizes, places) = table[:2], table[2:4] > 0, table[4:7]
        is_key, is_shown = table[7:] > 0
        is_timed, counts_frames = has_pts, False
        if not has_pts.all() and has_dts.all():
            pts, is_timed, counts_frames = dts, has_dts, True
        elif stream.codec_context.name != "h264" or not has_pts[:1].all() or (~has_pts[1:] & ~has_pts[:-1]).any():
            pts, is_timed = _filled(pts, np.where(has_dts, dts, pts), has_pts, stream)
            counts_frames = bool(has_pts.mean() <= FEW)
        # What is left without a stamp, alone behind a packet that has one, is the second field of an H.264 frame.
        return cls(
            stamps=pts,
            durations=durations,
            sizes=sizes,
            places=places,
            is_key=is_key,
            is_shown=is_shown & is_timed,
            num_discarded=num_discarded,
            num_damaged=num_damaged,
            num_packed=0 if slots is None else slots.num_packed,
            reorders=bool(int(stream.codec_context.codec.properties) & Properties.REORDER.value)
            and (slots is None or slots.vops.has_b_frames),
            has_pts=bool(has_pts.all()),
            counts_frames=counts_frames,
        )

    def until_hole(self, path: Path) -> "_PacketTable":
        """Of AVI, which has no times but the count of its packets: those before a hole, for after it they are wrong."""
        ends = self.places + self.sizes
        for index in np.flatnonzero(self.places[1:] - ends[:-1] > len(ZERO_HOLE)).tolist():
            if holds_zero_run(path, int(ends[index]), int(self.places[index + 1])):
                rows = {name: getattr(self, name)[: index + 1] for name in self.COLUMNS}
                return replace(self, **rows)
        return self


class _Mpeg4Slots:
    """Which packets of an MPEG-4 stream stand for a moment in which a new frame is shown."""

    def __init__(self, context: av.video.codeccontext.VideoCodecContext) -> None:
        self.vops = VopCounter(bytes(context.extradata or b""))
        self.stamps: set[int] = set()
        self.ahead, self.num_packed = 0, 0

    def shows(self, packet: av.Packet) -> bool:
        """Does it bring a frame, or stand where one that came packed is shown?"""
        num_frames, stamp = self.vops.count(bytes(packet)), packet.pts if packet.pts is not None else packet.dts
        is_new = stamp is None or stamp not in self.stamps
        self.stamps.add(stamp)
        if num_frames == 0 and self.ahead == 0:
            return False  # the frame before stays on screen
        self.ahead += num_frames - is_new
        self.num_packed += num_frames > is_new
        return is_new


def _filled(
    pts: np.ndarray, dts: np.ndarray, has_pts: np.ndarray, stream: av.video.stream.VideoStream
) -> tuple[np.ndarray, np.ndarray]:
    """(stamps, which are known) where some are missing, or nearly all, as an MPEG program stream states H.264.

    Between those that are known; where they are few, at the stated rate as long as those agree with it.
    """
    if has_pts.all() or not has_pts.any():
        return pts, has_pts
    places, known = np.arange(len(pts)), np.flatnonzero(has_pts)
    times = np.interp(places, known, dts[known])
    if has_pts.mean() > FEW:
        return np.where(has_pts, pts, np.round(times)).astype(np.int64), np.ones_like(has_pts)
    if stream.average_rate:
        step = 1 / (float(stream.average_rate) * float(stream.time_base))
        steady = dts[known[0]] + (places - known[0]) * step
        times = steady if np.abs(steady - times)[: known[-1] + 1].max() < LEAP * step else times
    return np.round(times - times[0] + pts[known[0]]).astype(np.int64), np.ones_like(has_pts)


def _place(packet: av.Packet) -> int:
    return -1 if packet.pos is None else packet.pos


def _hole_seconds(path: Path, table: _PacketTable, times: np.ndarray, num_announced: int) -> float:
    """Seconds lost to zeros, which demuxers pass over, or end at, without a word.

    The time stamps leap there, or frames that the header announces do not come, and the bytes are zeros.
    """
    leaps = np.diff(times)
    typical = float(np.median(np.abs(leaps))) if len(leaps) else 0.0
    if not (table.places >= 0).all() or typical == 0.0:
        return 0.0
    ends, lost = table.places + table.sizes, 0.0
    for index in np.flatnonzero(leaps > LEAP * typical).tolist():
        if holds_zero_run(path, int(ends[index]), int(table.places[index + 1])):
            lost += float(leaps[index]) - typical
    if num_announced > len(times) and holds_zero_run(path, int(ends.max()), int(ends.max()) + TAIL_BYTES):
        lost += (num_announced - len(times)) * typical
    return lost


def is_damaged(packet: av.Packet) -> bool:
    """Is it cut short, or does it begin or end in a run of zeros that no codec writes?"""
    if packet.is_corrupt:
        return True
    data = memoryview(packet)
    return len(data) >= 2 * ZERO_RUN and bytes(ZERO_RUN) in (bytes(data[:ZERO_RUN]), bytes(data[-ZERO_RUN:]))


def _num_temporal_layers(context: av.video.codeccontext.VideoCodecContext) -> int:
    """Byte 21 of the HEVC configuration record (ISO/IEC 14496-15 §8.3.3.1)."""
    record = bytes(context.extradata or b"")
    return (record[21] >> 3) & 7 if context.name == "hevc" and len(record) > 22 and record[0] == 1 else 0


def packets_of(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Iterator[av.Packet]:
    """The stream's packets in the file's order, up to where the file ends or breaks."""
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
