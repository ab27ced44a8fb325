"""Frames from many callers in full batches of one encoder."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.workers import BATCHES_RUNNING, SharedBatches


class PretendedEncoder:
    """Gives each frame's first value as its token; its device starts only when told to."""

    batch, batches_ahead, mixes = 8, 1, True

    def __init__(self):
        self.sizes, self.go, self.fails = [], threading.Event(), False
        self.is_full = threading.Event()

    def start_encoding(self, pixels):
        assert len(pixels) <= self.batch
        self.sizes.append(len(pixels))
        if len(self.sizes) == BATCHES_RUNNING:
            self.is_full.set()

        def wait():
            self.go.wait()
            if self.fails:
                raise RuntimeError("out of memory")
            return pixels.reshape(len(pixels), 1, -1)[:, :, :1].astype(np.float32), 0.5

        return wait


def frames(*values):
    return np.array(values, dtype=np.uint8).reshape(-1, 1, 1, 1, 1)


def encoded_together(encoder, requests):
    """The tokens of requests that have all come before the device begins."""
    batches = SharedBatches(encoder)
    with ThreadPoolExecutor(len(requests) + 2) as pool:
        first = [pool.submit(batches.encode, frames(*range(100, 100 + encoder.batch))) for _ in range(BATCHES_RUNNING)]
        assert encoder.is_full.wait(timeout=60)
        found = [pool.submit(batches.encode, request) for request in requests]
        while batches._arrived.qsize() < len(requests) - 1:  # the first is taken and waits for room
            pass
        encoder.go.set()
        for call in first:
            call.result()
        return [call.result() for call in found]


def test_every_caller_gets_its_own_tokens_and_batches_are_full():
    encoder = PretendedEncoder()
    requests = [frames(*range(start, start + size)) for start, size in ((0, 5), (10, 20), (40, 1), (50, 6))]
    for request, (tokens, seconds) in zip(requests, encoded_together(encoder, requests), strict=True):
        np.testing.assert_array_equal(tokens[:, 0, 0], request.ravel())
        assert seconds > 0
    assert encoder.sizes[BATCHES_RUNNING:] == [8, 8, 8, 8]


def test_calls_do_not_share_a_batch_where_a_token_depends_on_its_place():
    encoder = PretendedEncoder()
    encoder.mixes = False
    requests = [frames(1, 2, 3), frames(*range(9)), frames(7)]
    for request, (tokens, _) in zip(requests, encoded_together(encoder, requests), strict=True):
        np.testing.assert_array_equal(tokens[:, 0, 0], request.ravel())
    assert sorted(encoder.sizes[BATCHES_RUNNING:]) == [1, 1, 3, 8]


def test_an_error_of_the_device_reaches_every_caller_and_later_calls_are_served():
    encoder = PretendedEncoder()
    encoder.fails = True
    encoder.go.set()
    batches = SharedBatches(encoder)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            batches.encode(frames(1, 2))
    encoder.fails = False
    np.testing.assert_array_equal(batches.encode(frames(3))[0].ravel(), [3])


def test_an_encoder_is_busy_while_a_batch_runs_and_idle_after_it():
    encoder = PretendedEncoder()
    batches = SharedBatches(encoder)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(batches.encode, frames(1))
        while batches.seconds_busy() == 0:
            pass
        encoder.go.set()
        call.result()
    while batches.seconds_busy() > 0:
        pass
