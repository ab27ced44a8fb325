"""Video classification: top-1 and top-5 accuracy over videos, and top-1 accuracy as a mean over classes.

A video is right if one of its labels is among the best scored. Of a class the videos are right whose best label it is.
"""

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.evaluation.protocols import Protocol

TOP = (1, 5)


class LabelScores:
    """At which rank each label of each video is predicted; of videos without labels nothing is scored."""

    def __init__(self, predictions: pd.DataFrame, manifest: Manifest, rules: Protocol) -> None:
        truth = manifest.instances[["video_id", "label"]].drop_duplicates()
        ranked = predictions.sort_values("score", ascending=False, kind="stable")[["video_id", "label"]]
        ranked = ranked.drop_duplicates()
        ranked["rank"] = ranked.groupby("video_id").cumcount()
        truth = truth.merge(ranked, how="left").fillna({"rank": np.inf}).sort_values("label", kind="stable")
        self.ranks = truth["rank"].to_numpy(dtype=np.float64)  # of each label of each video, by class
        self.video, videos = pd.factorize(truth["video_id"])
        self.label, self.classes = pd.factorize(truth["label"])
        self.num_videos = len(videos)
        best = np.full(self.num_videos, np.inf)
        np.minimum.at(best, self.video, self.ranks)
        self.right = best[:, None] < TOP  # (videos, k)

    def metrics(self) -> dict[str, float]:
        """top1_accuracy, top5_accuracy and mean_class_accuracy in percent; a video without prediction is wrong."""
        return {name: float(value[0]) for name, value in self.drawn(np.ones((1, self.num_videos))).items()}

    def per_class(self) -> dict[str, dict[str, float]]:
        """Top-1 accuracy of every class that occurs, in percent."""
        shares = self._class_shares(np.ones((1, self.num_videos)))[0]
        return {name: {"accuracy": float(share)} for name, share in zip(self.classes, shares, strict=True)}

    def drawn(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """(draws,) of each metric for counts (draws, videos) of how often a video is drawn."""
        of_classes = self._class_shares(counts)
        with np.errstate(invalid="ignore"):  # NaN without any video
            of_videos = 100.0 * (counts @ self.right) / counts.sum(axis=1, keepdims=True)
            mean = np.nansum(of_classes, axis=1) / np.isfinite(of_classes).sum(axis=1)
        tops = {f"top{k}_accuracy": column for k, column in zip(TOP, of_videos.T, strict=True)}
        return tops | {"mean_class_accuracy": mean}

    def _class_shares(self, counts: np.ndarray) -> np.ndarray:
        """(draws, classes) top-1 accuracy in percent, NaN where no video of a class is drawn."""
        begins, of_rows = np.flatnonzero(np.diff(self.label, prepend=-1)), counts[:, self.video]
        total = np.add.reduceat(of_rows, begins, axis=1).astype(np.float64)
        right = np.add.reduceat(of_rows * (self.ranks < 1), begins, axis=1)
        return 100.0 * np.divide(right, total, out=np.full(total.shape, np.nan), where=total > 0)
