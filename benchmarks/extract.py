"""CPU seconds of `unloc extract` over the floor of its parts, and its frames/s over those of a plain script; one run.

    taskset -c 2,3 python benchmarks/extract.py [--clips 16] [--frames 32] [--rounds 3] [--towers ViT-B-32 ViT-B-16]

floor     CPU seconds of decoding alone + resizing alone + tower alone, each in one process on one thread at its best
extract   CPU seconds of the whole tree of processes (driver, Ray, workers, decoders), less those of a run over two
          tiny clips per worker: the start-up of Ray and of the towers, and their trial of batches of two videos
plain     what a user would write: one process, decord's get_batch, open_clip's transform on PIL images, float32, one
          .npy per video, torch's own threads
split     the same with --encoders 1: frames cross the object store, here without an accelerator to pay for it
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from decoding import render
from process_tree import Watched, watch

from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.preprocess import resize_and_crop
from unloc.video.reading import open_video

RATE, PLAIN_CLIPS = 25, 2


def write_inputs(folder: Path, num_clips: int, seconds: float) -> Path:
    """Clips and the manifest that names them."""
    (folder / "videos").mkdir(parents=True)
    rows = [{"kind": "manifest", "version": 1, "name": "bench", "tasks": ["mr"]}]
    for number in range(num_clips):
        options = {"preset": "veryfast", "g": "12" if number % 2 else "250", "bf": "2"}
        render(folder / "videos" / f"v{number:03}.mp4", "libx264", options, int(seconds * RATE))
        rows.append({"kind": "video", "video_id": f"v{number:03}", "split": "test", "duration_seconds": seconds})
    manifest = folder / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return manifest


def cpu_seconds_of_parts(config: EncodeConfig, videos: list[Path]) -> dict[str, float]:
    """CPU seconds of each part alone."""
    torch.set_num_threads(1)
    encoder, parts, images = Encoder(config), {}, []
    start = time.process_time()
    for path in videos:
        reader = open_video(path)
        facts = reader.facts
        wanted = config.times(facts.first_seconds, facts.last_seconds, facts.end_seconds)
        images += [shown.image for shown in reader.frames_at(wanted)]
    parts["decode"] = time.process_time() - start
    start = time.process_time()
    pixels = [resize_and_crop(image, encoder.preprocess).numpy() for image in images]
    parts["preprocess"] = time.process_time() - start
    pixels = np.stack(pixels)[:, None]
    start = time.process_time()
    for first in range(0, len(pixels), 16):
        encoder.start_encoding(pixels[first : first + 16])()
    return parts | {"tower": time.process_time() - start}


PLAIN = """
import sys, time
from pathlib import Path
import decord, numpy as np, open_clip, torch
from PIL import Image
tower, out, count, *videos = sys.argv[1:]
model, _, transform = open_clip.create_model_and_transforms(tower)
model.eval()
started = time.perf_counter()
for path in videos:
    reader = decord.VideoReader(path)
    frames = reader.get_batch(np.linspace(0, len(reader) - 1, int(count)).astype(int)).asnumpy()
    with torch.no_grad():
        tokens = model.encode_image(torch.stack([transform(Image.fromarray(frame)) for frame in frames]))
    np.save(Path(out) / Path(path).stem, tokens.numpy())
print(len(videos) * int(count) / (time.perf_counter() - started))
"""


def plain_frames_per_second(tower: str, folder: Path, frames: int, videos: list[Path]) -> float:
    """Without start-up, as for ours."""
    words = [sys.executable, "-c", PLAIN, tower, folder, frames, *videos]
    return float(subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout)


def extract(inputs: Path, cache: Path, words: list[str]) -> Watched:
    """One run of the command."""
    arguments = ["extract", inputs / "m.jsonl", "--videos", inputs / "videos", "--cache", cache, *words]
    return watch([sys.executable, "-m", "unloc", *map(str, arguments)])


def compare(tower: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Figures of one tower: every quantity the smallest of the rounds, in each of which all are measured in turn."""
    cores = len(os.sched_getaffinity(0))
    videos = sorted((folder / "all" / "videos").iterdir())
    frames = len(videos) * arguments.frames
    config = EncodeConfig(tower=tower, pretrained="none", num_frames=arguments.frames, tower_dtype="auto")
    words = ["--tower", tower, "--pretrained", "none", "--frames", arguments.frames, "--dtype", "auto"]
    ways = {"fused": [*words, "--workers", cores], "split": [*words, "--workers", cores - 1, "--encoders", 1]}
    parts, runs, plain = [], {name: [] for name in ways}, 0.0
    for number in range(arguments.rounds):
        parts.append(cpu_seconds_of_parts(config, videos))
        for name, options in ways.items():
            start_up = extract(folder / "tiny", folder / f"{tower}-{name}-tiny{number}", options)
            whole = extract(folder / "all", folder / f"{tower}-{name}{number}", options)
            runs[name].append((start_up.total_cpu_seconds, whole.total_cpu_seconds, start_up.seconds, whole.seconds))
        plain = max(plain, plain_frames_per_second(tower, folder, arguments.frames, videos[:PLAIN_CLIPS]))
    best = {name: min(each[name] for each in parts) for name in parts[0]}
    floor, told = sum(best.values()), "  ".join(f"{name} {value:.1f}" for name, value in best.items())
    print(f"\n{tower}: {frames} frames; floor {floor:.1f} CPU s ({told}), {cores} cores")
    for name, measured in runs.items():
        start_cpu, whole_cpu, start_wall, whole_wall = map(min, zip(*measured, strict=True))
        cpu, wall = whole_cpu - start_cpu, whole_wall - start_wall
        print(
            f"  {name}: {cpu:.1f} CPU s = {cpu / floor:.2f} x floor; {wall:.1f} s wall = {wall / floor * cores:.2f} x "
            f"floor / cores; {frames / wall:.1f} frames/s; start-up {start_wall:.1f} s, {start_cpu:.1f} CPU s; "
            f"{frames / wall / plain:.1f} times as fast as plain"
        )
    print(f"  plain: {plain:.1f} frames/s", flush=True)


def main() -> None:
    """Render, then measure each tower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--towers", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder / "all", arguments.clips, arguments.seconds)
        write_inputs(folder / "tiny", 2 * len(os.sched_getaffinity(0)), 0.2)
        for tower in arguments.towers:
            compare(tower, folder, arguments)


if __name__ == "__main__":
    main()
