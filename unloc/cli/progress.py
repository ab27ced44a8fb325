"""Progress of long work, only here: a bar on a terminal; of an extraction, lines where stderr goes into a log."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from unloc.training.trainer import Progress

LINE_SECONDS = 30.0


@contextmanager
def shown_notes(name: str) -> Iterator[None]:
    """Warnings of a part of the library, one line each beside the bar."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    part = logging.getLogger(name)
    part.addHandler(handler)
    propagates, part.propagate = part.propagate, False  # open_clip gives the root logger a handler: twice told
    try:
        yield
    finally:
        part.propagate = propagates
        part.removeHandler(handler)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM (of `timeout`, a batch system, `ray job stop`) stops a command as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def step_bar() -> Iterator[Callable[["Progress"], None]]:
    """A bar of training steps with loss and learning rate; gives the callback that moves it."""
    from tqdm import tqdm

    bar = tqdm(unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty(), smoothing=0.05)

    def on_step(progress: "Progress") -> None:
        if bar.total is None:
            bar.reset(progress.total_steps)
            bar.update(progress.step - 1)
        bar.set_postfix(loss=f"{progress.loss:.3f}", lr=f"{progress.lr:.1e}", refresh=False)
        bar.update(1)

    try:
        yield on_step
    finally:
        bar.close()


@contextmanager
def video_progress() -> Iterator[Callable[[int, int, int, int], None]]:
    """Videos done, frames per second, failures and time left; gives the callback (done, due, frames, failed).

    A bar on a terminal; elsewhere (a file, `ray job submit`) a line on stderr every 30 s.
    """
    if sys.stderr.isatty():
        with video_bar() as on_progress:
            yield on_progress
        return
    started, counts, is_over = time.monotonic(), (0, 0, 0, 0), threading.Event()

    def write_lines() -> None:
        while not is_over.wait(LINE_SECONDS):
            typer.echo(progress_line(*counts, time.monotonic() - started), err=True)

    def on_progress(*now: int) -> None:
        nonlocal counts
        counts = now

    writer = threading.Thread(target=write_lines, daemon=True)
    writer.start()
    try:
        yield on_progress
    finally:
        is_over.set()
        writer.join()


def progress_line(done: int, due: int, frames: int, failed: int, seconds: float) -> str:
    """What a log is told of an extraction that has run for so long."""
    left = timedelta(seconds=round(seconds / done * (due - done))) if done else "unknown"
    return f"{done}/{due} videos, {frames / seconds:.1f} frames/s, {failed} failed, time left {left}"


@contextmanager
def video_bar() -> Iterator[Callable[[int, int, int, int], None]]:
    """A bar of videos with frames per second and failures."""
    from tqdm import tqdm

    bar = tqdm(unit="video", dynamic_ncols=True, smoothing=0.05)

    def on_progress(done: int, due: int, frames: int, failed: int) -> None:
        if bar.total != due:
            bar.reset(due)
        elapsed = bar.format_dict["elapsed"] or 1e-9
        bar.set_postfix(frames_per_second=f"{frames / elapsed:.0f}", failed=failed, refresh=False)
        bar.update(done - bar.n)

    try:
        yield on_progress
    finally:
        bar.close()


@contextmanager
def count_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of things done; gives the callback (done, total) that moves it."""
    from tqdm import tqdm

    bar = tqdm(unit=unit, dynamic_ncols=True, disable=not sys.stderr.isatty(), smoothing=0.05)

    def on_progress(done: int, total: int) -> None:
        if bar.total != total:
            bar.reset(total)
        bar.update(done - bar.n)

    try:
        yield on_progress
    finally:
        bar.close()
