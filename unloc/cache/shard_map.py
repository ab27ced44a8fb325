"""One uncompressed, single-shard Zarr array as a map of its shard file.

Such a file is the plain little-endian chunks one after another, then an index (per chunk: offset and length as uint64)
and the index's crc32c. Where the chunks are whole rows and in order, the file begins with the array itself.
"""

import json
import mmap
from pathlib import Path

import google_crc32c
import numpy as np

from unloc.errors import CacheError


class ShardMap:
    """Read-only rows of an array, straight from the page cache.

    Raises CacheError where the file is shorter than its metadata says or its index is damaged.
    """

    def __init__(self, path: Path) -> None:
        shape, dtype, inner = _layout(path)
        self.file = path / "c" / Path(*["0"] * len(shape))
        chunk_bytes, num_chunks = int(np.prod(inner)) * dtype.itemsize, shape[0] // inner[0]
        self._check_index(num_chunks, chunk_bytes)
        with self.file.open("rb") as handle:
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.prod(shape))
        self._array = np.frombuffer(self._map, dtype=dtype, count=count).reshape(shape)
        self._row_bytes = count // shape[0] * dtype.itemsize

    def rows(self, first: int, count: int) -> np.ndarray:
        """(count, …) in the stored dtype, a view into the map; the kernel is told to fetch all of it at once.

        Without that a cold read waits for one small piece after another: ten times as long (benchmarks/cache_io.py).
        """
        start = first * self._row_bytes
        aligned = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, aligned, start + count * self._row_bytes - aligned)
        return self._array[first : first + count]

    def _check_index(self, num_chunks: int, chunk_bytes: int) -> None:
        expected = num_chunks * (chunk_bytes + 16) + 4
        size = self.file.stat().st_size if self.file.is_file() else 0
        if size != expected:
            raise CacheError(
                f"{self.file}: {size} bytes, expected {expected}; `unloc cache verify` tells what is broken"
            )
        with self.file.open("rb") as handle:
            handle.seek(num_chunks * chunk_bytes)
            raw = handle.read()
        if int.from_bytes(raw[-4:], "little") != google_crc32c.value(raw[:-4]):
            raise CacheError(f"{self.file}: its index is damaged; `unloc cache verify` tells what is broken")
        offsets = np.frombuffer(raw[:-4], dtype="<u8").reshape(num_chunks, 2)[:, 0]
        if not np.array_equal(offsets, np.arange(num_chunks, dtype=np.uint64) * np.uint64(chunk_bytes)):
            raise CacheError(f"{self.file}: chunks are not in order; this cache was not written by unloc")


def _layout(path: Path) -> tuple[tuple[int, ...], np.dtype, tuple[int, ...]]:
    """Shape, dtype and chunk shape that an array's metadata states."""
    file = path / "zarr.json"
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        inner = tuple(stated["codecs"][0]["configuration"]["chunk_shape"])
        shape, dtype = tuple(stated["shape"]), np.dtype(stated["data_type"]).newbyteorder("<")
        whole_rows = shape[1:] == inner[1:] and shape[0] % inner[0] == 0 and shape[0] > 0
    except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
        whole_rows = False
    if not whole_rows:
        raise CacheError(f"{file}: damaged; `unloc cache verify` tells what is broken")
    return shape, dtype, inner
