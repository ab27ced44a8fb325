"""Why nothing of a file of predictions matches the annotations: other names, another split, another unit of time."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest
from unloc.annotations.subsets import words_of
from unloc.errors import PredictionError

REWRITES: dict[str, Callable[[str], object]] = {
    "removing v_": lambda name: name.removeprefix("v_"),
    "removing the folder and the file ending": lambda name: PurePath(name).stem,
    "folding case": lambda name: name.casefold().strip(),
    "reading _ as a blank": lambda name: name.replace("_", " "),
    "removing v_, the folder, the file ending and folding case": lambda name: (
        PurePath(name).stem.removeprefix("v_").casefold()
    ),
    "comparing their words alone": lambda name: words_of(name) or name,
}
"""What may be done to names on both sides to make them equal, mildest first."""
SHORTEST_VIDEO = 5.0  # seconds; in shorter videos segments of less than a second may be meant
MOST_FPS = 100.0  # a video of s seconds has fewer than 100·s frames, but 1000·s milliseconds


def other_unit(segments: np.ndarray, durations: np.ndarray) -> str | None:
    """What segments (n, 2) in videos of `durations` (n,) seconds, NaN unknown, look like if not like seconds."""
    known = np.isfinite(durations) & (durations > 0)
    ends, durations = segments[known, 1], durations[known]
    if not len(ends):
        return None
    if 0 < ends.max() <= 1.0 and np.median(durations) > SHORTEST_VIDEO:
        return "fractions of the video"
    shares = ends / durations
    if (shares > 1.05).mean() <= 0.5:
        return None
    return "milliseconds" if np.quantile(shares, 0.9) > MOST_FPS else "frames"


def name_hint(given: Collection[str], known: Collection[str], what: str) -> str:
    """ "; ids match after removing v_" where a rewrite makes some names equal, else nothing."""
    for words, rewrite in REWRITES.items():
        if {rewrite(name) for name in given} & {rewrite(name) for name in known}:
            return f"; {what} match after {words}"
    return ""


def require_match(
    path: Path,
    task: str,
    predictions: pd.DataFrame | Sequence,
    screened: pd.DataFrame | Sequence,
    manifest: Manifest,
    split: str,
) -> None:
    """Raise PredictionError where no prediction of a file is of a video, a query or a class of the split."""
    selected = manifest.select(split)
    if not len(predictions):
        raise PredictionError(f"{path}: nothing matches: there are no predictions in it")
    if task in ("mr", "hd") and len(screened):
        if not any(len(item.windows) or (task == "hd" and item.saliency is not None) for item in screened):
            scored = "windows or saliency" if task == "hd" else "windows"
            raise PredictionError(f"{path}: nothing matches: none of the {len(predictions)} predictions has {scored}")
        return
    if task == "tal":
        videos, labels = set(predictions["video_id"]), set(predictions["label"])
    else:
        videos = {item.video_id for item in predictions}
        labels = {name for item in predictions for name in item.labels if name} if task == "as" else set()
    known, where = set(selected.videos["video_id"]), f"split {split!r} of manifest {manifest.name!r}"
    if not videos & known:
        others = [name for name in manifest.splits if videos & set(manifest.select(name).videos["video_id"])]
        hint = f"; they are videos of split {', '.join(others)}" if others else name_hint(videos, known, "ids")
        raise _nothing_matches(path, "video ids", videos, where, known, hint)
    if task in ("mr", "hd"):
        asked, annotated = {item.query for item in predictions}, set(selected.queries["text"])
        hint = name_hint(asked - annotated, annotated, "queries")
        raise _nothing_matches(path, "queries of a video", asked, where, annotated, hint)
    if labels and not labels & set(selected.classes):
        hint = name_hint(labels, selected.classes, "class names")
        raise _nothing_matches(path, "class names", labels, where, selected.classes, hint)


def _nothing_matches(
    path: Path, what: str, given: Collection[str], where: str, known: Collection[str], hint: str
) -> PredictionError:
    first, example = min(given), min(known, default="")
    return PredictionError(
        f"{path}: nothing matches: none of the {len(given)} {what} (first {first!r}) is in {where} "
        f"(first {example!r}){hint}"
    )


def require_score(path: Path, metrics: dict[str, float], problems: Problems) -> None:
    """Raise PredictionError where every metric is 0, but for the mean IoU: nothing annotated was found."""
    if any(value > 0 for name, value in metrics.items() if name != "mIoU"):
        return
    told = "".join(f"; {line}" for line in problems.lines())
    raise PredictionError(
        f"{path}: nothing matches: no prediction reaches an annotated segment, every metric is 0.00{told}"
    )
