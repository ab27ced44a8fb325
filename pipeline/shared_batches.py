"""Frames from several processes in full batches of one encoder, so that its device is never idle."""

import math
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from unloc.inference.encode import EncodingCall, PixelEncoder

BATCHES_RUNNING = 2  # one computes while the next is put together and copied
FAILURES = (RuntimeError, ValueError)  # torch's, such as out of memory: passed on to the callers


class BusyClock:
    """How long an actor has been busy with one step; waiting for others is no step."""

    since = math.inf

    def start(self) -> None:
        """A step begins."""
        self.since = time.monotonic()

    def stop(self) -> None:
        """The actor waits for others."""
        self.since = math.inf

    def seconds(self) -> float:
        """Since the step began; 0 while waiting."""
        return max(0.0, time.monotonic() - self.since)


@dataclass(eq=False)
class _Request:
    """The frames of one call."""

    pixels: np.ndarray
    answer: Future = field(default_factory=Future)
    num_started: int = 0
    tokens: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0


_Part = tuple[_Request, int, int]  # frames start to stop of a request


class SharedBatches:
    """`encode` may be called from many threads: the frames of all calls go into full batches of one encoder.

    One thread puts batches together and starts them, another waits for their tokens. Where a token's bits depend on
    its place in a batch (`encoder.mixes` is False), no two calls share one.
    """

    def __init__(self, encoder: PixelEncoder) -> None:
        self.encoder = encoder
        self._arrived: SimpleQueue[_Request] = SimpleQueue()
        self._running: SimpleQueue[tuple[list[_Part], EncodingCall]] = SimpleQueue()
        self._free_places = threading.Semaphore(BATCHES_RUNNING)
        self._starting, self._waiting = BusyClock(), BusyClock()
        for target in (self._start_batches, self._finish_batches):
            threading.Thread(target=target, daemon=True).start()

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        """(N, views, D) float32 tokens of pixels (N, views, 3, S, S) uint8, and the seconds that they took."""
        request = _Request(pixels)
        self._arrived.put(request)
        return request.answer.result()

    def seconds_busy(self) -> float:
        """How long the encoder has been at the batch that it started first; 0 where none runs."""
        return max(self._starting.seconds(), self._waiting.seconds())

    def _start_batches(self) -> None:
        requests: deque[_Request] = deque()
        while True:
            if not requests:
                requests.append(self._arrived.get())
            self._free_places.acquire()
            while not self._arrived.empty():
                requests.append(self._arrived.get())
            parts, room = [], self.encoder.batch
            while requests and room and (self.encoder.mixes or not parts):
                request = requests[0]
                start, stop = request.num_started, min(request.num_started + room, len(request.pixels))
                parts.append((request, start, stop))
                request.num_started, room = stop, room - (stop - start)
                if stop == len(request.pixels):
                    requests.popleft()
            self._starting.start()
            try:
                pixels = np.concatenate([request.pixels[start:stop] for request, start, stop in parts])
                self._running.put((parts, self.encoder.start_encoding(pixels)))
            except FAILURES as error:
                self._fail(parts, error)
            self._starting.stop()
            requests = deque(request for request in requests if not request.answer.done())

    def _finish_batches(self) -> None:
        while True:
            parts, call = self._running.get()
            self._waiting.start()
            try:
                tokens, seconds = call()
            except FAILURES as error:
                self._fail(parts, error)
            else:
                first = 0
                for request, start, stop in parts:
                    request.tokens.append(tokens[first : first + stop - start])
                    request.seconds += seconds * (stop - start) / len(tokens)
                    first += stop - start
                    if stop == len(request.pixels) and not request.answer.done():
                        request.answer.set_result((np.concatenate(request.tokens), request.seconds))
                self._free_places.release()
            self._waiting.stop()

    def _fail(self, parts: list[_Part], error: Exception) -> None:
        for request, *_ in parts:
            if not request.answer.done():
                request.answer.set_exception(error)
        self._free_places.release()
