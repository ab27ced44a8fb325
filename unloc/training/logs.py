"""What a run writes while it trains: log.txt, metrics.jsonl and TensorBoard events."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from unloc.files import write_file

logger = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl, and a TensorBoard event file where TensorBoard is installed (extra `track`).

    Rows after `step` and `validated`, which a killed run left, are removed. Events are written in this thread:
    TensorBoard's own writer hides a full disk in another one.
    """

    def __init__(self, run: Path, step: int, validated: int) -> None:
        self.run, self.step, self.validated = run, step, validated

    def __enter__(self) -> "MetricsLog":
        path, self._stack, self._records = self.run / "metrics.jsonl", ExitStack(), None
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_file(path, "".join(line for line in lines if self._is_done(line)))
        self._file = self._stack.enter_context(path.open("a", encoding="utf-8"))
        try:
            from tensorboard.compat.proto.event_pb2 import SessionLog
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            logger.info("tensorboard is not installed (extra `track`): metrics go to metrics.jsonl only")
            return self
        folder = self.run / "tensorboard"
        folder.mkdir(exist_ok=True)
        file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("wb")
        self._records = RecordWriter(self._stack.enter_context(file))
        self._write_event(file_version="brain.Event:2")
        # TensorBoard drops what it has of later steps: they are done again.
        self._write_event(step=self.step + 1, session_log=SessionLog(status=SessionLog.START))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _is_done(self, line: str) -> bool:
        try:
            row = json.loads(line)
            return row["step"] <= (self.validated if row["kind"] == "val" else self.step)
        except ValueError:  # half a line
            return False

    def _write_event(self, **fields: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One row of kind train or val; in TensorBoard `kind/name`."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._records is not None:
            scalars = [{"tag": f"{kind}/{key}", "simple_value": value} for key, value in values.items()]
            self._write_event(step=step, summary={"value": scalars})


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
