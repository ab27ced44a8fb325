"""One uncompressed, single-shard Zarr array as a memory map of its shard file.

Such a file holds the plain little-endian chunks one after another, then an index (offset and length of each chunk as
uint64) and the index's crc32c. As the chunks are whole rows and in order, the file begins with the array itself.
"""

import json
import mmap
from pathlib import Path

import google_crc32c
import numpy as np

from unloc.cache.metadata import damaged
from unloc.errors import CacheError


class ShardMap:
    """Read-only rows of an array. Raises CacheError where metadata, size or index of the file are damaged."""

    def __init__(self, path: Path) -> None:
        try:
            stored = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
            inner = tuple(stored["codecs"][0]["configuration"]["chunk_shape"])
            shape, dtype = tuple(stored["shape"]), np.dtype(stored["data_type"]).newbyteorder("<")
            whole_rows = shape[1:] == inner[1:] and shape[0] % inner[0] == 0 and shape[0] > 0
        except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
            whole_rows = False
        if not whole_rows:
            raise CacheError(damaged(path / "zarr.json"))
        file = path / "c" / Path(*["0"] * len(shape))
        chunk_bytes, num_chunks = int(np.prod(inner)) * dtype.itemsize, shape[0] // inner[0]
        size, expected = file.stat().st_size if file.is_file() else 0, num_chunks * (chunk_bytes + 16) + 4
        if size != expected:
            raise CacheError(f"{damaged(file)} ({size} bytes, expected {expected})")
        with file.open("rb") as handle:
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        index = self._map[num_chunks * chunk_bytes : -4]
        offsets = np.frombuffer(index, dtype="<u8").reshape(num_chunks, 2)[:, 0]
        if int.from_bytes(self._map[-4:], "little") != google_crc32c.value(index) or (
            not np.array_equal(offsets, np.arange(num_chunks, dtype=np.uint64) * np.uint64(chunk_bytes))
        ):
            raise CacheError(f"{damaged(file)} (its index)")
        count = int(np.prod(shape))
        self._array = np.frombuffer(self._map, dtype=dtype, count=count).reshape(shape)
        self._row_bytes = count // shape[0] * dtype.itemsize

    def rows(self, first: int, count: int) -> np.ndarray:
        """(count, …) in the stored dtype, a view into the map; the kernel is told to fetch all of it at once.

        Otherwise a cold read waits for one small piece after another: ten times as long (benchmarks/cache_io.py).
        """
        start = first * self._row_bytes
        aligned = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, aligned, start + count * self._row_bytes - aligned)
        return self._array[first : first + count]
