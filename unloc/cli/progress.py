"""How long-running commands show what they do: progress, warnings, and a clean stop on SIGTERM."""

import io
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

import typer

LINE_SECONDS = 30.0
SHOWN_FAILURES = 20
shown_level = logging.WARNING  # of log records; ERROR: no progress either
LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_fmt}{postfix}, {elapsed} elapsed, {remaining} left"


@contextmanager
def progress(action: str, units: str) -> Iterator[Callable[..., None]]:
    """Yields `report(done, total, **details)`, which shows rate and time left: a bar, or a line every 30 s if piped."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __str__(self) -> str:
            return super().__str__().replace(f"s/ {units}", " s each")  # slower than one a second

    bar, is_over = None, threading.Event()
    options = {"dynamic_ncols": True}
    if not sys.stderr.isatty():  # lines are written by the thread below, also while nothing completes
        options = {"file": io.StringIO(), "bar_format": LINE, "mininterval": inf}

    def report(done: int, total: int, **details: object) -> None:
        """Move the bar."""
        nonlocal bar
        if shown_level >= logging.ERROR:
            return
        if bar is None:
            bar = Bar(desc=action, unit=f" {units}", initial=done, total=total, smoothing=0.05, **options)
        bar.total = total
        bar.set_postfix(details, refresh=False)
        bar.update(done - bar.n)

    def write_lines() -> None:
        while not is_over.wait(LINE_SECONDS):
            if bar is not None and "file" in options:
                typer.echo(str(bar), err=True)

    writer = threading.Thread(target=write_lines, daemon=True)
    writer.start()
    try:
        yield report
    finally:
        is_over.set()
        writer.join()
        if bar is not None:
            bar.close()


def echo_failures(rows: list[dict], all_failures: str) -> None:
    """Print the first failures, a line each, and how many more there are and where."""
    for row in rows[:SHOWN_FAILURES]:
        message = f"failed: {row['video_id']}: {row['reason']}: {row['message']}"
        typer.echo(" ".join(message.splitlines()), err=True)
    if len(rows) > SHOWN_FAILURES:
        typer.echo(f"and {len(rows) - SHOWN_FAILURES} more: {all_failures}", err=True)


@contextmanager
def shown_warnings(package: str) -> Iterator[None]:
    """Print the warnings that a package logs, one line each; with --verbose also what it does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(shown_level)
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    logger = logging.getLogger(package)
    logger.addHandler(handler)
    level = logger.level
    if shown_level < logging.WARNING:
        logger.setLevel(shown_level)
    propagates, logger.propagate = logger.propagate, False  # open_clip adds a handler to the root logger
    try:
        yield
    finally:
        logger.propagate = propagates
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM (from `timeout`, a batch system, `ray job stop`) stop a command as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
