"""Opening a cache of many videos: seconds and peak memory, against tables that are one JSON object per shard.

Claim: a cache of 100,000 videos opens within 1 s and 200 MB, also where 1,000 of its videos are then trained on. The
caches hold made-up rows of real size and tokens of one channel. Every measurement is a process of its own: its
time begins after the imports, and its memory is the peak above what it had then. `json` is the layout of format 2: all
rows with their times in the `zarr.json` of their shard, parsed on opening.

    python benchmarks/cache_open.py [--rows 1000 20000 100000 1000000] [--most-json 100000] [--folder DIR] [--json OUT]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from unloc.annotations.schema import VideoRow, build_manifest
from unloc.cache.metadata import SHARD_NAME
from unloc.cache.opening import open_cache
from unloc.cache.writing import VideoTokens, create_or_check, write_video_shard
from unloc.config import DataConfig
from unloc.examples.batches import Example
from unloc.examples.examples import Examples
from unloc.examples.sources import CachedTokens

TOKENS, SHARD_VIDEOS, TRAINED = 128, 512, 1000


def made_up_row(number: int) -> dict:
    """Metadata of the size that an extraction writes."""
    digest = f"{number:064x}"
    return {
        "video_id": f"video_{number:07}",
        "file": f"video_{number:07}.mp4",
        "file_bytes": 5_000_000 + number,
        "file_mtime_ns": 1_700_000_000_000_000_000 + number,
        "content_sha256": digest,
        "duration_seconds": TOKENS / 2,
        "covered_seconds": TOKENS / 2,
        "truncated": False,
        "clock_start_seconds": 0.0,
        "times_seconds": [round(0.5 * step + 1e-6 * (number % 7), 6) for step in range(TOKENS)],
        "decoder": "pyav",
        "decoder_reason": "exact on every file, and the faster of the two on this one",
        "codec": "h264",
        "container": "mov,mp4,m4a,3gp,3g2,mj2",
        "width": 640,
        "height": 360,
        "sample_aspect_ratio": "1",
        "seconds_decode": 1.2345,
        "seconds_preprocess": 0.1234,
        "tokens_sha256": digest,
        "seconds_encode": 2.3456,
    }


def write_caches(folder: Path, rows: int, *, with_json: bool) -> None:
    """The same rows as a cache, and as one JSON object per shard."""
    create_or_check(folder / "cache", {"dtype": "float16"}, {})
    tokens = np.ones((TOKENS, 1, 1), np.float16)
    for first in range(0, rows, SHARD_VIDEOS):
        videos = [made_up_row(number) for number in range(first, min(first + SHARD_VIDEOS, rows))]
        name = SHARD_NAME.format(first // SHARD_VIDEOS)
        if with_json:
            (folder / "json" / name).mkdir(parents=True)
            attributes = {"attributes": {"videos": videos, "failed": []}}
            (folder / "json" / name / "zarr.json").write_text(json.dumps(attributes))
        write_video_shard(folder / "cache", name, [VideoTokens(row, tokens) for row in videos], [], "float16")


def open_json(path: Path) -> int:
    """As format 2 was opened."""
    tables = {item.name: json.loads((item / "zarr.json").read_bytes())["attributes"] for item in sorted(path.iterdir())}
    return len({row["video_id"]: {**row, "shard": name} for name, table in tables.items() for row in table["videos"]})


def open_and_read_one(path: Path) -> int:
    cache = open_cache(path)
    last = f"video_{len(cache) - 1:07}"
    assert cache[last].meta["video_id"] == last and len(cache[last].times_seconds) == TOKENS
    return len(cache)


def train_on_some(path: Path) -> int:
    """What `fit` reads: a manifest of 1,000 videos of the cache, without durations, and an example of each."""
    cache = open_cache(path)
    chosen = random.Random(0).sample(range(len(cache)), min(TRAINED, len(cache)))
    rows = [VideoRow(f"video_{number:07}", "train", None) for number in chosen]
    manifest = build_manifest(name="some", tasks=("tal",), rows=rows)
    examples = Examples("tal", manifest, CachedTokens(cache), DataConfig())
    read: list[Example] = [examples.example(index) for index in range(len(examples))]
    return len(read)


MEASURED = {"json": open_json, "cache": open_and_read_one, "fit": train_on_some}


def measure(kind: str, path: Path) -> dict:
    """In this process."""
    before, wall, cpu = _peak_megabytes(), time.perf_counter(), time.process_time()
    MEASURED[kind](path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": wall, "seconds_cpu": cpu, "megabytes": _peak_megabytes() - before}


def _peak_megabytes() -> float:
    """Of this process alone: `ru_maxrss` begins with the peak of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure_apart(kind: str, path: Path) -> dict:
    """In a fresh process."""
    command = [sys.executable, __file__, "--measure", kind, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 20_000, 100_000, 1_000_000])
    parser.add_argument("--most-json", type=int, default=100_000, help="rows up to which format 2 is written too")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    table = []
    print(f"{'videos':>9} {'what':6} {'seconds':>8} {'of CPU':>8} {'MB':>7}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            write_caches(folder, rows, with_json=rows <= options.most_json)
            for kind, path in (("json", folder / "json"), ("cache", folder / "cache"), ("fit", folder / "cache")):
                if path.exists():
                    measured = {"rows": rows, "what": kind, **measure_apart(kind, path)}
                    seconds, cpu, megabytes = (measured[key] for key in ("seconds", "seconds_cpu", "megabytes"))
                    print(f"{rows:9} {kind:6} {seconds:8.3f} {cpu:8.3f} {megabytes:7.1f}", flush=True)
                    table.append(measured)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
