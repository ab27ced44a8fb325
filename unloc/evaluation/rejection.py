"""Null queries, "not in this video", as two official codes score them: generalized moment retrieval and NA-VMR.

A query whose annotation has no window is null. Its existence score is what the prediction states, else the best score
of its windows, else 0. GMR accepts above the threshold, counts IoU at least the threshold and takes windows in the
file's order: each takes the free moment of highest IoU, in G-mIoU and mIoU also at IoU 0. NA-VMR accepts at the
threshold and needs IoU above it. Scores of the windows ignore the decision, except G-mIoU, kept-R1 and NA-VMR's recall.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unloc.annotations.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.detection import hull_ratio, overlap_over_union
from unloc.evaluation.protocols import RejectionProtocol
from unloc.evaluation.retrieval import QVHIGHLIGHTS_THRESHOLDS, THRESHOLDS, QueryKeys, QueryScores, average_precision
from unloc.predictions.records import MomentPrediction

Answers = Sequence[Sequence[MomentPrediction]]
"""The predictions of every query of a manifest in the order of their file: none, one, or those that repeat its id."""


def answers_of(predictions: Sequence[MomentPrediction], manifest: Manifest) -> Answers:
    """The predictions of every query, by qid, else by video and sentence; of a file in line order, by their place."""
    if any(item.by_line for item in predictions):
        return [predictions[row : row + 1] for row in range(len(manifest.queries))]
    keys, found = QueryKeys(manifest), defaultdict(list)
    for item in predictions:
        found[keys.of(item)].append(item)
    return [found.get(by_qid) or found.get(by_text, []) for by_qid, by_text in keys.pairs]


@dataclass(frozen=True)
class RejectionScores(QueryScores):
    """Means over queries, and what the decisions on all of them give."""

    is_null: np.ndarray  # (queries,)
    existence: np.ndarray  # (queries,) NaN ranks highest in AUROC and is rejected
    rules: RejectionProtocol

    def metrics(self) -> dict[str, float]:
        """All metrics in percent; as officially, what no query defines is 0 in GMR."""
        decided = self._decided(np.ones((1, len(self.is_null))))
        means = super().metrics()
        if not self.rules.at_threshold:
            means = {name: 0.0 if np.isnan(value) else value for name, value in means.items()}
        return {name: float(values[0]) for name, values in decided.items()} | means

    def drawn(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """(draws,) of each metric in percent for weights (draws, videos)."""
        return self._decided(weights[:, np.unique(self.video_ids, return_inverse=True)[1]]) | super().drawn(weights)

    def _decided(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """(draws,) of AUROC and, for each threshold, Rej-F1, Rej-P, Rej-R (of nulls) and Acc, for (draws, queries)."""
        null, positive = weights * self.is_null, weights * ~self.is_null
        rank = np.unique(self.existence, return_inverse=True)[1]
        order = np.argsort(rank, kind="stable")
        starts = np.searchsorted(rank[order], np.arange(rank.max() + 1))
        at_score, above = (np.add.reduceat(kind[:, order], starts, axis=1) for kind in (null, positive))
        below = np.cumsum(at_score, axis=1) - at_score / 2  # nulls with a lower score, and half of those with this one
        pairs = null.sum(axis=1) * positive.sum(axis=1)
        found = {"AUROC": _share((above * below).sum(axis=1), pairs, undefined=0.5)}
        for threshold in self.rules.thresholds:
            rejected = ~self.rules.accepts(self.existence, threshold)
            right, wrong, missed = null @ rejected, positive @ rejected, null @ ~rejected
            found[f"Rej-F1@{threshold:g}"] = _share(2 * right, 2 * right + wrong + missed)
            found[f"Rej-P@{threshold:g}"] = _share(right, right + wrong)
            found[f"Rej-R@{threshold:g}"] = _share(right, right + missed)
            found[f"Acc@{threshold:g}"] = _share(right + positive @ ~rejected, weights.sum(axis=1))
        return {name: 100.0 * values for name, values in found.items()}


def _share(part: np.ndarray, whole: np.ndarray, undefined: float = 0.0) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), undefined), where=whole > 0)


def rejection_scores(answers: Answers, manifest: Manifest, rules: RejectionProtocol) -> RejectionScores:
    """The scores of all queries that have a prediction; as officially the others count nowhere. Raises InputError if
    none of them is positive.
    """
    keys = QueryKeys(manifest)
    rows = [row for row, found in enumerate(answers) if found]
    video_ids = manifest.queries["video_id"].to_numpy(dtype=object)[rows]
    segments = [np.asarray(manifest.queries["segments"].iloc[row], dtype=np.float64).reshape(-1, 2) for row in rows]
    items = [answers[row][-1] for row in rows]
    is_null = np.array([not len(one) for one in segments], dtype=bool)
    if is_null.all():
        raise InputError(f"--rejection: all {len(rows)} queries with a prediction are null; at least one must not be")
    best = [max(own[~np.isnan(own)].tolist(), default=0.0) for own in (item.windows[:, 2] for item in items)]
    stated = [score if item.existence is None else item.existence for item, score in zip(items, best, strict=True)]
    existence = np.array(stated, dtype=np.float64)
    accepted = rules.accepts(existence, rules.thresholds[0])
    values = _first_window(items, segments, accepted, rules)
    if rules.at_threshold:
        values["Rejection Accuracy"] = np.where(is_null, ~accepted, np.nan)
        values |= {f"Recall@1, IoU@{at}": values[f"kept-R1@{at}"] for at in THRESHOLDS}
    else:
        ids = [keys.pairs[row][0] for row in rows]
        values |= _gmr_values([answers[row] for row in rows], segments, accepted, ids, rules)
    return RejectionScores(video_ids, values, is_null, existence, rules)


def _first_window(
    items: list[MomentPrediction], segments: list[np.ndarray], accepted: np.ndarray, rules: RejectionProtocol
) -> dict[str, np.ndarray]:
    """R1 at each IoU of the first window listed, over positives, and kept-R1, where a rejected positive is a miss."""
    best, reaches = np.full(len(items), np.nan), np.greater if rules.at_threshold else np.greater_equal
    for row, (item, truth) in enumerate(zip(items, segments, strict=True)):
        # In NA-VMR a first window [0, 0] says negative, whatever follows.
        if len(truth) and not (rules.at_threshold and not truth[0].any()):
            best[row] = np.fmax.reduce(hull_ratio(item.windows[:1, None, :2], truth[None]), axis=None, initial=0.0)
    values = {}
    for at in THRESHOLDS:
        hits = np.where(np.isnan(best), np.nan, reaches(best, at))
        values |= {f"R1@{at}": hits, f"kept-R1@{at}": np.where(accepted | np.isnan(hits), hits, 0.0)}
    return values


def _gmr_values(
    answers: list[Sequence[MomentPrediction]],
    segments: list[np.ndarray],
    accepted: np.ndarray,
    ids: list[tuple],
    rules: RejectionProtocol,
) -> dict[str, np.ndarray]:
    """mAP, mR, mR+, mIoU, mIoU+ and G-mIoU of every query; NaN where it does not count. mAP joins the lists of
    predictions and of moments with one id, G-mIoU takes the last of each; both count it once.
    """
    names = [f"{name}@{k}" for name in ("G-mIoU", "mR", "mR+", "mIoU", "mIoU+") for k in rules.ranks]
    values = {name: np.full(len(ids), np.nan) for name in ["mAP", *names]}
    last = {key: row for row, key in enumerate(ids)}
    lists, moments = [], defaultdict(list)
    for key, truth in zip(ids, segments, strict=True):
        moments[key].append(truth)
    for row in last.values():
        windows = np.concatenate([item.windows[: rules.max_windows] for item in answers[row]])
        lists.append(np.column_stack([windows[:, :2], np.where(np.isnan(windows[:, 2]), 1.0, windows[:, 2])]))
    joined = [np.concatenate(moments[key]) for key in last]
    values["mAP"][list(last.values())] = average_precision(lists, joined).mean(axis=1)
    for row, (found, truth, key) in enumerate(zip(answers, segments, ids, strict=True)):
        windows = found[-1].windows[:, :2]
        if last[key] == row:
            proper = windows[windows[:, 1] > windows[:, 0]][: rules.max_windows if accepted[row] else 0]
            matched = _taken(proper, truth, np.zeros(1))[:, 0]
            for k in rules.ranks:
                union = len(proper[:k]) + len(truth) - np.isfinite(matched[:k]).sum()
                values[f"G-mIoU@{k}"][row] = np.nansum(matched[:k]) / union if union else 1.0
        if not len(truth):
            continue
        taken = _taken(windows[: max(rules.ranks)], truth, np.array([-1.0, *QVHIGHLIGHTS_THRESHOLDS]))
        for k in rules.ranks:
            pairs, counts = taken[:k, 0], (~np.isnan(taken[:k, 1:])).sum(axis=0)
            pairs = np.sort(pairs[~np.isnan(pairs)])
            values[f"mR@{k}"][row] = (counts / len(truth)).mean()
            values[f"mIoU@{k}"][row] = pairs.mean() if len(pairs) else 0.0
            if len(truth) > 1:
                values[f"mR+@{k}"][row] = (np.maximum(0, counts - 1) / (len(truth) - 1)).mean()
                values[f"mIoU+@{k}"][row] = pairs[:-1].mean() if len(pairs) > 1 else 0.0
    return values


def _taken(windows: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(windows, thresholds) IoU of the moment that each window takes, NaN where it takes none; in order, each takes the
    free moment of highest IoU, of equal ones the earlier, if that reaches the threshold. 0/0 reaches none.
    """
    ratio = overlap_over_union(windows[:, None], truth[None])
    ratio = np.where(np.isinf(ratio), -np.inf, ratio)
    free, found = np.ones((len(thresholds), len(truth)), dtype=bool), np.full((len(windows), len(thresholds)), np.nan)
    for row, of_window in enumerate(ratio if len(truth) else ()):
        free_ratio = np.where(free, of_window, -np.inf)
        best = free_ratio.argmax(axis=1)
        highest = free_ratio[np.arange(len(thresholds)), best]
        hits = highest >= thresholds
        found[row, hits] = highest[hits]
        free[hits, best[hits]] = False
    return found
