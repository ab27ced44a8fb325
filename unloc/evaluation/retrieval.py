"""Moment retrieval and highlights: which prediction answers which query, and the scores of every query by `protocols`.

Ties by score: of equal scores the later entry goes first, which is UnLoc's reversed argsort wherever numpy sorts short
lists stably. On CPUs where it does not, UnLoc's own figure is one of several orders.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.evaluation.detection import hull_ratio, match, overlap_over_union
from unloc.evaluation.protocols import RetrievalProtocol, protocol_for
from unloc.predictions.records import MomentPrediction

LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}  # of highlights: the lowest rating that is good
RANKS, THRESHOLDS = (1, 5, 10), (0.3, 0.5, 0.7)
QVHIGHLIGHTS_THRESHOLDS = np.round(np.linspace(0.5, 0.95, 10), 2)
MAX_WINDOWS = 10  # that QVHighlights' mAP reads of a list
Aligned = Sequence[MomentPrediction | None]
"""The prediction of every query of a manifest in its order, None where there is none (`align`)."""


def moment_retrieval(
    predictions: Sequence[MomentPrediction], manifest: Manifest, protocol: str = "default"
) -> dict[str, float]:
    """Metrics in percent over all queries of the (selected) manifest.

    R1, R5, R10 at IoU 0.3, 0.5, 0.7 and mIoU; by moment_detr and lighthouse also the official
    MR-{full,short,middle,long}-{mAP, mAP@0.5 … 0.95, R1@0.5 … 0.95}. A query without prediction is a miss. With
    several ground-truth windows the best counts. Raises InputError for an unknown protocol.
    """
    rules = protocol_for("mr", protocol, manifest)
    return query_scores(align(predictions, manifest), manifest, rules).metrics()


def highlight_detection(predictions: Sequence[MomentPrediction], manifest: Manifest) -> dict[str, float]:
    """HL-min-{Fair,Good,VeryGood}-{mAP,Hit1} in percent over the rated queries.

    The three raters are scored separately: Hit1 is 1 if the best clip is good for any of them, mAP is the mean over
    queries and raters. Of equally good clips the first is the best. A query without prediction misses Hit1 and is
    ranked as if all its clips were equal: officially a missing score is 0.
    """
    rules = protocol_for("hd", None, manifest)
    metrics = query_scores(align(predictions, manifest), manifest, rules, rated=True).metrics()
    return {name: value for name, value in metrics.items() if name.startswith("HL-")}


class QueryKeys:
    """Keys that pair predictions with queries: the qid, else video and sentence.

    A known qid is enough, as officially for QVHighlights: video and sentence may differ. Only if the manifest uses one
    qid for queries of several videos, the video must match too.
    """

    def __init__(self, manifest: Manifest) -> None:
        columns = manifest.queries[["qid", "video_id", "text"]]
        self.queries: list[tuple[str, str, str]] = list(columns.itertuples(index=False, name=None))
        num_videos = columns.groupby("qid")["video_id"].nunique()
        self._repeated = set(num_videos.index[num_videos > 1])
        self.pairs = [(self.by_qid(qid, video), text_key(video, text)) for qid, video, text in self.queries]
        self.annotated = {key: query[1:] for (key, _), query in zip(self.pairs, self.queries, strict=True)}
        self.counts = Counter(key for _, key in self.pairs)

    def by_qid(self, qid: str, video_id: str) -> tuple[str, ...]:
        """The key of a qid."""
        return (qid, video_id, "") if qid in self._repeated else (qid,)

    def of(self, item: MomentPrediction) -> tuple[str, ...] | None:
        """The key of the query that a prediction answers; None if there is no such query."""
        by_qid, by_text = self.by_qid(item.qid, item.video_id), text_key(item.video_id, item.query)
        return by_qid if by_qid in self.annotated else by_text if by_text in self.counts else None


def text_key(video_id: str, text: str) -> tuple[str, str]:
    """Video and sentence with normalised whitespace: releases differ in blanks and line breaks."""
    return video_id, " ".join(text.split())


def align(predictions: Sequence[MomentPrediction], manifest: Manifest) -> list[MomentPrediction | None]:
    """The prediction of every query of the manifest by `QueryKeys`, None where there is none. Repeats of a sentence are
    answered in file order. Of several predictions for one query the last counts.
    """
    keys = QueryKeys(manifest)
    answers: dict[tuple[str, ...] | None, list[MomentPrediction]] = defaultdict(list)
    for item in predictions:
        answers[keys.of(item)].append(item)
    waiting = {key: iter(answers[key][-count:]) for key, count in keys.counts.items()}
    return [answers[qid][-1] if qid in answers else next(waiting[text], None) for qid, text in keys.pairs]


def is_answered(item: MomentPrediction | None, task: str) -> bool:
    """Whether there is a prediction: an empty list is none; for hd saliency without windows is one."""
    return item is not None and (len(item.windows) > 0 or (task == "hd" and item.saliency is not None))


def ground_truth_windows(manifest: Manifest, *, clamp: bool) -> list[np.ndarray]:
    """(N, 2) ground truth of every query in seconds, clamped to its video if asked.

    As officially, starts are clamped at 0 and ends at the duration: a window after the end of its video ends up
    reversed. Raises InputError if a duration is needed and unknown.
    """
    durations, truth = manifest.required_durations() if clamp else {}, []
    for video_id, segments in zip(manifest.queries["video_id"], manifest.queries["segments"], strict=True):
        windows = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
        if video_id in durations:
            windows = np.column_stack([windows[:, 0].clip(min=0.0), windows[:, 1].clip(max=durations[video_id])])
        truth.append(windows)
    return truth


@dataclass(frozen=True)
class QueryScores:
    """Metrics that are means over queries, as one value per query: any weighting of the videos can be scored."""

    video_ids: np.ndarray  # (queries,) the video of each query
    values: dict[str, np.ndarray]  # (queries,) fractions for each metric; NaN where the query does not count

    @property
    def num_videos(self) -> int:
        """Number of videos with queries."""
        return len(set(self.video_ids))

    def metrics(self) -> dict[str, float]:
        """Each metric in percent: the mean over the queries that count; NaN if none does."""
        counted = {name: values[~np.isnan(values)] for name, values in self.values.items()}
        return {name: 100.0 * float(kept.mean()) if len(kept) else np.nan for name, kept in counted.items()}

    def drawn(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """(draws,) of each metric in percent for weights (draws, videos)."""
        weights, results = weights[:, np.unique(self.video_ids, return_inverse=True)[1]], {}
        for name, values in self.values.items():
            counts = ~np.isnan(values)
            with np.errstate(invalid="ignore"):
                results[name] = 100.0 * (weights @ np.where(counts, values, 0.0)) / (weights @ counts)
        return results


def query_scores(aligned: Aligned, manifest: Manifest, rules: RetrievalProtocol, *, rated: bool = False) -> QueryScores:
    """The metrics of `moment_retrieval`, if `rated` also of `highlight_detection`, for every query. 1 or 0 for R@n, the
    IoU of the first window for mIoU.
    """
    truth = ground_truth_windows(manifest, clamp=rules.clamps_truth)
    in_range = {
        name: [windows[((length := np.diff(windows)[:, 0]) > shortest) & (length <= longest)] for windows in truth]
        for name, (shortest, longest) in rules.ranges.items()
    }
    kept, counted = in_range.get("full", truth), np.ones(len(truth), dtype=bool)
    if rules.ranges:
        counted = np.array([len(windows) > 0 for windows in kept], dtype=bool)
    elif rules.nms_overlap is not None:  # 2D-TAN's reader leaves out queries whose window is reversed after clamping
        counted = np.array([not (np.diff(windows) < 0).any() for windows in truth], dtype=bool)
    best = np.zeros((len(truth), max(RANKS)))  # IoU of each of the first windows with the ground truth it fits best
    for row, (windows, prediction) in enumerate(zip(kept, aligned, strict=True)):
        if prediction is None or not len(prediction.windows) or not len(windows):
            continue
        candidates = prediction.windows[:, :2]
        if rules.by_score:  # of equal scores the later entry first
            candidates = candidates[np.argsort(prediction.windows[:, 2], kind="stable")[::-1]]
        if rules.nms_overlap is not None:
            # 2D-TAN: the file's order, each kept if its IoU with every kept one is at most the threshold. The IoU 0/0
            # of two windows of length 0 is NaN, which is officially not at most anything.
            chosen: list[int] = []
            left = np.ones(len(candidates), dtype=bool)
            while len(chosen) < max(RANKS) and left.any():
                chosen.append(int(left.argmax()))
                left &= overlap_over_union(candidates, candidates[chosen[-1]]) <= rules.nms_overlap
                left[: chosen[-1] + 1] = False
            candidates = candidates[chosen]
        ratio = overlap_over_union if rules.by_score else hull_ratio
        found = np.fmax.reduce(ratio(candidates[: max(RANKS), None], windows[None]), axis=1)
        best[row, : len(found)] = np.where(np.isinf(found), 0.0, found)  # 0/0
    reached = np.fmax.accumulate(best, axis=1)
    compare = np.greater if rules.nms_overlap is not None else np.greater_equal
    values = {f"R{n}@{at}": compare(reached[:, n - 1], at).astype(np.float64) for n in RANKS for at in THRESHOLDS}
    values["mIoU"] = best[:, 0]
    values = {name: np.where(counted, column, np.nan) for name, column in values.items()}
    if rules.ranges:
        values |= _qvhighlights_values(aligned, in_range)
    if rated:
        values |= _highlight_values(aligned, manifest)
    return QueryScores(manifest.queries["video_id"].to_numpy(dtype=object), values)


def _qvhighlights_values(aligned: Aligned, in_range: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """moment_detr's own metrics for every query, also as Lighthouse applies them to other datasets.

    mAP: the first ten entries of a list; per query, then the mean. R1: the first entry, scores ignored. For a length
    range only the ground truth within it is kept and queries without any are left out; predictions are not filtered.
    """
    lists = [np.zeros((0, 3)) if item is None else item.windows[:MAX_WINDOWS] for item in aligned]
    values: dict[str, np.ndarray] = {}
    for name, kept in in_range.items():
        precision = average_precision(lists, kept)
        pairs = zip(lists, kept, strict=True)
        first = [np.fmax.reduce(hull_ratio(w[:1, None, :2], one), axis=None, initial=0.0) for w, one in pairs]
        reached = np.array(first)[:, None] >= QVHIGHLIGHTS_THRESHOLDS
        reached = np.where(np.isnan(precision), np.nan, reached)
        values[f"MR-{name}-mAP"] = precision.mean(axis=1)
        for kind, table in (("mAP", precision), ("R1", reached)):
            columns = zip(QVHIGHLIGHTS_THRESHOLDS, table.T, strict=True)
            values |= {f"MR-{name}-{kind}@{threshold}": column for threshold, column in columns}
    return values


def average_precision(lists: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """(queries, thresholds) AP of each query's windows (n, 3), matched as for detection with its ground truth (N, 2);
    of equal scores the earlier goes first. NaN without ground truth.
    """
    entries = np.concatenate([*lists, np.zeros((0, 3))])
    owner = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    order = np.lexsort((-entries[:, 2], owner))
    owner, windows = owner[order], entries[order, :2]
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    counts = np.array([len(one) for one in truth], dtype=np.int64)
    truth_owner, truth_windows = np.repeat(np.arange(len(truth)), counts), np.concatenate([*truth, np.zeros((0, 2))])
    longest = max(map(len, lists), default=0)
    hits = np.zeros((len(truth), longest, len(QVHIGHLIGHTS_THRESHOLDS)))
    hits[owner, place] = match(owner, windows, truth_owner, truth_windows, QVHIGHLIGHTS_THRESHOLDS)
    precision = np.cumsum(hits, axis=1) / np.arange(1, longest + 1)[:, None]
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = (precision * hits).sum(axis=1) / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, precision, np.nan)


def official_report(metrics: dict[str, float]) -> dict[str, dict]:
    """The metrics as moment_detr prints them: percent rounded to two decimals, in its keys and order."""
    rounded = {key: float(f"{value:.2f}") for key, value in metrics.items() if key.startswith(("MR-", "HL-"))}
    brief = [f"MR-full-{key}" for key in ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")]
    brief += ["MR-long-mAP", "MR-middle-mAP", "MR-short-mAP"]
    brief += [f"HL-min-{level}-{key}" for level in LEVELS for key in ("mAP", "Hit1")]
    report: dict[str, dict] = {"brief": {key: rounded[key] for key in brief if key in rounded}}
    for key in sorted(rounded, key=lambda key: (key[:2], "@" not in key)):  # highlights first, averages last
        group, name = key.rsplit("-", 1)
        values, (name, _, threshold) = report.setdefault(group.removeprefix("MR-"), {}), name.partition("@")
        if group.startswith("MR-"):
            values.setdefault(f"MR-{name}", {})[threshold or "average"] = rounded[key]
        else:
            values[f"HL-{name}"] = rounded[key]
    return report


def _highlight_values(aligned: Aligned, manifest: Manifest) -> dict[str, np.ndarray]:
    """HL-mAP and Hit1 of every query, NaN if it is not rated."""
    precisions, hits = np.full((2, len(aligned), len(LEVELS)), np.nan)
    minimums = np.array([*LEVELS.values()])
    for row, (ratings, prediction) in enumerate(zip(ratings_of(manifest), aligned, strict=True)):
        if ratings is None:
            continue
        if not len(ratings):
            precisions[row] = hits[row] = 0.0
            continue
        saliency = np.zeros(0) if prediction is None or prediction.saliency is None else prediction.saliency
        scores = np.zeros(len(ratings))  # as officially cut to the clips of the video, or padded with zeros
        scores[: len(saliency)] = saliency[: len(ratings)]
        positive = ratings[:, None, :] >= minimums[None, :, None]  # (clips, levels, raters)
        # AP: monotone precision, averaged where recall changes. Equal scores are one step; each change of recall weighs
        # the same, however many positives it adds; no positives 0, all positives 1.
        order = np.argsort(-scores, kind="stable")
        in_order = scores[order]
        last_of_tie = np.flatnonzero(np.append(in_order[1:] != in_order[:-1], True))
        flat = positive.reshape(len(ratings), -1)
        true = np.cumsum(flat[order], axis=0)[last_of_tie]
        precision = np.maximum.accumulate((true / (last_of_tie + 1)[:, None])[::-1], axis=0)[::-1]
        changes = np.diff(true, axis=0, prepend=0) > 0
        mean = (precision * changes).sum(axis=0) / np.maximum(changes.sum(axis=0), 1)
        precisions[row] = np.where(flat.all(axis=0), 1.0, mean).reshape(len(LEVELS), -1).mean(axis=1)
        best = int(np.argmax(saliency)) if len(saliency) else len(ratings)
        hits[row] = positive[best].any(axis=1) if best < len(ratings) else False
    tables = {"mAP": precisions, "Hit1": hits}
    return {f"HL-min-{n}-{kind}": table[:, i] for i, n in enumerate(LEVELS) for kind, table in tables.items()}


def ratings_of(manifest: Manifest) -> list[np.ndarray | None]:
    """(clips, raters) ratings of every query, 0 outside its relevant clips; None if it is not rated. Raises InputError
    if the duration of a video is unknown.
    """
    durations, rated = manifest.required_durations(), []
    columns = ["video_id", "relevant_clip_ids", "saliency_scores"]
    for video_id, clip_ids, scores in manifest.queries[columns].itertuples(index=False):
        if not isinstance(scores, list):
            rated.append(None)
            continue
        num_clips = int(durations.get(video_id, 0.0) / CLIP_SECONDS)  # 0: a query of a video that no row describes
        rated.append(np.zeros((num_clips, len(scores[0]) if scores else 3)))
        for clip, row in zip(clip_ids, scores, strict=True):
            if clip < num_clips:
                rated[-1][clip] = row
    return rated
