"""How a frame is to be turned for display, by the matrix that its container states (ISO/IEC 14496-12 §6.2.2)."""

import math

import av
import numpy as np

TOLERANCE_DEGREES = 1.01  # fixed-point matrices are not exact


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of the stated matrix, which takes (x, y) to (a x + c y, b x + d y); None where none is stated."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            values = np.frombuffer(bytes(data), dtype=np.int32)
            return tuple(int(values[place]) for place in (0, 1, 3, 4))
    return None


def quarter_turns(frame: av.VideoFrame) -> int:
    """By how many quarter turns, against the clock, the frame must be turned to stand upright: 0 to 3.

    0 for a matrix that is no rotation by 90, 180 or 270 degrees to within one: all zeros, skewed, or a mirror. The
    mirror in a matrix that also turns is left alone.
    """
    matrix = display_matrix(frame)
    if matrix is None:
        return 0
    a, b, c, d = matrix
    wide, high = math.hypot(a, c), math.hypot(b, d)
    if wide == 0 or high == 0:
        return 0
    degrees = -math.degrees(math.atan2(b / high, a / wide))
    turns = round(degrees / 90)
    is_mirror = turns % 4 == 2 and a * d - b * c < 0
    return 0 if is_mirror or abs(degrees - 90 * turns) > TOLERANCE_DEGREES else turns % 4


def is_exact_turn(frame: av.VideoFrame) -> bool:
    """Is the matrix, if any, a rotation by quarter turns and nothing else?"""
    matrix = display_matrix(frame)
    if matrix is None:
        return True
    a, b, c, d = matrix
    return (a == d != 0 and b == c == 0) or (b == -c != 0 and a == d == 0)
