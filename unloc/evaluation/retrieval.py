"""Moment retrieval: R@n at IoU m, mIoU and QVHighlights' mAP, by the rules of `protocols`.

Ties by score: of equal scores the later entry goes first, which is UnLoc's reversed argsort wherever numpy sorts short
lists stably. On CPUs where it does not, UnLoc's own figure is one of several orders: `tie_spans`.
"""

from collections.abc import Sequence

import numpy as np

from unloc.annotations.schema import Manifest
from unloc.evaluation.matching import match, overlap_over_union
from unloc.evaluation.protocols import QVHIGHLIGHTS_RANGES, RetrievalProtocol, protocol_for
from unloc.evaluation.queries import Aligned, QueryScores, align, ground_truth_windows
from unloc.predictions.records import MomentPrediction

RANKS, THRESHOLDS = (1, 5, 10), (0.3, 0.5, 0.7)
QVHIGHLIGHTS_THRESHOLDS = np.round(np.linspace(0.5, 0.95, 10), 2)
MAX_WINDOWS = 10  # that QVHighlights' mAP reads of a list


def moment_retrieval(
    predictions: Sequence[MomentPrediction], manifest: Manifest, protocol: str = "default"
) -> dict[str, float]:
    """Metrics in percent over all queries of the (selected) manifest.

    R1, R5, R10 at IoU 0.3, 0.5, 0.7 and mIoU; by moment_detr and lighthouse also the official
    MR-{full,short,middle,long}-{mAP, mAP@0.5 … 0.95, R1@0.5 … 0.95}. A query without prediction is a miss. With
    several ground-truth windows the best counts. Raises InputError for an unknown protocol.
    """
    rules = protocol_for("mr", protocol, manifest)
    return retrieval_scores(align(predictions, manifest), manifest, rules).metrics()


def retrieval_scores(aligned: Aligned, manifest: Manifest, rules: RetrievalProtocol) -> QueryScores:
    """The same for every query: 1 or 0 for R@n, the IoU of the first window for mIoU."""
    truth = ground_truth_windows(manifest, clamp=rules.clamps_truth)
    if rules.ranges:
        kept = [_of_length(windows, *rules.ranges["full"]) for windows in truth]
        counted = np.array([len(windows) > 0 for windows in kept], dtype=bool)
    else:  # 2D-TAN's reader leaves out queries whose window is reversed after clamping
        kept, drops_reversed = truth, rules.nms_overlap is not None
        counted = np.array([not (drops_reversed and (w[:, 1] < w[:, 0]).any()) for w in truth], dtype=bool)
    best = np.zeros((len(truth), max(RANKS)))
    for row, (windows, prediction) in enumerate(zip(kept, aligned, strict=True)):
        if prediction is not None and len(prediction.windows) and len(windows):
            found = _first_ratios(prediction.windows, windows, rules)
            best[row, : len(found)] = found
    reached = np.fmax.accumulate(best, axis=1)
    compare = np.greater if rules.exceeds else np.greater_equal
    values = {
        f"R{rank}@{threshold}": compare(reached[:, rank - 1], threshold).astype(np.float64)
        for rank in RANKS
        for threshold in THRESHOLDS
    }
    values["mIoU"] = best[:, 0]
    values = {name: np.where(counted, column, np.nan) for name, column in values.items()}
    if rules.ranges:
        values |= _qvhighlights_values(aligned, truth, rules)
    return QueryScores(manifest.queries["video_id"].to_numpy(dtype=object), values)


def _first_ratios(windows: np.ndarray, truth: np.ndarray, rules: RetrievalProtocol) -> np.ndarray:
    """IoU of each of the first max(RANKS) windows with the ground truth (N, 2) that it overlaps best."""
    ratio = finite_ratio if rules.by_score else hull_ratio
    candidates = best_first(windows) if rules.by_score else windows[:, :2]
    if rules.nms_overlap is not None:
        # 2D-TAN: the file's order, each kept if its IoU with every kept one is at most the threshold. The IoU 0/0 of
        # two windows of length 0 is NaN, which is officially not at most anything.
        kept: list[int] = []
        left = np.ones(len(candidates), dtype=bool)
        while len(kept) < max(RANKS) and left.any():
            kept.append(int(left.argmax()))
            left &= overlap_over_union(candidates, candidates[kept[-1]]) <= rules.nms_overlap
            left[: kept[-1] + 1] = False
        candidates = candidates[kept]
    return np.fmax.reduce(ratio(candidates[: max(RANKS), None], truth[None]), axis=1)


def best_first(windows: np.ndarray) -> np.ndarray:
    """(N, 2) windows by falling score; of equal scores the later entry first."""
    return windows[np.argsort(windows[:, 2], kind="stable")[::-1], :2]


def finite_ratio(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of paired segments (…, 2); 0/0 is 0."""
    ratio = overlap_over_union(segments, others)
    return np.where(np.isfinite(ratio), ratio, 0.0)


def hull_ratio(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlap over the hull: the union of 2D-TAN and of QVHighlights' R1; 0/0 is NaN, which reaches no threshold."""
    overlap = np.minimum(segments[..., 1], others[..., 1]) - np.maximum(segments[..., 0], others[..., 0])
    hull = np.maximum(segments[..., 1], others[..., 1]) - np.minimum(segments[..., 0], others[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(overlap, 0.0) / hull


def _of_length(windows: np.ndarray, shortest: float, longest: float) -> np.ndarray:
    """The windows (N, 2) longer than `shortest` and at most `longest` seconds."""
    lengths = windows[:, 1] - windows[:, 0]
    return windows[(lengths > shortest) & (lengths <= longest)]


# -- QVHighlights ---------------------------------------------------------------------------------------------------


def _qvhighlights_values(
    aligned: Aligned, truth: Sequence[np.ndarray], rules: RetrievalProtocol
) -> dict[str, np.ndarray]:
    """moment_detr's own metrics for every query, also as Lighthouse applies them to other datasets.

    mAP: the first ten entries of a list, then by score (of equal scores the earlier first), matched as for detection;
    per query, then the mean. R1: the first entry, scores ignored. For a length range only the ground truth within it
    is kept and queries without any are left out; predictions are not filtered.
    """
    lists = [np.zeros((0, 3)) if item is None else item.windows[:MAX_WINDOWS] for item in aligned]
    entries = np.concatenate([*lists, np.zeros((0, 3))])
    owner = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    order = np.lexsort((-entries[:, 2], owner))
    owner, windows = owner[order], entries[order, :2]
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    values: dict[str, np.ndarray] = {}
    for name, (shortest, longest) in rules.ranges.items():
        kept = [_of_length(one, shortest, longest) for one in truth]
        counts = np.array([len(one) for one in kept], dtype=np.int64)
        truth_owner, truth_windows = np.repeat(np.arange(len(kept)), counts), np.concatenate([*kept, np.zeros((0, 2))])
        hits = np.zeros((len(kept), MAX_WINDOWS, len(QVHIGHLIGHTS_THRESHOLDS)))
        hits[owner, place] = match(owner, windows, truth_owner, truth_windows, QVHIGHLIGHTS_THRESHOLDS)
        precision = np.cumsum(hits, axis=1) / np.arange(1, MAX_WINDOWS + 1)[:, None]
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precision = (precision * hits).sum(axis=1) / np.maximum(counts, 1)[:, None]
        first = [
            float(np.fmax.reduce(hull_ratio(entries[0, :2][None], one))) if len(entries) and len(one) else 0.0
            for entries, one in zip(lists, kept, strict=True)
        ]
        reached = np.asarray(first)[:, None] >= QVHIGHLIGHTS_THRESHOLDS
        tables = {"mAP": precision, "R1": reached}
        tables = {kind: np.where(counts[:, None] > 0, table, np.nan) for kind, table in tables.items()}
        values[f"MR-{name}-mAP"] = tables["mAP"].mean(axis=1)
        for kind, table in tables.items():
            columns = zip(QVHIGHLIGHTS_THRESHOLDS, table.T, strict=True)
            values |= {f"MR-{name}-{kind}@{threshold}": column for threshold, column in columns}
    return values


def official_report(metrics: dict[str, float]) -> dict[str, dict]:
    """The metrics as moment_detr prints them: percent rounded to two decimals, in its keys and order."""
    rounded = {key: float(f"{value:.2f}") for key, value in metrics.items() if key.startswith(("MR-", "HL-"))}
    brief = [f"MR-full-{key}" for key in ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")]
    brief += [f"MR-{name}-mAP" for name in ("long", "middle", "short")]
    levels = [f"HL-min-{level}" for level in ("Fair", "Good", "VeryGood")]
    brief += [f"{level}-{key}" for level in levels for key in ("mAP", "Hit1")]
    report: dict[str, dict] = {"brief": {key: rounded[key] for key in brief if key in rounded}}
    for level in levels:
        if f"{level}-mAP" in rounded:
            report[level] = {"HL-mAP": rounded[f"{level}-mAP"], "HL-Hit1": rounded[f"{level}-Hit1"]}
    for name in QVHIGHLIGHTS_RANGES:
        if f"MR-{name}-mAP" in rounded:
            at = {
                kind: {str(t): rounded[f"MR-{name}-{kind}@{t}"] for t in QVHIGHLIGHTS_THRESHOLDS}
                for kind in ("mAP", "R1")
            }
            report[name] = {"MR-mAP": at["mAP"] | {"average": rounded[f"MR-{name}-mAP"]}, "MR-R1": at["R1"]}
    return report


# -- ties -----------------------------------------------------------------------------------------------------------


def tie_spans(
    aligned: Aligned, manifest: Manifest, metrics: dict[str, float], rules: RetrievalProtocol
) -> dict[str, list[float]]:
    """[lowest, highest] in percent of every metric that the order of equal scores can change.

    Empty for the protocols that use the file's order. `metrics` are those by our own tie rule.
    """
    if not rules.by_score:
        return {}
    moved: dict[str, np.ndarray] = {}
    truth = ground_truth_windows(manifest, clamp=rules.clamps_truth)
    for item, windows in zip(aligned, truth, strict=True):
        if item is None or not len(windows) or len(set(item.windows[:, 2].tolist())) == len(item.windows):
            continue
        ratios = finite_ratio(best_first(item.windows)[:, None], windows[None]).max(axis=1)
        for name, ends in _query_spans(ratios, np.sort(item.windows[:, 2])[::-1]).items():
            moved[name] = moved.get(name, np.zeros(2)) + ends
    share = 100.0 / max(1, len(truth))
    return {name: (metrics[name] + share * ends).tolist() for name, ends in moved.items() if ends.any()}


def _query_spans(ratios: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """(2,) how far each metric of one query can fall and rise from its value in our order.

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
