"""Set-up of a process that works for another one: decodes videos or prepares batches."""

import ctypes
import multiprocessing
import os
import signal

import torch

PR_SET_PDEATHSIG = 1


def start_worker(on_sigterm: signal.Handlers = signal.SIG_DFL, worker: int = 0) -> None:
    """Let this process work for its parent: on one thread, without hearing Ctrl-C, until the parent ends. `on_sigterm`:
    SIG_IGN where SIGTERM to all of a job lets the parent save first; `worker`: its number (DataLoader).
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_sigterm)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # even one that hangs
    if not multiprocessing.parent_process().is_alive():  # it ended before: no signal comes
        os._exit(1)
