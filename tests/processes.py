"""Processes that start at once: they are forked from one that has imported training, and is nothing else."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")
# A fork of the tests' own process would have its threads, its checks of shapes, and perhaps its GPU.
START_METHOD = "forkserver"
CONTEXT = multiprocessing.get_context(START_METHOD)
CONTEXT.set_forkserver_preload(["unloc.training.run"])


def apart(function: Callable[..., Value], *arguments: object) -> Value:
    """What a function of a module returns in another process, where shapes are not checked. Raises what it raises."""
    with CONTEXT.Pool(1) as pool:
        return pool.apply(function, arguments)


def start_unloc(*words: object, errors: Path) -> BaseProcess:
    """A command line in a session of its own, which writes what it says on stderr into a file."""
    process = CONTEXT.Process(target=_run_unloc, args=([*map(str, words)], errors))
    process.start()
    return process


def _run_unloc(words: list[str], errors: Path) -> None:
    from unloc.cli import main

    os.setsid()
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    sys.argv = ["unloc", *words]
    main()
