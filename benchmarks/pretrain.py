"""Pretraining on labelled clips: does localization gain from a tower and a fusion that learned to classify clips?

Claim (issue 12 §5; paper §4.1.2): `unloc pretrain` on clips of one rendered world, a cache of its image tower, and
localization on another world that starts from it, score higher than the stock toy tower with localization from scratch.
Both arms see the same videos and take the same steps of localization, for each seed; both are evaluated on the largest
split of a third world. Intervals are 95 %: of a run over its test videos (bootstrap), of an arm and of the difference
over the seeds (Student's t).

    python benchmarks/pretrain.py --out OUT [--style sketch] [--clip-videos 120] [--videos 60] [--test-videos 75]
        [--seeds 0 1 2] [--set train.epochs=5 …] [--json FILE]

Finished runs are skipped, so an interrupted benchmark resumes. With `--style sketch` the worlds look as the stock
tower has never seen one.
"""

import argparse
import json
import statistics
from pathlib import Path

from demo import Demo

METRICS = ("mAP@0.50", "mAP@avg")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantiles, by the number of seeds


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds; without a width that is known, all numbers."""
    if len(values) not in STUDENT:
        return float("-inf"), float("inf")
    half = STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def make_data(demo: Demo, args: argparse.Namespace) -> None:
    """A world of clips with packed frames, two for localization, and the stock tower's cache of these."""
    out, style = args.out, ("--style", args.style)
    clips = out / "clips_world"
    words = ("--videos", args.clip_videos, "--seed", args.world_seed, "--clips", *style)
    demo.run("synth", "data", "synth", clips, *words)
    annotations = {"kinetics": ("kinetics", clips / "annotations/kinetics.csv")}
    worlds = {"world": args.videos, "test": args.test_videos}
    for seed, (name, videos) in enumerate(worlds.items(), start=args.world_seed + 1):
        demo.run("synth", "data", "synth", out / name, "--videos", videos, "--seed", seed, *style)
        annotations[name] = ("activitynet", out / name / "annotations/activitynet.json")
    for name, (converter, path) in annotations.items():
        demo.run("convert", "data", "convert", converter, "--annotations", path, "--out", out / f"{name}.jsonl")
    packing = ("--out", out / "frames", "--frames", 16, "--size", 128)
    demo.run("pack", "data", "pack", out / "kinetics.jsonl", "--videos", clips / "clips", *packing)
    extract(demo, out, "stock", "toy")


def extract(demo: Demo, out: Path, name: str, tower: object) -> None:
    """A cache of the videos for localization and test."""
    for world in ("world", "test"):
        words = ("--videos", out / world / "videos", "--cache", out / "caches" / name, "--tower", tower, "--fps", 4)
        demo.run("extract", "extract", out / f"{world}.jsonl", *words)


def localization(demo: Demo, out: Path, arm: str, seed: int, cache: str, *more: object) -> dict:
    """Train and evaluate; the metrics of the test world with their intervals over videos."""
    run, shared = out / "runs" / f"{arm}-{seed}", ("--cache", out / "caches" / cache)
    if not (run / "test/metrics.json").is_file():
        words = ("--manifest", out / "world.jsonl", *shared, "--work-dir", run, "--overwrite")
        demo.run("fit", "fit", "synth_tal", f"train.seed={seed}", *words, *more)
        words = ("--manifest", out / "test.jsonl", *shared, "--split", "training", "--out", run / "test", "--intervals")
        demo.run("eval", "eval", run, *words)
    report = demo.metrics(run / "test")
    return {name: {"value": report["metrics"][name], "interval": report["intervals"][name]} for name in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--style", default="studio", help="Of both worlds: studio or sketch.")
    parser.add_argument("--clip-videos", type=int, default=120, help="Videos whose events are the clips.")
    parser.add_argument("--videos", type=int, default=60, help="Videos for localization.")
    parser.add_argument("--test-videos", type=int, default=75, help="Videos of the test world; 70 % are evaluated.")
    parser.add_argument("--world-seed", type=int, default=7001, help="Of the clips; the next two are of the others.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="Overrides of synth_cls and synth_tal (train.epochs=5).")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    demo, out, rows = Demo(args.out), args.out, []
    make_data(demo, args)
    for seed in args.seeds:
        run = out / "runs" / f"clips-{seed}"
        words = ("--manifest", out / "kinetics.jsonl", "--frames", out / "frames", "--work-dir", run, "--overwrite")
        if not (out / "caches" / f"clips-{seed}" / "zarr.json").is_file():  # made once the run is finished
            demo.run("pretrain", "pretrain", "synth_cls", f"train.seed={seed}", *args.set, *words)
        extract(demo, out, f"clips-{seed}", run)
        rows.append({"seed": seed, "stock": localization(demo, out, "stock", seed, "stock", *args.set)})
        start = (f"clips-{seed}", *args.set, "--init", run)
        rows[-1]["pretrained"] = localization(demo, out, "pretrained", seed, *start)
    print(f"\n{args.style}: {args.clip_videos} videos of clips, {args.videos} of localization; {demo.seconds}")
    for name in METRICS:
        for row in rows:
            shown = (
                f"{arm} {row[arm][name]['value']:.1f} {[round(end, 1) for end in row[arm][name]['interval']]}"
                for arm in ("stock", "pretrained")
            )
            print(f"{name} seed {row['seed']}: {', '.join(shown)}")
        stock, pretrained = ([row[arm][name]["value"] for row in rows] for arm in ("stock", "pretrained"))
        differences = [other - one for one, other in zip(stock, pretrained, strict=True)]
        for arm, values in (("stock", stock), ("pretrained", pretrained), ("difference", differences)):
            low, high = interval(values)
            verdict = ", not resolved" if arm == "difference" and low <= 0 <= high else ""
            print(f"{name} {arm}: {statistics.mean(values):.1f} [{low:.1f}, {high:.1f}]{verdict}")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "seconds": demo.seconds}, indent=1))


if __name__ == "__main__":
    main()
