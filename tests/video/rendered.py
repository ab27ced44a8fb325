"""Videos with a counter in every frame, written through PyAV: which frame came back can be read off its pixels."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, CELL = 10, 24  # two rows of five cells of 24 pixels each
SIZE = (128, 80)


@dataclass(frozen=True)
class Kind:
    """How one rendered file is coded."""

    suffix: str
    codec: str = "libx264"
    options: dict = field(default_factory=dict)
    container_options: dict = field(default_factory=dict)
    pixel_format: str = "yuv420p"
    first_stamp: int = 0
    times: np.ndarray | None = None  # milliseconds; None: 25 fps
    num_frames: int = 75
    is_noisy: bool = False  # some kilobytes a frame

    @property
    def stamps(self) -> np.ndarray:
        times = np.arange(self.num_frames) * 40 if self.times is None else np.asarray(self.times)
        return times + self.first_stamp


def uneven_times(num_frames: int = 75) -> np.ndarray:
    """Milliseconds between 7 and 700 apart."""
    rng = np.random.default_rng(5)
    return np.concatenate([[0], np.cumsum(rng.choice([7, 33, 40, 120, 700], num_frames - 1))])


FIXED_RATE_CODECS = ("mpeg1video", "mpeg2video")
X264 = {"preset": "veryfast", "crf": "18"}
KINDS = {
    "h264_b_frames": Kind(".mp4", options=X264 | {"g": "12", "bf": "3"}),
    "h264_open_gop": Kind(".mp4", options=X264 | {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "h264_open_gop_mkv": Kind(".mkv", options=X264 | {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "h264_intra_refresh": Kind(".mkv", options=X264 | {"g": "12", "x264-params": "intra-refresh=1:scenecut=0"}),
    "h264_vfr": Kind(".mp4", options=X264 | {"g": "10", "bf": "2"}, times=uneven_times()),
    "h264_late_start": Kind(".mp4", options=X264 | {"g": "10", "bf": "2"}, first_stamp=10_000),
    "h264_late_start_mkv": Kind(".mkv", options=X264 | {"g": "10", "bf": "2"}, first_stamp=700),
    "h264_negative_start": Kind(".mp4", options=X264 | {"g": "10", "bf": "2"}, first_stamp=-400),
    "h264_long_gop": Kind(".mp4", options=X264 | {"g": "250", "bf": "3", "x264-params": "b-pyramid=normal"}),
    "h264_no_index": Kind(".ts", options=X264 | {"g": "12", "bf": "2"}),
    "h264_fragmented": Kind(
        ".mp4", options=X264 | {"g": "12"}, container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "h264_interlaced": Kind(".mp4", options=X264 | {"g": "12", "bf": "2", "x264-params": "tff=1"}),
    "h264_flv": Kind(".flv", options=X264 | {"g": "12", "bf": "2"}),
    "hevc": Kind(".mp4", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none:keyint=15:bframes=3"}),
    "hevc_open_gop_10_bit": Kind(
        ".mkv",
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=none:keyint=15:bframes=3:open-gop=1"},
        pixel_format="yuv420p10le",
    ),
    "hevc_layers": Kind(
        ".mp4", "libx265", {"preset": "fast", "x265-params": "log-level=none:keyint=20:bframes=4:temporal-layers=3"}
    ),
    "mpeg4_avi": Kind(".avi", "mpeg4", {"g": "12", "q:v": "2"}),
    "mpeg4_mp4_b_frames": Kind(".mp4", "mpeg4", {"g": "12", "bf": "2"}),
    "mjpeg_avi": Kind(".avi", "mjpeg", pixel_format="yuvj420p"),
    "vp8_webm": Kind(".webm", "libvpx", {"deadline": "realtime", "g": "20", "crf": "10"}),
    "vp9_webm": Kind(".webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "20", "crf": "20"}),
    "vp9_hidden_frames": Kind(
        ".webm", "libvpx-vp9", {"deadline": "good", "cpu-used": "5", "g": "40", "auto-alt-ref": "1", "crf": "20"}
    ),
    "mpeg2_ts": Kind(".ts", "mpeg2video", {"g": "12", "bf": "2", "qmin": "2", "qmax": "4"}),
}


def counter_image(number: int) -> np.ndarray:
    """(80, 128, 3) uint8: the number's bits as black and white cells, a moving stripe below."""
    image = np.full((SIZE[1], SIZE[0], 3), 128, dtype=np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, 5)
        value = 235 if number >> bit & 1 else 20
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = value
    image[2 * CELL :, (number * 3) % SIZE[0] :][:, :9] = (200, 60, 30)
    return image


def read_counters(reader, wanted: np.ndarray) -> list[int]:
    """The counters of the frames that are shown at these times."""
    read = {place: read_counter(frame.image) for frame in reader.frames_at(wanted) for place in frame.positions}
    return [read[place] for place in range(len(wanted))]


def read_counter(image: np.ndarray) -> int:
    """The number in a frame."""
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, 5)
        cell = image[row * CELL + 4 : (row + 1) * CELL - 4, column * CELL + 4 : (column + 1) * CELL - 4]
        number |= int(cell.mean() > 128) << bit
    return number


def render(path: Path, kind: Kind, *, display_rotation: int | None = None, aspect: Fraction | None = None) -> Path:
    """Write the file of a kind; frame k carries k and the stamp kind.stamps[k] in milliseconds."""
    with av.open(str(path), "w", options=kind.container_options) as container:
        stream = container.add_stream(kind.codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, kind.pixel_format
        stream.options = kind.options
        if not kind.codec.startswith(("libx26", "libsvtav1")):
            stream.bit_rate = 3_000_000
        fixed_rate = kind.suffix in (".avi", ".mpg", ".wmv", ".ogv") or kind.codec in FIXED_RATE_CODECS
        base = Fraction(1, 25) if fixed_rate else Fraction(1, 1000)
        stream.codec_context.time_base = stream.time_base = base
        stream.codec_context.thread_count = 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if display_rotation is not None:
            stream.set_display_rotation(display_rotation)
        for number, stamp in enumerate(kind.stamps.tolist()):
            image = counter_image(number)
            if kind.is_noisy:
                image[2 * CELL :] = np.random.default_rng(number).integers(0, 255, image[2 * CELL :].shape)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=kind.pixel_format)
            frame.pts, frame.time_base = (stamp // 40 if fixed_rate else stamp), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
