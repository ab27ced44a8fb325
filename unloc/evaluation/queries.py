"""Queries of a split: which prediction answers which query, their ground truth, and scores per query."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unloc.annotations.durations import required_durations
from unloc.annotations.schema import Manifest
from unloc.predictions.records import MomentPrediction

Aligned = Sequence[MomentPrediction | None]
"""The prediction of every query of a manifest in its order, None where there is none (`align`)."""


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
        self.annotated = {self.by_qid(qid, video): (video, text) for qid, video, text in self.queries}
        self.counts = Counter(text_key(video_id, text) for _, video_id, text in self.queries)

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
    """The prediction of every query of the manifest by `QueryKeys`, None where there is none.

    Repeats of a sentence are answered in file order. Of several predictions for one query the last counts.
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


def is_answered(item: MomentPrediction | None, task: str) -> bool:
    """Whether there is a prediction: an empty list is none; for hd saliency without windows is one."""
    return item is not None and (len(item.windows) > 0 or (task == "hd" and item.saliency is not None))


def ground_truth_windows(manifest: Manifest, *, clamp: bool) -> list[np.ndarray]:
    """(N, 2) ground truth of every query in seconds, clamped to its video if asked.

    As officially, starts are clamped at 0 and ends at the duration: a window after the end of its video ends up
    reversed. Raises InputError if a duration is needed and unknown.
    """
    durations, truth = required_durations(manifest) if clamp else {}, []
    for video_id, segments in zip(manifest.queries["video_id"].tolist(), manifest.queries["segments"], strict=True):
        windows = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
        if video_id in durations:
            windows = np.column_stack([windows[:, 0].clip(min=0.0), windows[:, 1].clip(max=durations[video_id])])
        truth.append(windows)
    return truth


@dataclass(frozen=True)
class QueryScores:
    """Metrics that are means over queries, as one value per query: any weighting of the videos can be scored."""

    video_ids: np.ndarray
    """(queries,) the video of each query."""
    values: dict[str, np.ndarray]
    """(queries,) fractions for each metric; NaN where the query does not count."""

    @property
    def num_videos(self) -> int:
        """Number of videos with queries."""
        return len(set(self.video_ids))

    def metrics(self) -> dict[str, float]:
        """Each metric in percent: the mean over the queries that count; NaN if none does."""
        counted = {name: values[~np.isnan(values)] for name, values in self.values.items()}
        return {name: 100.0 * float(kept.mean()) if len(kept) else np.nan for name, kept in counted.items()}

    def drawn(self, weights: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """`metrics`, and (draws,) of each in percent for weights (draws, videos)."""
        index, results = np.unique(self.video_ids, return_inverse=True)[1], {}
        weights = weights[:, index]
        for name, values in self.values.items():
            counts = ~np.isnan(values)
            with np.errstate(invalid="ignore"):
                results[name] = 100.0 * (weights @ np.where(counts, values, 0.0)) / (weights @ counts)
        return self.metrics(), results
