"""What a run writes while it trains: log.txt, metrics.jsonl and TensorBoard events."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING

from unloc.files import write_file

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

logger = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl, and TensorBoard where it is installed (extra `track`).

    Rows after `step` and `validated`, which a killed run left, are removed.
    """

    def __init__(self, run: Path, step: int, validated: int) -> None:
        self.run, self.step, self.validated = run, step, validated

    def __enter__(self) -> "MetricsLog":
        path = self.run / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_file(path, "".join(line for line in lines if self._is_done(line)))
        self._file, self._board = path.open("a", encoding="utf-8"), None
        try:
            self._board = EventFile(self.run / "tensorboard", self.step)
        except ImportError:
            logger.info("tensorboard is not installed (extra `track`): metrics go to metrics.jsonl only")
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _is_done(self, line: str) -> bool:
        try:
            row = json.loads(line)
            return row["step"] <= (self.validated if row["kind"] == "val" else self.step)
        except ValueError:  # half a line
            return False

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One row of kind train or val."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write(kind, step, values)


class EventFile:
    """A TensorBoard event file written in this thread: its own writer hides a full disk in another one."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        # TensorBoard drops what it has of later steps: they are done again.
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, event: "Event") -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """The values of one step, as `kind/name`."""
        scalars = [self._summary.Value(tag=f"{kind}/{key}", simple_value=value) for key, value in values.items()]
        self._write(self._event(step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _LogFile(logging.FileHandler):
    """A log whose disk errors are raised; logging itself only prints their traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Raise the current error."""
        raise


@contextmanager
def logged() -> Iterator[Callable[[Path], None]]:
    """Keep unloc's log records until the given callback names their file; later ones go there directly."""
    buffer, root, files = MemoryHandler(1000, logging.CRITICAL + 1), logging.getLogger("unloc"), []

    def log_to(path: Path) -> None:
        files.append(_LogFile(path, encoding="utf-8"))
        files[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        buffer.setTarget(files[0])
        buffer.flush()
        root.removeHandler(buffer)
        root.addHandler(files[0])

    root.setLevel(logging.INFO)
    root.addHandler(buffer)
    try:
        yield log_to
    finally:
        for handler in (buffer, *files):
            root.removeHandler(handler)
            handler.close()
