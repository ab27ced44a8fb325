"""MPEG-4 Part 2 as AVI files hold it: packets with two frames (packed B-frames) and packets with none (N-VOPs).

A file for Video for Windows has one packet for each moment. DivX and XviD put a B-frame into the packet of the
reference frame before it and an empty one (`vop_coded` = 0) where the next frame would be; encoders also write such
an empty packet where the frame before stays on screen (ISO/IEC 14496-2 §6.2.3, §6.2.5).
"""

VOP, B_VOP = b"\0\0\1\xb6", 2
LAYER = b"\0\0\1"
LAYER_CODES = range(0x20, 0x30)
MAX_EMPTY_BYTES = 64  # an empty VOP takes seven; larger packets are not parsed


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, width: int) -> int:
        self.left -= width
        return self.value >> self.left & ((1 << width) - 1) if self.left >= 0 else 0


class VopCounter:
    """Counts the frames that the packets of one stream bring."""

    def __init__(self, headers: bytes) -> None:
        """headers: what the container keeps beside the packets; the packets may bring them instead."""
        self.time_bits = _time_bits(headers)
        self.has_b_frames = False
        """Has a packet held one?"""

    def count(self, packet: bytes) -> int:
        """Coded frames in a packet: 0 for an empty one, 2 where a B-frame is packed."""
        vops = packet.split(VOP)[1:]
        self.has_b_frames |= any(vop and vop[0] >> 6 == B_VOP for vop in vops)
        if self.time_bits is None:
            self.time_bits = _time_bits(packet[:256])
        if len(vops) != 1 or len(packet) > MAX_EMPTY_BYTES or self.time_bits is None:
            return len(vops)
        bits = _Bits(vops[0])
        bits.take(2)  # coding type
        while bits.take(1):
            pass  # seconds passed
        bits.take(1 + self.time_bits + 1)
        return bits.take(1)


def _time_bits(headers: bytes) -> int | None:
    """How many bits a VOP's time takes, as the video object layer says; None where there is no layer."""
    place = headers.find(LAYER)
    while 0 <= place < len(headers) - 4 and headers[place + 3] not in LAYER_CODES:
        place = headers.find(LAYER, place + 3)
    if not 0 <= place < len(headers) - 4:
        return None
    bits = _Bits(headers[place + 4 : place + 64])
    bits.take(9)  # random access, type
    if bits.take(1):
        bits.take(7)  # version, priority
    if bits.take(4) == 15:
        bits.take(16)  # pixel aspect ratio
    if bits.take(1):
        bits.take(3)  # chroma format, low delay
        if bits.take(1):
            bits.take(79)  # buffer model
    bits.take(3)  # shape, marker
    return max(1, (bits.take(16) - 1).bit_length())
