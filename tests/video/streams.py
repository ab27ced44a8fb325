"""Streams that no available encoder writes, made from others: packed B-frames, field-coded H.264."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

VOP, USER_DATA = b"\0\0\1\xb6", b"\0\0\1\xb2"
B_VOP = 2
DELIMITER = b"\0\0\0\1\x09\xf0"  # between H.264 access units
NOT_CODED = VOP + bytes((0b01010000, 0b01001111))  # P, no second passed, marker, time (5 bits), marker, vop_coded = 0


def pack_b_frames(source: Path, target: Path) -> None:
    """MPEG-4 as DivX packs it for AVI: a B-frame in the packet of the reference before it, an empty packet later."""
    remux(source, target, packed, USER_DATA + b"DivX503b1393p")


def remux(source: Path, target: Path, change: Callable[[list[bytes]], list[bytes]], user_data: bytes = b"") -> None:
    """The packets of an AVI file, changed, one for each moment."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        packets = [packet for packet in reader.demux(stream) if packet.size]
        keys = {bytes(packet) for packet in packets if packet.is_keyframe}
        copy = writer.add_stream_from_template(stream)
        copy.codec_context.extradata = (copy.codec_context.extradata or b"") + user_data
        for number, chunk in enumerate(change([bytes(packet) for packet in packets])):
            packet = av.Packet(chunk)
            packet.stream, packet.time_base = copy, stream.time_base
            packet.pts = packet.dts = number
            packet.is_keyframe = chunk in keys
            writer.mux(packet)


def write_field_coded(path: Path, coded: list[tuple[int, bytes, bytes]], packets_per_frame: int) -> None:
    """Frames of `field_coded_frames` at 25 a second; two packets have time stamps half a frame apart."""
    raw = path.with_suffix(".h264")
    raw.write_bytes(b"".join(first + second for _, first, second in coded))
    with av.open(str(raw)) as reader, av.open(str(path), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for place, (number, *fields) in enumerate(coded):
            delimited = [DELIMITER + field for field in fields]
            separator = b"" if path.suffix in (".mp4", ".mkv") else DELIMITER
            together = [delimited[0] + separator + fields[1]]
            for half, data in enumerate(together if packets_per_frame == 1 else delimited):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, 50)
                packet.dts, packet.pts = 2 * place + half, 2 * (number + 2) + half
                packet.is_keyframe = number + half == 0
                writer.mux(packet)


def packed(chunks: list[bytes]) -> list[bytes]:
    """One packet for each frame, in the order shown: [I] [P B] [B] [empty]."""
    result: list[bytes] = []
    place = 0
    while place < len(chunks):
        run = [chunks[place]]
        while place + len(run) < len(chunks) and vop_type(chunks[place + len(run)]) == B_VOP:
            run.append(chunks[place + len(run)])
        place += len(run)
        if len(run) > 1:
            result += [run[0] + run[1], *run[2:], NOT_CODED]
        else:
            result += run
    return result


def vop_type(chunk: bytes) -> int:
    """0: I, 1: P, 2: B."""
    return chunk[chunk.index(VOP) + 4] >> 6


def write_two_sizes(path: Path, codec: str, pixel_format: str) -> Path:
    """Ten frames of 128x80, then ten of 256x160, in one stream at 25 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 80, pixel_format
        for half in (0, 1):
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = 128 << half, 80 << half, pixel_format
            encoder.time_base, encoder.bit_rate, encoder.thread_count = Fraction(1, 25), 1_000_000, 1
            encoder.options = {"tune": "zerolatency"} if codec == "libx264" else {"lag-in-frames": "0"}
            for number in range(11):
                image = av.VideoFrame(encoder.width, encoder.height, pixel_format)
                image.pts, image.time_base = 10 * half + number, encoder.time_base
                for packet in encoder.encode(image if number < 10 else None):
                    packet.stream, packet.time_base = stream, encoder.time_base
                    container.mux(packet)
    return path


class Bits:
    """A bit string as H.264 writes it (ITU-T H.264 §7.2, §9.1)."""

    def __init__(self) -> None:
        self.text = ""

    def u(self, *values: tuple[int, int]) -> "Bits":
        """(value, width) pairs."""
        self.text += "".join(f"{value:0{width}b}" for value, width in values)
        return self

    def ue(self, *values: int) -> "Bits":
        """Exponential-Golomb codes."""
        for value in values:
            self.text += "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"
        return self

    def align(self) -> "Bits":
        """Zeros up to the next byte."""
        self.text += "0" * (-len(self.text) % 8)
        return self

    def raw(self, data: bytes) -> "Bits":
        """Whole bytes."""
        self.text += "".join(f"{byte:08b}" for byte in data)
        return self

    def nal(self, ref_idc: int, unit_type: int) -> bytes:
        """As a NAL unit of a byte stream, with its emulation prevention."""
        bits = self.text + "1"
        bits += "0" * (-len(bits) % 8)
        payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
        for number in (0, 1, 2, 3):
            payload = payload.replace(bytes((0, 0, number)), bytes((0, 0, 3, number)))
        return bytes((0, 0, 0, 1, ref_idc << 5 | unit_type)) + payload


def field_coded_frames(images: list[np.ndarray], *, num_reordered: int = 2) -> list[tuple[int, bytes, bytes]]:
    """H.264 whose every frame is two field pictures, in decoding order: (number, first field, second field).

    images are (H, W, 3) uint8 with H a multiple of 32. Every macroblock is stored as samples (I_PCM), so no encoder is
    needed; of every `num_reordered` + 1 frames the last is decoded first, as a reference is before its B-frames.
    """
    height, width = images[0].shape[:2]
    parameters = sequence_parameters(width, height, num_reordered) + picture_parameters()
    coded, frame_num = [], 0
    for start in range(0, len(images), num_reordered + 1):
        group = list(range(start, min(start + num_reordered + 1, len(images))))
        for number in (group[-1:] + group[:-1]) if start else group:
            is_reference = number == group[-1] if start else True
            planes = av.VideoFrame.from_ndarray(images[number], format="rgb24").to_ndarray(format="yuv420p")
            fields = [
                field_slice(planes, width, height, parity, number, frame_num, is_reference, is_idr=number + parity == 0)
                for parity in (0, 1)
            ]
            coded.append((number, (parameters if is_reference else b"") + fields[0], fields[1]))
            frame_num = (frame_num + is_reference) % 256
    return coded


def sequence_parameters(width: int, height: int, num_reordered: int) -> bytes:
    """Main profile, 25 frames a second, field pictures allowed."""
    bits = Bits().u((77, 8), (0, 8), (30, 8)).ue(0, 4, 0, 4, 4).u((0, 1)).ue(width // 16 - 1, height // 32 - 1)
    bits.u((0, 1), (0, 1), (1, 1), (0, 1), (1, 1))  # frame_mbs_only, adaptive, direct_8x8, cropping, VUI
    bits.u((0, 4), (1, 1), (1, 32), (50, 32), (1, 1), (0, 3), (1, 1), (1, 1))  # timing; bitstream restriction
    return bits.ue(0, 0, 0, 0, num_reordered, 4).nal(3, 7)


def picture_parameters() -> bytes:
    """CAVLC, deblocking under control of the slices."""
    return Bits().ue(0, 0).u((0, 2)).ue(0, 0, 0).u((0, 3)).ue(0, 0, 0).u((1, 1), (0, 2)).nal(3, 8)


def field_slice(
    planes: np.ndarray,
    width: int,
    height: int,
    parity: int,
    number: int,
    frame_num: int,
    is_reference: bool,
    *,
    is_idr: bool,
) -> bytes:
    """One field of a frame as one I slice."""
    luma = planes[:height][parity::2]
    chroma = planes[height:].reshape(2, height // 2, width // 2)[:, parity::2]
    bits = Bits().ue(0, 7, 0).u((frame_num, 8), (1, 1), (parity, 1))
    if is_idr:
        bits.ue(0)
    bits.u(((2 * number + parity) % 256, 8))
    if is_reference:
        bits.u((0, 2 if is_idr else 1))
    bits.ue(0, 1)  # no change of the quantiser, no deblocking
    for top in range(0, height // 2, 16):
        for left in range(0, width, 16):
            bits.ue(25).align().raw(luma[top : top + 16, left : left + 16].tobytes())
            bits.raw(chroma[:, top // 2 : top // 2 + 8, left // 2 : left // 2 + 8].tobytes())
    return bits.nal(int(is_reference), 5 if is_idr else 1)
