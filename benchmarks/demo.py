"""The main job, end to end, on real video files: what `make demo` runs.

Renders a world, converts its official annotations, extracts one cache, fits and evaluates all four tasks through the
command line a user types, and ends with one table: trained / blind floor / no-training baseline. Training starts from
the checkpoints that ship with the package, which saw a world of another seed (as the paper's models start from
Kinetics); --scratch starts from nothing.

Usage: python benchmarks/demo.py --out demo [--videos 200] [--seed 2024] [--scratch]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

# task: converter, annotations below OUT/world/annotations, test split, metrics of the table
TASKS = {
    "mr": ("activitynet-captions", "activitynet_captions", "test", ("R1@0.5", "R1@0.7", "mIoU")),
    "tal": ("activitynet", "activitynet.json", "testing", ("mAP@0.50", "mAP@avg")),
    "as": ("coin", "coin.json", "testing", ("frame_accuracy", "F1@50")),
    "hd": ("qvhighlights", "qvhighlights", "test", ("HL-min-VeryGood-Hit1", "HL-min-VeryGood-mAP", "R1@0.5")),
}


class Demo:
    """Runs commands, shows and times them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, *arguments: object) -> None:
        """One `unloc` command; the demo ends where it fails."""
        words = [str(argument) for argument in arguments]
        print(f"\n$ unloc {' '.join(words)}", flush=True)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "unloc", *words], check=False)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        if done.returncode != 0:
            raise SystemExit(f"demo stopped: `unloc {words[0]}` exited with {done.returncode}")

    def metrics(self, folder: Path) -> dict:
        """metrics.json of one evaluation."""
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def main() -> None:
    """Run all stages and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--fps", type=float, default=4.0, help="frame tokens per second in the cache")
    parser.add_argument("--scratch", action="store_true", help="start from nothing, not from the shipped checkpoints")
    options = parser.parse_args()
    demo, out = Demo(options.out), options.out
    world, cache = out / "world", out / "cache"
    demo.run("synth", "data", "synth", world, "--videos", options.videos, "--seed", options.seed)
    for task in options.tasks:
        converter, source, *_ = TASKS[task]
        manifest = out / f"{task}.jsonl"
        demo.run(
            "convert", "data", "convert", converter, "--annotations", world / "annotations" / source, "--out", manifest
        )
        demo.run("extract", "extract", manifest, "--videos", world / "videos", "--cache", cache, "--fps", options.fps)
    for task in options.tasks:
        split = TASKS[task][2]
        manifest, run = out / f"{task}.jsonl", out / "runs" / task
        shared = ("--manifest", manifest, "--cache", cache)
        init = () if options.scratch else ("--init", "toy")
        demo.run("fit", "fit", f"synth_{task}", *shared, "--work-dir", run, "--overwrite", *init)
        demo.run("eval", "eval", run, *shared, "--split", split)
        baseline = ("--baseline", "--task", task, "--out", out / "baseline" / task)
        demo.run("baseline", "eval", *baseline, *shared, "--split", split)
    print_table(demo, options.tasks)


def print_table(demo: Demo, tasks: list[str]) -> None:
    """Trained, best blind floor and no-training baseline of every headline metric, then the time of each stage."""
    print(f"\n{'task':5}{'metric':26}{'trained':>9}{'blind floor':>13}{'no training':>13}")
    rows = {}
    for task in tasks:
        *_, split, keys = TASKS[task]
        trained = demo.metrics(demo.out / "runs" / task / "eval" / split)
        baseline = demo.metrics(demo.out / "baseline" / task)
        blind = {name: values for name, values in trained["floors"].items() if "true_label" not in name}
        for key in keys:
            floor = max(values.get(key, 0.0) for values in blind.values())
            rows[f"{task} {key}"] = (trained["metrics"][key], floor, baseline["metrics"][key])
            print(f"{task:5}{key:26}{trained['metrics'][key]:9.1f}{floor:13.1f}{baseline['metrics'][key]:13.1f}")
    (demo.out / "results.json").write_text(json.dumps({"rows": rows, "seconds": demo.seconds}, indent=1))
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in demo.seconds.items())
    print(f"\n{stages}; together {sum(demo.seconds.values()) / 60:.1f} min")


if __name__ == "__main__":
    main()
