"""How far equal scores leave moment retrieval to chance: its metrics under the worst and the best order of them."""

from collections.abc import Sequence

import numpy as np

from unloc.annotations.schema import Manifest
from unloc.evaluation.retrieval import PROTOCOLS, RANKS, THRESHOLDS, align, best_first, finite_ratio, truth_of
from unloc.predictions.records import MomentPrediction


def tie_spans(
    predictions: Sequence[MomentPrediction], manifest: Manifest, metrics: dict[str, float], protocol: str
) -> dict[str, list[float]]:
    """[lowest, highest] in percent of every metric of `moment_retrieval` that the order of equal scores can move.

    Empty for the protocols that go by the file's order. `metrics` are those under our own rule.
    """
    rules = PROTOCOLS.get(protocol)
    if rules is None or not rules.by_score:
        return {}
    moved: dict[str, np.ndarray] = {}
    truth = truth_of(manifest, clamp=rules.clamps_truth)
    for item, windows in zip(align(predictions, manifest), truth, strict=True):
        if item is None or not len(windows) or len(set(item.windows[:, 2].tolist())) == len(item.windows):
            continue
        ratios = finite_ratio(best_first(item.windows)[:, None], windows[None]).max(axis=1)
        for name, ends in query_spans(ratios, np.sort(item.windows[:, 2])[::-1]).items():
            moved[name] = moved.get(name, np.zeros(2)) + ends
    share = 100.0 / max(1, len(truth))
    return {name: (metrics[name] + share * ends).tolist() for name, ends in moved.items() if ends.any()}


def query_spans(ratios: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """(2,) how far each metric of one query can fall and rise from its value under our order.

    `ratios` (N,) are the IoUs of the windows by falling `scores` (N,).
    """
    top = ratios[scores == scores[0]]
    spans = {"mIoU": np.array([top.min(), top.max()]) - ratios[0]}
    for rank in RANKS:
        last = scores[min(rank, len(scores)) - 1]
        certain, tied = scores > last, scores == last
        left_out = int(tied.sum()) - (min(rank, len(scores)) - int(certain.sum()))
        for threshold in THRESHOLDS:
            reached = ratios >= threshold
            lowest = reached[certain].any() or reached[tied].sum() > left_out
            highest = reached[certain].any() or reached[tied].any()
            ours = reached[:rank].any()
            spans[f"R{rank}@{threshold}"] = np.array([lowest, highest], dtype=float) - float(ours)
    return spans
