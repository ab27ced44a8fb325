"""Run `unloc extract` on every file of a folder; print by which decoder and why it was cached, or why it failed.

    python benchmarks/real_videos.py [../shared/videos/A] [--frames 16] [--timeout 120] > benchmarks/results/videos_A.md

tests/video/test_video_real.py compares the frames with a sequential reference.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from unloc.cache.opening import open_cache
from unloc.video.locate import EXTENSIONS


def write_manifest(folder: Path, out: Path) -> list[str]:
    """A manifest of all videos below a folder; their ids, which are their paths."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in EXTENSIONS]
    names = [path.relative_to(folder).as_posix() for path in files]
    rows = [{"kind": "manifest", "version": 1, "name": folder.name, "tasks": ["mr"]}]
    rows += [
        {"kind": "video", "video_id": name, "split": "all", "file": name, "duration_seconds": None} for name in names
    ]
    out.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return names


def main() -> None:
    """Extract and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("../shared/videos/A"))
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--timeout", type=float, default=120.0)
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"{arguments.folder} does not exist: nothing to do")
        return
    with tempfile.TemporaryDirectory() as name:
        manifest, cache_path = Path(name) / "m.jsonl", Path(name) / "cache"
        names = write_manifest(arguments.folder, manifest)
        command = ["extract", manifest, "--videos", arguments.folder, "--cache", cache_path, "--tower", "toy"]
        command += ["--frames", arguments.frames, "--timeout", arguments.timeout, "--workers", 0, "--coverage", 0]
        subprocess.run([sys.executable, "-m", "unloc", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
        print_table(cache_path, names, arguments)


def print_table(cache_path: Path, names: list[str], arguments: argparse.Namespace) -> None:
    """One row per file."""
    cache = open_cache(cache_path)
    failed = {row["video_id"]: row for table in cache.tables.values() for row in table["failed"]}
    print(f"{len(cache)} of {len(names)} files cached, {len(failed)} in the ledger with a reason; ", end="")
    print(f"`--tower toy --frames {arguments.frames} --timeout {arguments.timeout:g}`.\n")
    print("| file | state | codec, container | shown from – to (s) | decoder: why, or the error | seconds |")
    print("|---|---|---|---|---|--:|")
    for name in names:
        row = cache.places.get(name)
        if row is None:
            message = failed[name]["message"].replace(f"{arguments.folder}/", "")
            print(f"| `{name}` | {failed[name]['reason']} | | | {message} | |")
            continue
        times, seconds = row["times_seconds"], row["seconds_decode"] + row["seconds_preprocess"]
        what = f"{row['codec']}, {row['container'].split(',')[0]}"
        why = f"{row['decoder']}: {row['decoder_reason']}"
        print(f"| `{name}` | cached | {what} | {times[0]:.3f} – {times[-1]:.3f} | {why} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
