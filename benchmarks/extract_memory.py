"""Does extraction grow? Memory of driver, workers and decoders, and seconds per video, at 20, 200 and 2,000 videos.

    taskset -c 2,3 python benchmarks/extract_memory.py [--counts 20 200 2000] [--workers 2]

Tiny rendered clips and the toy tower. Memory: the largest resident set of each kind of process in the last tenth of a
run over that at a tenth of it. Seconds per video: without the start-up of Ray and tower, which stands beside.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from decoding import render
from process_tree import Watched, watch

NUM_CLIPS, NUM_FRAMES = 10, 30


def write_inputs(folder: Path, clips: list[Path], count: int) -> Path:
    """`count` files, each a copy of one of the clips."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    rows = [{"kind": "manifest", "version": 1, "name": "bench", "tasks": ["mr"]}]
    for number in range(count):
        shutil.copyfile(clips[number % len(clips)], videos / f"v{number:05}.mp4")
        rows.append({"kind": "video", "video_id": f"v{number:05}", "split": "test", "duration_seconds": None})
    manifest = folder / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return manifest


def growth(watched: Watched, kind: str) -> tuple[float, float]:
    """(MiB at a tenth of the work, last tenth over it in per cent) of the largest process of a kind."""
    at_work = [sizes[kind] for _, sizes in watched.memory if "decoder" in sizes and kind in sizes]
    sizes = np.asarray(at_work, dtype=float)
    tenth = max(1, len(sizes) // 10)
    early, late = np.median(sizes[tenth : 2 * tenth + 1]), np.median(sizes[-tenth:])
    return early / 2**20, 100 * (late / early - 1)


def measure(folder: Path, clips: list[Path], count: int, workers: int) -> None:
    """One row."""
    manifest, cache = write_inputs(folder / str(count), clips, count), folder / f"cache{count}"
    words = ["extract", manifest, "--videos", manifest.parent / "videos", "--cache", cache, "--fps", 5]
    words += ["--workers", workers, "--shard-size", 128]
    watched = watch([sys.executable, "-m", "unloc", *map(str, words)])
    summary = json.loads((cache / "summary.json").read_text())
    assert summary["cached_now"] == count
    start_up = summary["seconds_start_up"]
    each = 1000 * (summary["seconds_wall"] - start_up) / count
    told = "  ".join(
        "{} {:.0f} MiB {:+.1f} %".format(kind, *growth(watched, kind)) for kind in ("driver", "worker", "decoder")
    )
    print(f"{count:6d} videos  {each:6.1f} ms each  start-up {start_up:5.1f} s  {told}", flush=True)


def main() -> None:
    """Render some clips, then one row per count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 200, 2000])
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = [render(folder / f"clip{n}.mp4", "libx264", {"g": "12"}, NUM_FRAMES + n) for n in range(NUM_CLIPS)]
        for count in arguments.counts:
            measure(folder, clips, count, arguments.workers)


if __name__ == "__main__":
    main()
