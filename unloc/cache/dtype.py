"""How tokens are stored: float16, float32 or bfloat16, from the float32 that a tower gives.

Values are rounded to the nearest, ties to even: float16 keeps 11 significant bits up to 65504, bfloat16 keeps 8 of any
float32. NumPy and Zarr have no bfloat16: its bits, the upper half of the float32, are stored as uint16.
"""

import numpy as np

from unloc.errors import InputError

STORED_DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4"), "bfloat16": np.dtype("<u2")}


def to_stored(tokens: np.ndarray, dtype: str) -> np.ndarray:
    """Float tokens as they are stored. Raises InputError where one is not finite or is beyond what the dtype holds."""
    values = np.ascontiguousarray(tokens, dtype=np.float32)
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        stored = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(STORED_DTYPES[dtype])
    if not (np.isfinite(values).all() and np.isfinite(from_stored(stored, dtype)).all()):
        largest = float(np.abs(values).max())
        advice = "store them as bfloat16" if np.isfinite(largest) else "some are not finite"
        raise InputError(f"tokens up to {largest:g} do not fit {dtype}; {advice}")
    return stored


def from_stored(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored tokens as floats: themselves, or float32 where they are bfloat16 (exact)."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored
