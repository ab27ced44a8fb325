"""The cache against the ways others store features: random batches of videos, writing, number of files.

Claim (issue 5): a random batch of 64 videos x 128 tokens x 512 channels, float16, takes at most twice the time of one
`np.memmap` on a warm page cache, less than one `.npy` per video on a cold one, and there is at most one file per 100
videos. All stores hold the same tokens and are read in turns in one process, so the ratios are side by side.

    python benchmarks/cache_io.py [--videos 2000] [--folder DIR] [--json OUT]
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from unloc.cache.metadata import SHARD_NAME
from unloc.cache.opening import open_cache
from unloc.cache.writing import VideoTokens, create_or_check, token_checksum, write_video_shard

TOKENS, CHANNELS, BATCH, SHARD_VIDEOS = 128, 512, 64, 512
Reader = Callable[[int, np.ndarray], None]


def video_tokens(number: int) -> np.ndarray:
    """(T, 1, D) float16 of one made-up video."""
    return np.random.default_rng(number).standard_normal((TOKENS, 1, CHANNELS), dtype=np.float32).astype(np.float16)


def write_cache(folder: Path, videos: int) -> float:
    create_or_check(folder, {"dtype": "float16"}, {})
    seconds = 0.0
    for first in range(0, videos, SHARD_VIDEOS):
        rows = [_row(number) for number in range(first, min(first + SHARD_VIDEOS, videos))]
        started = time.perf_counter()
        write_video_shard(folder, SHARD_NAME.format(first // SHARD_VIDEOS), rows, [], "float16")
        seconds += time.perf_counter() - started
    return seconds


def _row(number: int) -> VideoTokens:
    tokens = video_tokens(number)
    times = [0.5 * step for step in range(TOKENS)]
    meta = {"video_id": f"v{number}", "times_seconds": times, "tokens_sha256": token_checksum(tokens)}
    return VideoTokens(meta, tokens)


def write_memmap(folder: Path, videos: int) -> float:
    folder.mkdir()
    array = np.memmap(folder / "all.bin", dtype=np.float16, mode="w+", shape=(videos, TOKENS, CHANNELS))
    return _timed_writes(videos, lambda number, tokens: array.__setitem__(number, tokens), array.flush)


def write_npy(folder: Path, videos: int) -> float:
    folder.mkdir()
    return _timed_writes(videos, lambda number, tokens: np.save(folder / f"v{number}.npy", tokens), os.sync)


def write_hdf5(folder: Path, videos: int) -> float:
    import h5py

    folder.mkdir()
    with h5py.File(folder / "all.h5", "w") as file:
        for_videos = {"shape": (videos, TOKENS, CHANNELS), "chunks": (1, TOKENS, CHANNELS)}
        data = file.create_dataset("tokens", dtype=np.float16, **for_videos)
        return _timed_writes(videos, lambda number, tokens: data.__setitem__(number, tokens), file.flush)


def _timed_writes(videos: int, write: Callable[[int, np.ndarray], None], flush: Callable[[], None]) -> float:
    seconds = 0.0
    for number in range(videos):
        tokens = video_tokens(number)[:, 0]
        started = time.perf_counter()
        write(number, tokens)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    flush()
    return seconds + time.perf_counter() - started


def read_cache(folder: Path, videos: int) -> Reader:
    cache = open_cache(folder)
    len(cache)  # its tables are read once, as a training run does
    return lambda number, out: np.copyto(out, cache[f"v{number}"].frames[0])


def read_memmap(folder: Path, videos: int) -> Reader:
    array = np.memmap(folder / "all.bin", dtype=np.float16, mode="r", shape=(videos, TOKENS, CHANNELS))
    return lambda number, out: np.copyto(out, array[number])


def read_npy(folder: Path, videos: int) -> Reader:
    return lambda number, out: np.copyto(out, np.load(folder / f"v{number}.npy"))


def read_hdf5(folder: Path, videos: int) -> Reader:
    import h5py

    data = h5py.File(folder / "all.h5", "r")["tokens"]
    return lambda number, out: data.read_direct(out, np.s_[number])


def read_zarr(folder: Path, videos: int) -> Reader:
    group = zarr.open_group(str(folder.with_name("cache")), mode="r")
    shards = [group[f"shards/{SHARD_NAME.format(number)}/frames"] for number in range(-(-videos // SHARD_VIDEOS))]

    def read(number: int, out: np.ndarray) -> None:
        first = number % SHARD_VIDEOS * TOKENS
        np.copyto(out, shards[number // SHARD_VIDEOS][first : first + TOKENS, 0])

    return read


WRITERS = {"memmap": write_memmap, "cache": write_cache, "npy": write_npy, "hdf5": write_hdf5}
READERS = {"memmap": read_memmap, "cache": read_cache, "npy": read_npy, "hdf5": read_hdf5, "zarr-python": read_zarr}


def forget_pages(folder: Path) -> None:
    """Ask the kernel to drop a folder's pages: the next read comes from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def milliseconds_per_batch(folder: Path, videos: int, batches: int, *, cold: bool) -> dict[str, float]:
    """Median over random batches, the stores in turns. Cold: no token is in memory before a batch."""
    rng, out = np.random.default_rng(0), np.empty((BATCH, TOKENS, CHANNELS), np.float16)
    open_readers = {name: reader(folder / name, videos) for name, reader in READERS.items()}
    times: dict[str, list[float]] = {name: [] for name in READERS}
    for _ in range(batches):
        chosen = rng.choice(videos, BATCH, replace=False).tolist()
        for name, make in READERS.items():
            read = open_readers[name]
            if cold:
                read = open_readers[name] = None
                forget_pages(folder / ("cache" if name == "zarr-python" else name))
                read = make(folder / name, videos)
            started = time.perf_counter()
            for row, number in enumerate(chosen):
                read(number, out[row])
            times[name].append(1000 * (time.perf_counter() - started))
            np.testing.assert_array_equal(out[-1], video_tokens(chosen[-1])[:, 0])
    return {name: statistics.median(values) for name, values in times.items()}


def measure(folder: Path, videos: int, batches: int) -> dict:
    """Everything the claim names."""
    megabytes = videos * TOKENS * CHANNELS * 2 / 1e6
    written = {name: megabytes / write(folder / name, videos) for name, write in WRITERS.items()}
    files = {name: sum(item.is_file() for item in (folder / name).rglob("*")) for name in WRITERS}
    milliseconds_per_batch(folder, videos, 2, cold=False)  # fill the page cache
    warm = milliseconds_per_batch(folder, videos, batches, cold=False)
    cold = milliseconds_per_batch(folder, videos, max(3, batches // 10), cold=True)
    return {
        "videos": videos,
        "write_megabytes_per_second": written,
        "files_per_10000_videos": {name: count * 10_000 / videos for name, count in files.items()},
        "warm_ms_per_batch": warm,
        "cold_ms_per_batch": cold,
        "memmap_over_cache_warm": warm["memmap"] / warm["cache"],
        "npy_over_cache_cold": cold["npy"] / cold["cache"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where to write; a disk, not tmpfs, for the cold figures")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cache_io-", dir=options.folder))
    try:
        found = measure(folder, options.videos, options.batches)
    finally:
        shutil.rmtree(folder)
    print(f"{'':14}{'warm ms':>10}{'cold ms':>10}{'write MB/s':>12}{'files / 10,000 videos':>24}")
    for name in READERS:
        written, files = found["write_megabytes_per_second"].get(name), found["files_per_10000_videos"].get(name)
        tail = f"{written:12.0f}{files:24.0f}" if written else ""
        print(f"{name:14}{found['warm_ms_per_batch'][name]:10.2f}{found['cold_ms_per_batch'][name]:10.1f}{tail}")
    print(f"memmap / cache, warm: {found['memmap_over_cache_warm']:.2f} (aim >= 0.5)")
    print(f"npy / cache, cold:    {found['npy_over_cache_cold']:.2f} (aim > 1)")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
