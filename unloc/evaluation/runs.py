"""Segmental F1 and edit score: how well runs of equal labels are found, whatever their length."""

from itertools import pairwise

import numpy as np

OVERLAPS = (0.10, 0.25, 0.50)
ROUNDING = 1e-9  # of IoU: ten frames of 0.1 s are a second, whatever the floating point says
BACKGROUND = -1


def runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(class, first frame, frame after) of every run that is not background."""
    edges = np.flatnonzero(np.r_[True, np.diff(labels) != 0, True]) if len(labels) else np.zeros(1, dtype=int)
    pieces = pairwise(edges)
    return [(int(labels[first]), int(first), int(after)) for first, after in pieces if labels[first] != BACKGROUND]


def run_counts(truth: np.ndarray, predicted: np.ndarray, edges: np.ndarray, overlap: float) -> tuple[int, int, int]:
    """(right, wrong, missed) predicted runs of one video whose frames lie between `edges` (frames + 1,) in seconds.

    A run is right if the run of its class that it overlaps best by IoU is free and reaches `overlap`.
    """
    wanted, found = _timed(runs(truth), edges), _timed(runs(predicted), edges)
    free = [True] * len(wanted)
    right = 0
    for run in found:
        ratios = [_run_ratio(run, item) for item in wanted]
        best = int(np.argmax(ratios)) if ratios else -1
        if best >= 0 and ratios[best] >= overlap - ROUNDING and free[best]:
            free[best] = False
            right += 1
    return right, len(found) - right, sum(free)


def f1_of(counts: np.ndarray) -> float:
    """F1 of (right, wrong, missed); 1 where there is nothing to find and nothing found."""
    right, wrong, missed = map(float, counts)
    total = 2 * right + wrong + missed
    return 2 * right / total if total else 1.0


def _timed(found: list[tuple[int, int, int]], edges: np.ndarray) -> list[tuple[int, float, float]]:
    return [(label, float(edges[first]), float(edges[after])) for label, first, after in found]


def _run_ratio(one: tuple[int, float, float], other: tuple[int, float, float]) -> float:
    if one[0] != other[0]:
        return 0.0
    overlap = min(one[2], other[2]) - max(one[1], other[1])
    hull = max(one[2], other[2]) - min(one[1], other[1])
    return max(overlap, 0.0) / hull if hull > 0 else 0.0


def edit_score(truth: np.ndarray, predicted: np.ndarray) -> float:
    """1 - Levenshtein distance of the two sequences of classes over the longer one; 1 where both are empty."""
    wanted, found = [run[0] for run in runs(truth)], [run[0] for run in runs(predicted)]
    if not wanted and not found:
        return 1.0
    previous = np.arange(len(found) + 1)
    for row, label in enumerate(wanted, start=1):
        current = np.empty_like(previous)
        current[0] = row
        for column, other in enumerate(found, start=1):
            replaced = previous[column - 1] + (label != other)
            current[column] = min(previous[column] + 1, current[column - 1] + 1, replaced)
        previous = current
    return 1.0 - previous[-1] / max(len(wanted), len(found))
