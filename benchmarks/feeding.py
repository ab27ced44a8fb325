"""Is a fast encoder kept busy? The share of time in which a simulated GPU computes, by the number of decoders.

The GPU takes 5,000 frames a second (--rate) and computes next to the process that feeds it, as a real one does; its
buffer for copies is reused, as by PyTorch's allocator of pinned memory. The frames of the simulated decoders are ready
at once. What remains is this project's part: batches, Ray's object store, the encoder's threads. The same run measures
batches of 16 frames, one after another. A warm-up goes first (--warmup), since the first use of each page of the object
store costs ten times a later one.
Usage: python benchmarks/feeding.py [--decoders 4 8 16] [--seconds 15]
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import ray
import torch

from pipeline.workers import BusyClock, RemoteEncoder, SharedBatches
from unloc.inference.encode import EncodeConfig, encode_frames
from unloc.model.towers import GPU_BATCH

FRAMES, SIZE, CHANNELS = 128, 224, 512  # of a video


class SimulatedGpu:
    """Computes `rate` frames a second, one batch after another; calls return at once."""

    batch, batches_ahead, mixes = GPU_BATCH, 1, True

    def __init__(self, rate: float) -> None:
        self.rate, self.free_at, self.busy = rate, 0.0, 0.0
        self.pinned = torch.empty((GPU_BATCH, 1, 3, SIZE, SIZE), dtype=torch.uint8)

    def start_encoding(self, pixels: np.ndarray):
        """As `Encoder` on a GPU: copy to pinned memory, start, return the tokens later."""
        self.pinned[: len(pixels)].copy_(torch.from_numpy(pixels))
        seconds = self.batch / self.rate  # a batch that is not full takes as long
        self.free_at = max(self.free_at, time.perf_counter()) + seconds
        self.busy += len(pixels) / self.rate
        ready = self.free_at

        def wait():
            time.sleep(max(0.0, ready - time.perf_counter()))
            return np.zeros((len(pixels), 1, CHANNELS), np.float32), seconds

        return wait


class SharedEncoder:
    """`EncodeWorker` with a simulated GPU."""

    def __init__(self, rate: float) -> None:
        self.gpu = SimulatedGpu(rate)
        self.batches = SharedBatches(self.gpu)

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        """Tokens of some frames."""
        return self.batches.encode(pixels)

    def busy(self) -> float:
        """Seconds of useful computing."""
        return self.gpu.busy


class PlainEncoder:
    """Batches of 16 as they come, each waited for."""

    def __init__(self, rate: float) -> None:
        self.gpu = SimulatedGpu(rate)
        self.gpu.batch = 16

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        """Tokens of a batch."""
        return self.gpu.start_encoding(pixels)()

    def busy(self) -> float:
        """Seconds of useful computing."""
        return self.gpu.busy


@ray.remote(num_cpus=0)
class ReadyDecoder:
    """Sends videos whose frames are ready."""

    def run(self, encoder: ray.actor.ActorHandle, until: float, frames_sent: int, ahead: int) -> int:
        """Frames encoded until that time."""
        remote = RemoteEncoder(EncodeConfig(num_frames=FRAMES), BusyClock(), encoder)
        remote.batch, remote.batches_ahead = frames_sent, ahead
        frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 1, 3, SIZE, SIZE), dtype=np.uint8)
        row = {"file": "", "times_seconds": [0.0] * FRAMES}

        def events() -> Iterator[tuple[int, object]]:
            number = 0
            while time.time() < until:
                for start in range(0, FRAMES, 16):  # as from a decoder's pipe
                    positions = [[position] for position in range(start, start + 16)]
                    yield number, (positions, frames[start : start + 16])
                yield number, row
                number += 1

        return sum(len(tokens.tokens) for _, tokens in encode_frames(remote, events()))


def busy_share(plain: bool, rate: float, decoders: list[ray.actor.ActorHandle], seconds: float, warmup: float) -> float:
    """Share of the seconds after the warm-up in which the GPU computed."""
    kind = PlainEncoder if plain else SharedEncoder
    encoder = ray.remote(num_cpus=0, max_concurrency=1 if plain else 256)(kind).remote(rate)
    ray.get(encoder.busy.remote())
    sent = {"frames_sent": 16, "ahead": 0} if plain else {"frames_sent": RemoteEncoder.batch, "ahead": 4}
    until = time.time() + warmup + seconds + 1.0
    running = [decoder.run.remote(encoder, until, **sent) for decoder in decoders]
    time.sleep(warmup)
    (before, began), (after, ended) = measured(encoder, 0.0), measured(encoder, seconds)
    ray.get(running)
    ray.kill(encoder)
    return (after - before) / (ended - began)


def measured(encoder: ray.actor.ActorHandle, seconds: float) -> tuple[float, float]:
    """Seconds of computing so far, in some seconds from now, and the time then."""
    time.sleep(seconds)
    return ray.get(encoder.busy.remote()), time.perf_counter()


def main() -> None:
    """Print one row for each number of decoders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoders", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--rate", type=float, default=5000.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--warmup", type=float, default=10.0)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2 << 30)
    decoders = [ReadyDecoder.remote() for _ in range(max(options.decoders))]
    ray.get([decoder.__ray_ready__.remote() for decoder in decoders])
    print(f"a GPU of {options.rate:.0f} frames/s, {FRAMES} frames of {SIZE} x {SIZE} a video")
    print(f"{'decoders':>8} {'busy share':>11} {'batches of 16, one by one':>26} {'ratio':>6}", flush=True)
    for count in options.decoders:
        now, plain = (
            busy_share(kind, options.rate, decoders[:count], options.seconds, options.warmup) for kind in (False, True)
        )
        print(f"{count:8d} {now:11.2f} {plain:26.2f} {now / plain:6.2f}", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
