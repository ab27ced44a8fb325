"""What the cache saves an epoch, and how long training waits for its data.

Claims (issue 12): an epoch above cached tokens takes at most 1/50 of an end-to-end epoch on the same videos; behind a
step of 20 ms the loop waits for data at most 5 % of the time, with 2,000 cached videos and with packed frames.

epochs    `unloc fit synth_mr` with the tower at random weights, as `unloc extract` and `unloc data pack --frames` feed
          it: seconds of the second epoch, above tokens and finetuning the image tower
waiting   the loader of `unloc fit` in front of a step that takes 20 ms of an accelerator and nothing of the CPU. As
          on a GPU, where DataLoader's thread receives batches and pins them, a thread takes them from the workers and
          copies them. A step is 64 videos of 64 tokens (charades_b), or --clip-frames packed frames of 256 pixels,
          cropped to 224. Where the cores decode fewer frames than that in 20 ms, no loader can keep up: what they
          decode is printed

    python benchmarks/fit.py [--tower ViT-B-16] [--videos 8] [--frames 16] [--clip-frames 8] [--workers 2] [--json OUT]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np
from cache_io import write_cache
from decoding import render
from torch import Tensor

from unloc.annotations.schema import Manifest, QueryRow, VideoRow, build_manifest, save_manifest
from unloc.cache.opening import open_cache
from unloc.cache.writing import write_texts
from unloc.config import Recipe
from unloc.examples.augment import ClipTransform
from unloc.examples.examples import Examples
from unloc.examples.frame_source import FrameShards
from unloc.examples.loader import Loader
from unloc.examples.sources import CachedTokens, Source
from unloc.model.clip import image_config, pretrained_clip
from unloc.recipes import load_recipe
from unloc.training.inputs import tokenizer
from unloc.training.run import fit_recipe
from unloc.video.frame_shards import FrameSpec, pack_frames
from unloc.video.preprocess import PreprocessSpec
from unloc.video.reading import FrameSampling

CACHED_VIDEOS, STEP_SECONDS, STEPS, FIRST = 2000, 0.02, 300, 100  # the first steps start workers and open the cache


def manifest_of(names: list[str], seconds: float) -> Manifest:
    """A query for each video, all of one split."""
    rows = []
    for name in names:
        rows.append(VideoRow(name, "train", seconds))
        rows.append(QueryRow(name, "train", name, f"what {name} shows", [[0.2 * seconds, 0.6 * seconds]]))
    return build_manifest(name="bench", tasks=("mr",), rows=rows)


def epochs(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of an epoch above cached tokens and from pixels, on the videos of a folder, whose frames are packed."""
    words = ["--tower", args.tower, "--pretrained", "none", "--frames", str(args.frames), "--workers", "0"]
    words = ["extract", folder / "m.jsonl", "--videos", folder / "videos", "--cache", folder / "cache", *words]
    subprocess.run([sys.executable, "-m", "unloc", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    overrides = [f"towers.name={args.tower}", "towers.pretrained=none", f"data.num_steps={args.frames}"]
    overrides += [f"data.num_frames={args.frames}", "data.fps=null", "data.train_split=train", "data.val_split="]
    overrides += ["train.batch_size=2", "train.epochs=2", "model.num_levels=3", "targets.range_edges=[0,4,8,inf]"]
    live = ["towers.image=finetune", "towers.text=frozen"]
    seconds = {}
    for kind, data, more in (("cache", "cache", []), ("frames", "frames", live)):
        recipe, ends = load_recipe("synth_mr", overrides + more), []
        fit = partial(fit_recipe, recipe, folder / "m.jsonl", folder / data, folder / f"run-{kind}", kind=kind)
        fit(on_step=lambda *step, ends=ends: ends.append(time.perf_counter()))
        seconds[kind] = ends[-1] - ends[len(ends) // 2 - 1]
    return seconds


def waiting(source: Source, manifest: Manifest, recipe: Recipe, workers: int) -> dict[str, float]:
    """Seconds that a batch takes without any worker, and the share of time that a step of 20 ms waits with them."""
    examples = Examples("mr", manifest, source, recipe.data)
    started = time.perf_counter()
    for _ in Loader(examples, None, recipe).batches(0, 10):
        pass
    alone, waited = (time.perf_counter() - started) / 10, 0.0
    received = Queue(2)

    def receive() -> None:
        for batch in Loader(examples, None, recipe, workers=workers).batches(0, STEPS + FIRST):
            received.put(batch._mapped(Tensor.clone))  # a pinned batch is a copy too; the workers' memory is given back

    Thread(target=receive).start()
    for step in range(STEPS + FIRST):
        if step == FIRST:
            waited, started = 0.0, time.perf_counter()
        before = time.perf_counter()
        received.get()
        waited += time.perf_counter() - before
        time.sleep(STEP_SECONDS)
    return {"batch_seconds": alone, "share": waited / (time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", default="ViT-B-16")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--clip-frames", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        names = [f"v{number}" for number in range(args.videos)]
        files = {name: folder / "videos" / f"{name}.mp4" for name in names}
        for path in files.values():
            render(path, "libx264", {"preset": "veryfast"}, 250)
        manifest = manifest_of(names, 10.0)
        save_manifest(manifest, folder / "m.jsonl")
        spec = FrameSpec(sampling=FrameSampling(num_frames=args.frames), size=256)
        pack_frames(names, files, folder / "frames", spec)

        seconds = epochs(folder, args)
        ratio = seconds["frames"] / seconds["cache"]
        print(
            f"an epoch of {args.videos} videos x {args.frames} frames, {args.tower}: cached {seconds['cache']:.3f} s, ",
            end="",
        )
        print(f"end to end {seconds['frames']:.1f} s, {ratio:.0f} times as long", flush=True)

        write_cache(folder / "large", CACHED_VIDEOS)
        many = manifest_of([f"v{number}" for number in range(CACHED_VIDEOS)], 64.0)
        tokens = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float16)
        write_texts(folder / "large", [(text, tokens) for text in many.queries["text"]], "float16")
        waits = {}
        recipe = load_recipe("charades_b", ["data.train_split=train", "data.val_split="])
        source = CachedTokens(open_cache(folder / "large"))
        waits["2,000 cached videos, 64 a step"] = waiting(source, many, recipe, args.workers)

        overrides = ["data.train_split=train", "data.val_split=", "train.batch_size=1"]
        recipe = load_recipe("charades_b", [*overrides, f"data.num_steps={args.clip_frames}"])
        spec = FrameSpec(sampling=FrameSampling(num_frames=args.clip_frames), size=256)
        pack_frames(names, files, folder / "few", spec)
        clip, *_ = pretrained_clip(args.tower, "none", None)
        transform = ClipTransform(PreprocessSpec(**image_config(clip)), recipe.augment)
        source = FrameShards(folder / "few", tokenizer(recipe, clip), transform)
        waits[f"packed frames, {args.clip_frames} a step"] = waiting(source, manifest, recipe, args.workers)
    for kind, found in waits.items():
        print(
            f"{kind}: {1000 * found['batch_seconds']:.1f} ms a batch in one process; with {args.workers} workers a ",
            end="",
        )
        print(f"step of 20 ms waits {found['share']:.1%} of the time")
    print(f"one core prepares {args.clip_frames / found['batch_seconds']:.0f} packed frames a second")
    if args.json:
        args.json.write_text(json.dumps({"epoch_seconds": seconds, "ratio": ratio, "waiting": waits}, indent=1))


if __name__ == "__main__":
    main()
