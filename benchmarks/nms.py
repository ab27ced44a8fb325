"""Soft-NMS of all rows at once against a plain loop, and beside torchvision's batched_nms.

Claim (issue 3): one vectorised implementation serves every query or class of a batch: 4,926 videos x 200 classes x 240
points in one run, each class of a video by itself, 100 kept, exactly what a loop over candidates keeps.

`soft_nms` takes the classes of a video as rows. The plain loop is the definition in numpy, one candidate at a time, and
is run on a few rows and scaled (`--loop-rows`); it must keep the same. torchvision's batched_nms is hard NMS on boxes
(start, 0, end, 1) with the class as its group: another result, there for scale. Segments are as a model gives them:
around the points of four levels, with scores of which most are low.

    taskset -c 2 python benchmarks/nms.py [--videos 4926] [--threads 1] [--json OUT]
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from unloc.ops.nms import soft_nms
from unloc.ops.points import decode_segments, make_points

CLASSES, STEPS, LEVELS = 200, 128, 4
SIGMA, THRESHOLD, KEPT, HARD_IOU = 0.3, 0.001, 100, 0.5


def video(number: int) -> tuple[Tensor, Tensor]:
    """(C, P, 2) segments in steps and (C, P) scores of one made-up video."""
    generator = torch.Generator().manual_seed(number)
    points = make_points(STEPS, LEVELS)
    displacements = 4 * torch.rand(CLASSES, len(points.steps), 2, generator=generator)
    logits = -5 + 2 * torch.randn(CLASSES, len(points.steps), generator=generator)
    return decode_segments(displacements, points).clamp(0, STEPS), logits.sigmoid()


def plain_soft_nms(segments: np.ndarray, scores: np.ndarray) -> tuple[list[int], list[float]]:
    """The definition, one row and one candidate at a time."""
    scores, index, kept = scores.copy(), [], []
    start, end = segments.T
    for _ in range(KEPT):
        best = int(scores.argmax())
        if scores[best] <= THRESHOLD:
            break
        index.append(best)
        kept.append(float(scores[best]))
        overlap = np.clip(np.minimum(end, end[best]) - np.maximum(start, start[best]), 0, None)
        union = (end - start) + (end[best] - start[best]) - overlap
        scores *= np.exp(-np.square(overlap / np.maximum(union, 1e-12)) / (2 * SIGMA))
        scores[best] = -1.0
    return index, kept


def vectorised(segments: Tensor, scores: Tensor) -> object:
    return soft_nms(segments, scores, sigma=SIGMA, score_threshold=THRESHOLD, max_detections=KEPT)


def hard(segments: Tensor, scores: Tensor) -> object:
    """torchvision's, over all candidates of a video above the threshold."""
    label, point = (scores > THRESHOLD).nonzero(as_tuple=True)
    chosen = segments[label, point]
    boxes = torch.stack([chosen[:, 0], torch.zeros(len(chosen)), chosen[:, 1], torch.ones(len(chosen))], dim=1)
    return batched_nms(boxes, scores[label, point], label, HARD_IOU)


def seconds_of(work: Callable[[Tensor, Tensor], object], segments: Tensor, scores: Tensor) -> float:
    started = time.perf_counter()
    work(segments, scores)
    return time.perf_counter() - started


def compared_with_the_loop(rows: int) -> tuple[float, float]:
    """Seconds a row of the loop and of `soft_nms` on the same rows; ends the run where they keep other things."""
    segments, scores = video(0)
    count = min(rows, CLASSES)
    plain_seconds, found = 0.0, []
    for row in range(count):
        one, score = segments[row].numpy(), scores[row].numpy()
        started = time.perf_counter()
        found.append(plain_soft_nms(one, score))
        plain_seconds += time.perf_counter() - started
    places, kept = vectorised(segments[:count], scores[:count])
    for row, (index, values) in enumerate(found):
        if places[row][kept[row] > 0].tolist() != index:
            raise SystemExit(f"row {row}: soft_nms keeps other candidates than the plain loop")
        if not np.allclose(kept[row][kept[row] > 0].numpy(), values, atol=1e-6):
            raise SystemExit(f"row {row}: soft_nms decays scores to other values than the plain loop")
    return plain_seconds / count, min(seconds_of(vectorised, segments, scores) for _ in range(5)) / CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4926)
    parser.add_argument("--loop-rows", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loop, row = compared_with_the_loop(args.loop_rows)
    print(f"one row of 240 points: plain loop {loop * 1e6:.0f} µs, soft_nms {row * 1e6:.0f} µs: {loop / row:.1f} times")
    seconds = {"soft_nms": 0.0, "batched_nms": 0.0}
    for number in range(args.videos):  # in turns on the same video; a video's candidates are made outside the clock
        segments, scores = video(number)
        seconds["soft_nms"] += seconds_of(vectorised, segments, scores)
        seconds["batched_nms"] += seconds_of(hard, segments, scores)
    print(f"{args.videos} videos x {CLASSES} classes x 240 points, {args.threads} threads, torch {torch.__version__}")
    rows = [("soft_nms", seconds["soft_nms"]), ("plain loop, scaled", loop * args.videos * CLASSES)]
    for name, total in [*rows, ("torchvision batched_nms", seconds["batched_nms"])]:
        print(f"  {name:24} {total:8.1f} s  {total / args.videos * 1e3:6.1f} ms a video")
    if args.json:
        result = {"videos": args.videos, "threads": args.threads, "loop_row_seconds": loop, "row_seconds": row}
        args.json.write_text(json.dumps(result | seconds, indent=1))


if __name__ == "__main__":
    main()
