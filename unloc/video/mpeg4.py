"""MPEG-4 Part 2 packets with two frames or with none (ISO/IEC 14496-2 §6.2.3, §6.2.5).

In AVI, DivX and XviD put a B-frame into the packet before it (packed B-frames) and an empty packet (`vop_coded` = 0)
where it would be. An empty packet also lets the previous frame stay on screen.
"""

import av

VOP, B_VOP = b"\0\0\1\xb6", 2
LAYER = b"\0\0\1"
LAYER_CODES = range(0x20, 0x30)
MAX_EMPTY_BYTES = 64  # an empty VOP takes seven; larger packets are not parsed


class Mpeg4Packets:
    """Follows the packets of one stream and says which of them show a new frame."""

    def __init__(self, headers: bytes) -> None:
        """headers: the codec's extradata; the packets may carry the same headers instead."""
        self.time_bits = _time_bits(headers)
        self.has_b_frames = False
        self.num_packed = 0  # packets with more frames than they show
        self._stamps: set[int] = set()
        self._ahead = 0

    def shows_frame(self, packet: av.Packet) -> bool:
        """Does the packet bring a new frame, or is a frame that came packed in an earlier one shown at its time?"""
        data, stamp = bytes(packet), packet.pts if packet.pts is not None else packet.dts
        vops = data.split(VOP)[1:]
        num_frames = len(vops)
        self.has_b_frames |= any(vop and vop[0] >> 6 == B_VOP for vop in vops)
        if self.time_bits is None:
            self.time_bits = _time_bits(data[:256])
        if num_frames == 1 and len(data) <= MAX_EMPTY_BYTES and self.time_bits is not None:
            bits = _Bits(vops[0])
            bits.take(2)  # coding type
            while bits.take(1):
                pass  # seconds passed
            bits.take(1 + self.time_bits + 1)
            num_frames = bits.take(1)  # vop_coded
        is_new = stamp is None or stamp not in self._stamps
        self._stamps.add(stamp)
        if num_frames == 0 and self._ahead == 0:
            return False  # the previous frame stays on screen
        self._ahead += num_frames - is_new
        self.num_packed += num_frames > is_new
        return is_new


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, width: int) -> int:
        self.left -= width
        return self.value >> self.left & ((1 << width) - 1) if self.left >= 0 else 0


def _time_bits(headers: bytes) -> int | None:
    """Bits of a VOP's time, from the video object layer; None where there is no layer."""
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
