"""Frames that several processes send, in full batches of one encoder: its device is to have no idle moment."""

import threading
import time
from collections import deque
from queue import SimpleQueue

import numpy as np

from unloc.inference.batching import EncodingCall, PixelEncoder

BATCHES_RUNNING = 2  # one computes while the next is put together and copied
FAILURES = (RuntimeError, ValueError)  # torch's, such as no memory: raised where the tokens are waited for


class Pulse:
    """How long an actor has been at one thing; while it waits for others it is at nothing."""

    def __init__(self) -> None:
        self._since: float | None = None

    def beat(self) -> None:
        """Something new begins."""
        self._since = time.monotonic()

    def rest(self) -> None:
        """Others have to act now."""
        self._since = None

    def seconds(self) -> float:
        """Since the last beat; 0 at rest."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


class _Request:
    """Frames of one call, and their tokens as they come."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.num_started = pixels, 0
        self.tokens: list[np.ndarray] = []
        self.seconds, self.error = 0.0, None
        self.is_over = threading.Event()


_Part = tuple[_Request, int, int]
"""Frames start to stop of a request."""


class SharedBatches:
    """`encode` may be called from many threads: the frames of all calls go into full batches of one encoder.

    One thread puts batches together and starts them, another waits for their tokens. With `mixes` false, where a
    token's bits depend on its place in a batch, no two calls share one.
    """

    def __init__(self, encoder: PixelEncoder, pulse: Pulse, *, mixes: bool) -> None:
        self.encoder, self.pulse, self.mixes = encoder, pulse, mixes
        self._arrived: SimpleQueue[_Request] = SimpleQueue()
        self._running: SimpleQueue[tuple[list[_Part], EncodingCall]] = SimpleQueue()
        self._room, self._lock, self._num_running = threading.Semaphore(BATCHES_RUNNING), threading.Lock(), 0
        for target in (self._start_batches, self._finish_batches):
            threading.Thread(target=target, daemon=True).start()

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        """(N, views, D) float32 tokens of pixels (N, views, 3, S, S) uint8, and the seconds that they took."""
        request = _Request(pixels)
        self._arrived.put(request)
        request.is_over.wait()
        if request.error is not None:
            raise request.error
        return np.concatenate(request.tokens), request.seconds

    def _start_batches(self) -> None:
        waiting: deque[_Request] = deque()
        while True:
            if not waiting:
                waiting.append(self._arrived.get())
            self._room.acquire()
            while not self._arrived.empty():
                waiting.append(self._arrived.get())
            parts = self._next_parts(waiting)
            self._count(+1)
            try:
                pixels = np.concatenate([request.pixels[start:stop] for request, start, stop in parts])
                self._running.put((parts, self.encoder.start_encoding(pixels)))
            except FAILURES as error:
                self._fail(parts, error)
            waiting = deque(request for request in waiting if request.error is None)

    def _next_parts(self, waiting: deque[_Request]) -> list[_Part]:
        """Frames for one batch, in the order in which they came."""
        parts, room = [], self.encoder.batch
        while waiting and room:
            request = waiting[0]
            start, stop = request.num_started, min(request.num_started + room, len(request.pixels))
            parts.append((request, start, stop))
            request.num_started, room = stop, room - (stop - start)
            if stop == len(request.pixels):
                waiting.popleft()
            if not self.mixes:
                break
        return parts

    def _finish_batches(self) -> None:
        while True:
            parts, call = self._running.get()
            try:
                tokens, seconds = call()
            except FAILURES as error:
                self._fail(parts, error)
                continue
            first = 0
            for request, start, stop in parts:
                request.tokens.append(tokens[first : first + stop - start])
                request.seconds += seconds * (stop - start) / len(tokens)
                first += stop - start
                if stop == len(request.pixels):
                    request.is_over.set()
            self._count(-1)

    def _fail(self, parts: list[_Part], error: Exception) -> None:
        for request, *_ in parts:
            request.error = error
            request.is_over.set()
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._num_running += change
            if self._num_running:
                self.pulse.beat()
            else:
                self.pulse.rest()
        if change < 0:
            self._room.release()
