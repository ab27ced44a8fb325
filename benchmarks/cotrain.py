"""One model for all tasks beside one model for each, on the rendered world.

Renders a world and extracts one cache. Each seed trains `cotrain_synth` once and the recipe of each task once, all from
the same start (the shipped moment retrieval checkpoint; --scratch: from nothing), and evaluates them on the test
splits. A difference is over the same seeds and videos; its 95 % interval is a bootstrap over both (videos as
`unloc eval --intervals` draws them, the same draws for both models). One that contains 0 is "not resolved". Finished
runs are skipped, so an interrupted benchmark resumes.

    python benchmarks/cotrain.py --out DIR [--videos 200] [--seeds 0 1 2] [--epochs 10] [--scratch] [key=value …]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from unloc.annotations.schema import cached_durations, load_manifest
from unloc.cache.opening import open_cache
from unloc.evaluation.evaluator import QUERY_TASKS, SCORES, align
from unloc.evaluation.protocols import protocol_for
from unloc.predictions.reading import read_predictions
from unloc.synth import toy_unloc_folder
from unloc.tasks import task_named

TASKS = {  # converter, annotations, test split, metrics besides the headline
    "mr": ("activitynet-captions", "activitynet_captions", "test", ("R1@0.7",)),
    "tal": ("activitynet", "activitynet.json", "testing", ("mAP@avg",)),
    "as": ("coin", "coin.json", "testing", ("F1@50",)),
    "hd": ("qvhighlights", "qvhighlights", "test", ("HL-min-VeryGood-mAP",)),
}
DRAWS = 1000


def unloc(*arguments: object) -> None:
    """One `unloc` command; the benchmark ends where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"$ unloc {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "unloc", *words], check=True, stdout=subprocess.DEVNULL)


def fitted(run: Path, recipe: str, *words: object) -> None:
    """Train a run that is not finished yet, and note its seconds."""
    if not (run / "seconds.json").is_file():
        began = time.perf_counter()
        unloc(
            "fit", recipe, *words, "--work-dir", run, "--resume" if (run / "recipe.yaml").is_file() else "--overwrite"
        )
        (run / "seconds.json").write_text(json.dumps(time.perf_counter() - began))


def predictions_of(run: Path, task: str, shared: list[object], split: str) -> Path:
    """The file of a run's predictions, made where it is not there yet."""
    folder = run / "test" / task
    if not (folder / "metrics.json").is_file():
        unloc("eval", run, "--task", task, *shared, "--split", split, "--out", folder)
    return next(folder.glob("predictions.json*"))


class Paired:
    """Metrics of pairs of models over the same videos, and their differences over draws of videos and seeds."""

    def __init__(self, task: str, manifest: Path, cache: Path, split: str) -> None:
        self.task, self.split = task, split
        self.selected = cached_durations(load_manifest(manifest), open_cache(cache)).select(split)
        self.rules = protocol_for(task, None, self.selected)
        self.drawn: list[list[tuple[dict, dict]]] = []  # of each seed, of each model: metrics, and of the draws

    def add(self, *files: Path) -> None:
        """The predictions of one seed's models."""
        pair = []
        for file in files:
            predictions = read_predictions(file, self.task, split=self.split).predictions
            predictions = align(predictions, self.selected) if self.task in QUERY_TASKS else predictions
            scores = SCORES[self.task](predictions, self.selected, self.rules)
            videos, rng = scores.num_videos, np.random.default_rng(0)
            draws = scores.drawn(rng.multinomial(videos, np.full(videos, 1 / videos), size=DRAWS))
            pair.append((scores.metrics(), draws))
        self.drawn.append(pair)

    def row(self, metric: str) -> dict[str, float]:
        """Means over the seeds, the difference (second minus first) and the ends of its interval."""
        one, other = (np.array([seed[model][0][metric] for seed in self.drawn]) for model in (0, 1))
        draws = np.array([seed[1][1][metric] - seed[0][1][metric] for seed in self.drawn])  # (seeds, draws)
        seeds = np.random.default_rng(1).integers(len(draws), size=(draws.shape[1], len(draws)))
        means = draws[seeds, np.arange(draws.shape[1])[:, None]].mean(axis=1)
        difference = float((other - one).mean())
        low, high = np.nanpercentile(means, (2.5, 97.5)) - np.nanmean(means) + difference
        return {"alone": one.mean(), "together": other.mean(), "difference": difference, "low": low, "high": high}


def main() -> None:
    """Train, evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cotrain"))
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--world-seed", type=int, default=2024)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, help="of all runs; default: those of the recipes")
    parser.add_argument("--fps", type=float, default=4.0)
    parser.add_argument("--scratch", action="store_true", help="start from nothing, not from the shipped checkpoint")
    parser.add_argument("overrides", nargs="*", help="key=value of all runs, such as train.batch_size=2")
    args = parser.parse_args()
    out, world, cache = args.out, args.out / "world", args.out / "cache"
    unloc("data", "synth", world, "--videos", args.videos, "--seed", args.world_seed)
    for task, (converter, source, *_) in TASKS.items():
        manifest = out / f"{task}.jsonl"
        unloc("data", "convert", converter, "--annotations", world / "annotations" / source, "--out", manifest)
        unloc("extract", manifest, "--videos", world / "videos", "--cache", cache, "--fps", args.fps)
    start = [] if args.scratch else ["--init", toy_unloc_folder("mr")]
    words = [*args.overrides, *([f"train.epochs={args.epochs}"] if args.epochs else []), "--cache", cache, *start]
    pairs = {task: Paired(task, out / f"{task}.jsonl", cache, TASKS[task][2]) for task in TASKS}
    seconds: dict[str, list[float]] = {"together": [], "alone": []}
    for seed in args.seeds:
        together, alone = out / "runs" / f"all-{seed}", {task: out / "runs" / f"{task}-{seed}" for task in TASKS}
        manifests = [word for task in TASKS for word in ("--manifest", f"{task}={out / task}.jsonl")]
        fitted(together, "cotrain_synth", f"train.seed={seed}", *words, *manifests)
        for task, run in alone.items():
            manifest = ["--manifest", out / f"{task}.jsonl"]
            fitted(run, f"synth_{task}", f"train.seed={seed}", *words, *manifest)
            shared = [*manifest, "--cache", cache]
            pairs[task].add(*(predictions_of(one, task, shared, TASKS[task][2]) for one in (run, together)))
        took = {run: json.loads((run / "seconds.json").read_text()) for run in (together, *alone.values())}
        seconds["together"].append(took[together])
        seconds["alone"].append(sum(took[run] for run in alone.values()))
    print(
        f"\n{args.videos} videos, seeds {args.seeds}, {'from nothing' if args.scratch else 'from the toy checkpoint'}"
    )
    print(f"{'task':5}{'metric':24}{'alone':>8}{'together':>10}{'difference':>12}   95 %")
    table = {}
    for task, paired in pairs.items():
        for metric in (task_named(task).headline, *TASKS[task][3]):
            row = table[f"{task} {metric}"] = paired.row(metric)
            verdict = ", not resolved" if row["low"] <= 0 <= row["high"] else ""
            print(f"{task:5}{metric:24}{row['alone']:8.1f}{row['together']:10.1f}{row['difference']:+12.1f}", end="")
            print(f"   {row['low']:+.1f} to {row['high']:+.1f}{verdict}")
    means = {name: float(np.mean(values)) for name, values in seconds.items()}
    print(f"training: one model {means['together']:.0f} s, four models {means['alone']:.0f} s")
    (out / "cotrain.json").write_text(json.dumps({"rows": table, "seconds": seconds}, indent=1, default=float))


if __name__ == "__main__":
    main()
