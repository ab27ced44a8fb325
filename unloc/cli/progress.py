"""Progress bars: only here, with rate and time left, and off when nobody watches a terminal."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unloc.training.trainer import Progress


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
def video_bar() -> Iterator[Callable[[int, int, int], None]]:
    """A bar of videos with frames per second; gives the callback (done, due, frames) that moves it."""
    from tqdm import tqdm

    bar = tqdm(unit="video", dynamic_ncols=True, disable=not sys.stderr.isatty(), smoothing=0.05)

    def on_progress(done: int, due: int, frames: int) -> None:
        if bar.total != due:
            bar.reset(due)
        elapsed = bar.format_dict["elapsed"] or 1e-9
        bar.set_postfix(frames_per_second=f"{frames / elapsed:.0f}", refresh=False)
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
