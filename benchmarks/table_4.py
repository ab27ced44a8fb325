"""Table 4 of the paper on the rendered world: either tower frozen or finetuned, on pictures like those that the toy
tower was trained on (studio) and on pictures that it has never seen (sketch).

Claim: in the unseen style frozen tokens are poor, and finetuning the image tower mends it on held-out videos. Each run
starts from the checkpoint that ships (`--init toy`); every seed trains all cells on the same videos, and all are
evaluated on the same videos of another world of the style (its largest split, so that they are many). A difference
between cells is over the same seeds, with its 95 % interval (Student's t); one that contains 0 is "not resolved".
Finished runs are skipped, so an interrupted benchmark resumes.

    python benchmarks/table_4.py --out DIR [--videos 120] [--frames 96] [--seeds 0 1 2] [--epochs 6] [--task tal]
        [--styles sketch] [--cells frozen/frozen finetune/frozen]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CELLS = ("frozen/frozen", "frozen/finetune", "finetune/frozen", "finetune/finetune")  # image tower, text tower
TASKS = {  # converter, annotations, name of the largest split, metric
    "tal": ("activitynet", "activitynet.json", "training", "mAP@0.50"),
    "mr": ("activitynet-captions", "activitynet_captions", "train", "R1@0.5"),
    "as": ("coin", "coin.json", "training", "mAP"),
}
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # two-sided, 95 %, by number of seeds


def unloc(*arguments: object) -> None:
    """One `unloc` command; the benchmark ends where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"$ unloc {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "unloc", *words], check=True, stdout=subprocess.DEVNULL)


def make_world(folder: Path, videos: int, seed: int, style: str, args: argparse.Namespace) -> None:
    """Videos, manifest of the task and cache of the shipped tower."""
    converter, source, *_ = TASKS[args.task]
    unloc("data", "synth", folder / "world", "--videos", videos, "--seed", seed, "--style", style)
    annotations, manifest = folder / "world/annotations" / source, folder / f"{args.task}.jsonl"
    unloc("data", "convert", converter, "--annotations", annotations, "--out", manifest)
    extract(folder, folder / "cache", "toy", args)


def extract(folder: Path, cache: Path, tower: object, args: argparse.Namespace, *more: str) -> None:
    """Tokens of the videos of a world by a tower."""
    words = ["--cache", cache, "--tower", tower, "--frames", args.frames, *more]
    unloc("extract", folder / f"{args.task}.jsonl", "--videos", folder / "world/videos", *words)


def scored(folder: Path, cell: str, seed: int, args: argparse.Namespace) -> float:
    """The metric of one cell and seed on the held-out world, trained where it is not yet."""
    *_, split, metric = TASKS[args.task]
    image, text = cell.split("/")
    run, held_out = folder / "runs" / f"{args.task}-{image}-{text}-{seed}", folder / "held_out"
    report = run / "held_out" / "metrics.json"
    if not report.is_file():
        towers = ["towers.name=toy", f"towers.image={image}", f"towers.text={text}"]
        loop = ["optim.tower_lr=0.001", f"train.seed={seed}", f"train.epochs={args.epochs}"]
        loop += [f"data.num_frames={args.frames}", f"data.num_steps={args.frames}"]
        data = ["--cache", folder / "cache"] if image == "frozen" else ["--frames", folder / "frames"]
        state = ["--resume"] if (run / "checkpoints").exists() else ["--overwrite"]
        words = ["--manifest", folder / f"{args.task}.jsonl", *data, "--work-dir", run, "--init", "toy", *state]
        unloc("fit", f"synth_{args.task}", *towers, *loop, *words)
        cache = held_out / "cache"
        if image == "finetune":
            cache = run / "cache"
            extract(held_out, cache, run, args, "--split", split)
        words = ["--manifest", held_out / f"{args.task}.jsonl", "--cache", cache, "--split", split]
        unloc("eval", run, *words, "--out", run / "held_out")
    return json.loads(report.read_text())["metrics"][metric]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    if len(values) < 2:
        return values[0], float("inf")
    return statistics.mean(values), STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("table_4"))
    parser.add_argument("--videos", type=int, default=120)
    parser.add_argument("--test-videos", type=int, default=150, help="of the other world")
    parser.add_argument("--frames", type=int, default=96, help="of a video, and steps of an example")
    parser.add_argument("--world-seed", type=int, default=4040)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--task", choices=list(TASKS), default="tal")
    parser.add_argument("--styles", nargs="+", default=["studio", "sketch"])
    parser.add_argument("--cells", choices=CELLS, nargs="+", default=CELLS, help="frozen/frozen first")
    args = parser.parse_args()
    metric, table = TASKS[args.task][-1], {}
    for style in args.styles:
        folder = args.out / style
        make_world(folder, args.videos, args.world_seed, style, args)
        make_world(folder / "held_out", args.test_videos, args.world_seed + 1, style, args)
        packing = ["--out", folder / "frames", "--frames", args.frames, "--size", 112]
        unloc("data", "pack", folder / f"{args.task}.jsonl", "--videos", folder / "world/videos", *packing)
        table[style] = {cell: [] for cell in args.cells}
        for seed in args.seeds:
            for cell in args.cells:
                value = scored(folder, cell, seed, args)
                table[style][cell].append(value)
                (args.out / f"table_4_{args.task}.json").write_text(json.dumps(table, indent=1))
    print(f"\n{args.task}, {metric}, image/text tower, {args.videos} videos, {len(args.seeds)} seeds, mean ± 95 %")
    for style, cells in table.items():
        frozen = cells["frozen/frozen"]
        for cell, values in cells.items():
            mean, half = interval(values)
            gain, width = interval([one - other for one, other in zip(values, frozen, strict=True)])
            verdict = "" if cell == "frozen/frozen" else f"   {gain:+.1f} ± {width:.1f} over frozen/frozen"
            verdict += ", not resolved" if cell != "frozen/frozen" and abs(gain) <= width else ""
            print(f"  {style:8} {cell:18} {mean:5.1f} ± {half:4.1f}{verdict}")


if __name__ == "__main__":
    main()
