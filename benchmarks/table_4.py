"""Table 4 of the paper on the rendered world: either tower frozen or finetuned, on pictures like those that the toy
tower was trained on (studio) and on pictures that it has never seen (sketch).

Claim: in the unseen style frozen tokens are poor, and finetuning the image tower mends it on held-out videos. Each run
starts from the checkpoint that ships (`--init toy`); every seed trains all four cells on the same videos. A difference
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
TASKS = {  # converter, annotations, training and validation and test split, metric
    "tal": ("activitynet", "activitynet.json", "testing", "mAP@0.50"),
    "mr": ("activitynet-captions", "activitynet_captions", "test", "R1@0.5"),
    "as": ("coin", "coin.json", "testing", "mAP"),
}
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # two-sided, 95 %, by number of seeds


def unloc(*arguments: object) -> None:
    """One `unloc` command; the benchmark ends where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"$ unloc {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "unloc", *words], check=True, stdout=subprocess.DEVNULL)


def scored(folder: Path, task: str, cell: str, seed: int, args: argparse.Namespace) -> float:
    """The metric of one cell and seed on the test split, trained where it is not yet."""
    *_, split, metric = TASKS[task]
    image, text = cell.split("/")
    manifest, run = folder / f"{task}.jsonl", folder / "runs" / f"{task}-{image}-{text}-{seed}"
    report = run / "eval" / split / "metrics.json"
    if not report.is_file():
        towers = ["towers.name=toy", f"towers.image={image}", f"towers.text={text}"]
        loop = ["optim.tower_lr=0.001", f"train.seed={seed}", f"train.epochs={args.epochs}"]
        loop += [f"data.num_frames={args.frames}", f"data.num_steps={args.frames}"]
        data = ["--cache", folder / "cache"] if image == "frozen" else ["--frames", folder / "frames"]
        state = ["--resume"] if (run / "checkpoints").exists() else ["--overwrite"]
        words = [*towers, *loop, "--manifest", manifest, *data, "--work-dir", run, "--init", "toy", *state]
        unloc("fit", f"synth_{task}", *words)
        cache = folder / "cache"
        if image == "finetune":
            cache = run / "cache"
            tower = ["--tower", run, "--frames", args.frames, "--split", split]
            unloc("extract", manifest, "--videos", folder / "world/videos", "--cache", cache, *tower)
        unloc("eval", run, "--manifest", manifest, "--cache", cache, "--split", split)
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
    parser.add_argument("--frames", type=int, default=96, help="of a video, and steps of an example")
    parser.add_argument("--world-seed", type=int, default=4040)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--task", choices=list(TASKS), default="tal")
    parser.add_argument("--styles", nargs="+", default=["studio", "sketch"])
    parser.add_argument("--cells", choices=CELLS, nargs="+", default=CELLS, help="frozen/frozen first")
    args = parser.parse_args()
    converter, source, _, metric = TASKS[args.task]
    table: dict[str, dict[str, list[float]]] = {}
    for style in args.styles:
        folder = args.out / style
        world, manifest = folder / "world", folder / f"{args.task}.jsonl"
        videos = world / "videos"
        unloc("data", "synth", world, "--videos", args.videos, "--seed", args.world_seed, "--style", style)
        annotations = world / "annotations" / source
        unloc("data", "convert", converter, "--annotations", annotations, "--out", manifest)
        unloc("extract", manifest, "--videos", videos, "--cache", folder / "cache", "--frames", args.frames)
        packing = ["--frames", args.frames, "--size", 112]
        unloc("data", "pack", manifest, "--videos", videos, "--out", folder / "frames", *packing)
        table[style] = {cell: [] for cell in args.cells}
        for seed in args.seeds:
            for cell in args.cells:
                value = scored(folder, args.task, cell, seed, args)
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
