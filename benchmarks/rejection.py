"""Does a model say that a query is not in the video? Rendered videos, half of their queries null.

in-domain: a sentence of another video whose action nobody shows here, so that look or motion alone may be here;
same object: what an object that is here does not do (the world's own null queries);
out-of-domain: sentences on animals, sport, kitchens, whose words the rendered world does not have.
Rows: the calibrated existence score of the run, and the score of its best moment in place of it.

Usage: python benchmarks/rejection.py [--videos 100] [--seed 9090] [--checkpoint toy] [--out rejection]     5 minutes
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest, load_manifest, save_manifest
from unloc.inference.load import load_model
from unloc.synth import toy_unloc_folder
from unloc.synth.events import plan_video

SPLIT = "test"
OUTSIDE = (
    "A dog runs along the beach.",
    "A man fries an egg in a pan.",
    "The goalkeeper saves a penalty.",
    "Two children build a snowman.",
    "A woman plays the violin on a stage.",
    "Someone opens the fridge and takes out milk.",
    "A horse jumps over a fence.",
    "The teacher writes a formula on the board.",
    "A bird feeds its young in the nest.",
    "A man changes the tyre of a car.",
    "The crowd cheers in the stadium.",
    "She pours coffee into a cup.",
)
SHOWN = ("AUROC", "Rej-F1@0.4", "Rej-P@0.4", "Rej-R@0.4", "Acc@0.4", "R1@0.5", "kept-R1@0.5", "G-mIoU@1")


def with_nulls(manifest: Manifest, seed: int, kind: str) -> Manifest:
    """The test split with as many null queries as others."""
    test, rng = manifest.select(SPLIT), np.random.default_rng(0)
    plans = {plan.video_id: plan for plan in (plan_video(seed, int(name[-5:])) for name in test.videos["video_id"])}
    rows, action_of = test.queries, {}
    for video_id, own in rows.groupby("video_id", sort=False):
        action_of |= {qid: event.action for qid, event in zip(own["qid"], plans[video_id].events, strict=True)}
    texts = []
    for video_id in rows["video_id"]:
        shown = {event.action for event in plans[video_id].events}
        others = [text for qid, text in zip(rows["qid"], rows["text"], strict=True) if action_of[qid] not in shown]
        texts.append(str(rng.choice(others if kind == "in-domain" else OUTSIDE)))
    null = rows.assign(text=texts, qid="null-" + rows["qid"].astype(str), segments=[[] for _ in texts])
    return replace(test, queries=pd.concat([rows, null], ignore_index=True))


def unloc(*words: object) -> None:
    """Run a command of unloc. Raises where it fails."""
    subprocess.run([sys.executable, "-m", "unloc", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--seed", type=int, default=9090)
    parser.add_argument("--checkpoint", default="toy")
    parser.add_argument("--out", type=Path, default=Path("rejection"))
    options = parser.parse_args()
    run = toy_unloc_folder("mr") if options.checkpoint == "toy" else Path(options.checkpoint)
    out, rows = options.out, {}
    unloc("data", "synth", out / "world", "--videos", options.videos, "--seed", options.seed)
    for name in ("activitynet-captions", "gmr"):
        annotations = out / "world/annotations" / name.replace("-", "_")
        unloc("data", "convert", name, "--annotations", annotations, "--out", out / f"{name}.jsonl")
    plain, same_object = (load_manifest(out / f"{name}.jsonl") for name in ("activitynet-captions", "gmr"))
    for kind in ("in-domain", "same object", "out-of-domain"):
        manifest = out / f"{kind}.jsonl"
        save_manifest(same_object if kind == "same object" else with_nulls(plain, options.seed, kind), manifest)
        fps = load_model(run).info.fingerprint["sampling.fps"]
        unloc("extract", manifest, "--videos", out / "world/videos", "--cache", out / "cache", "--fps", fps)
        given = ["--manifest", manifest, "--cache", out / "cache", "--split", SPLIT, "--rejection"]
        unloc("eval", run, *given, "--out", out / kind)
        lines = [json.loads(line) for line in (out / kind / "predictions.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("pred_exist_score", None)
        unscored = out / f"{kind}-best-moment.jsonl"
        unscored.write_text("".join(json.dumps(line) + "\n" for line in lines))
        unloc("eval", "--predictions", unscored, *given, "--out", out / f"{kind}-best-moment")
        for name, folder in (("calibrated", kind), ("best moment", f"{kind}-best-moment")):
            report = json.loads((out / folder / "metrics.json").read_text())
            rows[f"{kind}, {name}"] = report["metrics"]
        rows[f"{kind}, *reject all*"] = report["floors"]["reject_all"]
    print(f"\n| | {' | '.join(SHOWN)} |\n|---|{'--:|' * len(SHOWN)}")
    for name, metrics in rows.items():
        print(f"| {name} | {' | '.join(f'{metrics[key]:.1f}' for key in SHOWN)} |")


if __name__ == "__main__":
    main()
