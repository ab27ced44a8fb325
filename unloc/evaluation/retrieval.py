"""Moment retrieval: R@n at IoU m and mIoU by the protocols that papers use (they do not always say which).

default          UnLoc: IoU >= m, best scores first; ground truth clamped to [0, duration]
raw              the same with the ground truth as annotated
2d-tan           IoU > m, the file's order with NMS at 0.5, union taken as the hull; ground truth clamped
2d-tan-nms-0.45  the same with NMS at 0.45 (its Charades-STA pooling model)
2d-tan-no-nms    the same without NMS
moment_detr      IoU >= m, the file's order, union taken as the hull: R1 is the official MR-full-R1 of QVHighlights
lighthouse       the same; ground truth clamped, of lengths in (0, 1500] seconds
lighthouse-raw   the same with the ground truth as annotated

Tie rule of the first two: of equal scores the later entry goes first, which is UnLoc's reversed argsort wherever numpy
sorts short lists stably. On CPUs where it does not, UnLoc's own figure is one order among many: `ties.tie_spans`.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unloc.annotations.durations import durations_of
from unloc.annotations.schema import Manifest
from unloc.errors import InputError
from unloc.evaluation.matching import overlap_over_union
from unloc.evaluation.rows import QueryValues
from unloc.predictions.records import MomentPrediction

RANKS, THRESHOLDS = (1, 5, 10), (0.3, 0.5, 0.7)


@dataclass(frozen=True, kw_only=True)
class RetrievalProtocol:
    """How one official scorer compares windows."""

    name: str
    clamps_truth: bool = True
    exceeds: bool = False
    """Whether IoU must be above the threshold, not only reach it."""
    by_score: bool = True
    """Whether the best score goes first, and IoU is over the true union; else the file's order, over the hull."""
    nms_overlap: float | None = None
    """Entries that overlap an earlier kept one by more are dropped, and queries whose clamped window is reversed."""
    lengths: tuple[float, float] | None = None
    """(shortest, longest] ground truth in seconds that counts, as do queries that have any; None: all count."""


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        RetrievalProtocol(name="default"),
        RetrievalProtocol(name="raw", clamps_truth=False),
        RetrievalProtocol(name="2d-tan", exceeds=True, by_score=False, nms_overlap=0.5),
        RetrievalProtocol(name="2d-tan-nms-0.45", exceeds=True, by_score=False, nms_overlap=0.45),
        RetrievalProtocol(name="2d-tan-no-nms", exceeds=True, by_score=False, nms_overlap=1.0),
        RetrievalProtocol(name="moment_detr", clamps_truth=False, by_score=False, lengths=(-np.inf, np.inf)),
        RetrievalProtocol(name="lighthouse", by_score=False, lengths=(0.0, 1500.0)),
        RetrievalProtocol(name="lighthouse-raw", clamps_truth=False, by_score=False, lengths=(0.0, 1500.0)),
    )
}


class QueryKeys:
    """What a prediction must share with a query of the manifest to answer it: its qid, else its video and sentence.

    A known qid decides alone, as officially for QVHighlights, whatever video or sentence stands beside it. Only where
    the manifest gives one qid to queries of several videos the video must be right too.
    """

    def __init__(self, manifest: Manifest) -> None:
        columns = (manifest.queries[name].tolist() for name in ("qid", "video_id", "text"))
        self.queries = list(zip(*columns, strict=True))
        """(qid, video, sentence) of every query."""
        self.counts = Counter(text_key(video_id, text) for _, video_id, text in self.queries)
        """How often each (video, sentence) is asked."""
        self._videos: dict[str, set[str]] = defaultdict(set)
        for qid, video_id, _ in self.queries:
            self._videos[qid].add(video_id)

    def by_qid(self, qid: str, video_id: str) -> tuple[str, ...] | None:
        """The key of a known qid, None for an unknown one."""
        videos = self._videos.get(qid, ())
        if len(videos) == 1:
            return (qid,)
        return (qid, video_id, "") if video_id in videos else None

    def of(self, item: MomentPrediction) -> tuple[str, ...] | None:
        """The key of what a prediction answers; None where it answers nothing."""
        key = text_key(item.video_id, item.query)
        return self.by_qid(item.qid, item.video_id) or (key if key in self.counts else None)


def align(predictions: Sequence[MomentPrediction], manifest: Manifest) -> list[MomentPrediction | None]:
    """The prediction of every query of the manifest, None where there is none.

    By `QueryKeys`; repeats of a sentence are answered in file order. Of several predictions for one query the last
    counts.
    """
    keys = QueryKeys(manifest)
    answers: dict[tuple[str, ...] | None, list[MomentPrediction]] = defaultdict(list)
    for item in predictions:
        answers[keys.of(item)].append(item)
    waiting = {key: iter(answers[key][-count:]) for key, count in keys.counts.items()}
    aligned = []
    for qid, video_id, text in keys.queries:
        given = answers.get(keys.by_qid(qid, video_id))
        aligned.append(given[-1] if given else next(waiting[text_key(video_id, text)], None))
    return aligned


def text_key(video_id: str, text: str) -> tuple[str, str]:
    """Video and sentence without the blanks and line breaks that releases carry around and inside it."""
    return video_id, " ".join(text.split())


def truth_of(manifest: Manifest, *, clamp: bool) -> list[np.ndarray]:
    """(N, 2) ground truth of every query, cut to its video where asked for.

    As officially starts are cut at 0 and ends at the length: a window after the end of its video comes out reversed.
    Raises InputError where videos are to be cut to and their length is not known.
    """
    durations, truth = durations_of(manifest) if clamp else {}, []
    for video_id, segments in zip(manifest.queries["video_id"].tolist(), manifest.queries["segments"], strict=True):
        windows = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
        if video_id in durations:
            windows = np.column_stack([windows[:, 0].clip(min=0.0), windows[:, 1].clip(max=durations[video_id])])
        truth.append(windows)
    return truth


def moment_retrieval(
    predictions: Sequence[MomentPrediction], manifest: Manifest, protocol: str = "default"
) -> dict[str, float]:
    """R1, R5, R10 at IoU 0.3, 0.5, 0.7 and mIoU in percent over all queries of the (selected) manifest.

    A query without prediction is a miss. Several ground-truth windows: the best counts.
    Raises InputError for a protocol that does not exist.
    """
    return retrieval_values(predictions, manifest, protocol).means()


def retrieval_values(
    predictions: Sequence[MomentPrediction], manifest: Manifest, protocol: str = "default"
) -> QueryValues:
    """The same for every query: 1 or 0 for R@n, the IoU of the first window for mIoU. Raises as `moment_retrieval`."""
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol: got {protocol!r} for moment retrieval, expected one of {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    truth = truth_of(manifest, clamp=rules.clamps_truth)
    if rules.lengths is not None:
        truth = [within(windows, *rules.lengths) for windows in truth]
    best = np.zeros((len(truth), max(RANKS)))
    for row, (windows, prediction) in enumerate(zip(truth, align(predictions, manifest), strict=True)):
        best[row] = best_ratios(prediction, windows, rules)
    counted = _counted(truth, rules)
    reached = np.fmax.accumulate(best, axis=1)
    compare = np.greater if rules.exceeds else np.greater_equal
    values = {
        f"R{rank}@{threshold}": compare(reached[:, rank - 1], threshold).astype(np.float64)
        for rank in RANKS
        for threshold in THRESHOLDS
    }
    values["mIoU"] = best[:, 0]
    values = {name: np.where(counted, column, np.nan) for name, column in values.items()}
    return QueryValues(list(manifest.queries["video_id"]), values)


def within(windows: np.ndarray, shortest: float, longest: float) -> np.ndarray:
    """The windows (N, 2) longer than `shortest` and at most `longest` seconds."""
    lengths = windows[:, 1] - windows[:, 0]
    return windows[(lengths > shortest) & (lengths <= longest)]


def _counted(truth: list[np.ndarray], rules: RetrievalProtocol) -> np.ndarray:
    """True for the queries that count: 2D-TAN's reader leaves out those whose window is reversed once it is cut."""
    if rules.lengths is not None:
        return np.array([len(windows) > 0 for windows in truth], dtype=bool)
    return np.array([rules.nms_overlap is None or not (w[:, 1] < w[:, 0]).any() for w in truth], dtype=bool)


def best_ratios(prediction: MomentPrediction | None, truth: np.ndarray, rules: RetrievalProtocol) -> np.ndarray:
    """(max(RANKS),) IoU of each of the first entries with the ground truth (N, 2) it overlaps best; 0 past the end."""
    best = np.zeros(max(RANKS))
    if prediction is None or not len(prediction.windows) or not len(truth):
        return best
    candidates, ratio = prediction.windows[:, :2], finite_ratio if rules.by_score else hull_ratio
    if rules.by_score:
        candidates = best_first(prediction.windows)
    elif rules.nms_overlap is not None:
        candidates = _first_after_nms(candidates, rules.nms_overlap)
    found = np.fmax.reduce(ratio(candidates[: max(RANKS), None], truth[None]), axis=1)
    best[: len(found)] = found
    return best


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


def _first_after_nms(windows: np.ndarray, threshold: float) -> np.ndarray:
    """2D-TAN's candidates: the file's order, each kept if its IoU with every kept one is at most the threshold.

    0/0, of two windows of no length, is NaN, which is officially not at most anything.
    """
    kept: list[int] = []
    left = np.ones(len(windows), dtype=bool)
    while len(kept) < max(RANKS) and left.any():
        kept.append(int(left.argmax()))
        left &= overlap_over_union(windows, windows[kept[-1]]) <= threshold
        left[: kept[-1] + 1] = False
    return windows[kept]
