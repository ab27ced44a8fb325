"""A bucket whose writes fail now and then: `flaky://`."""

from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem


class FlakyFileSystem(MemoryFileSystem):
    """One write in ten fails: before it, after it, or having written half, in silence too. All do while it is down."""

    protocol = "flaky"
    store: ClassVar[dict] = {}
    rng = np.random.default_rng(0)
    is_down = False
    num_failed = 0

    def _write(self, data, write):
        if not self.is_down and self.rng.random() > 0.1:
            return write(data)
        type(self).num_failed += 1
        kind = 0 if self.is_down else self.rng.integers(4)
        if kind == 1:
            write(data)
        elif kind >= 2:
            write(data[: len(data) // 2])
        if kind < 3:
            raise OSError("503 Slow Down")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._write(value, lambda data: super(FlakyFileSystem, self).pipe_file(path, data, mode=mode, **kwargs))

    def put_file(self, lpath, rpath, **kwargs):
        self._write(Path(lpath).read_bytes(), lambda data: super(FlakyFileSystem, self).pipe_file(rpath, data))


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
