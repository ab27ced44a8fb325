"""Segments of one video of any length: seen at once where it is as long as those of training, else in windows.

Windows overlap by half, and each decides on the part between the middles of its overlaps: a segment counts in the
window whose own part has its middle. So segments up to half a window are seen whole, and each counts once. Soft-NMS
then runs over the segments of all windows together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, inf

import numpy as np
import torch
from torch import Tensor

from unloc.annotations.schema import CLIP_SECONDS
from unloc.config import Recipe
from unloc.examples.batches import Example, collate
from unloc.examples.examples import linspace_example
from unloc.examples.sources import ClassTexts, VideoFrames
from unloc.inference.load import LoadedModel
from unloc.inference.predict import QUERY_BATCH, VIDEO_BATCH, class_outputs, forward, kept_windows, segments_in_seconds
from unloc.model.unloc import Outputs

MOST_CANDIDATES = 5000  # of a batch of windows, of many: the best
MOST_CURVES = 100  # labels up to which the relevance over time is kept


@dataclass(frozen=True)
class Window:
    """A part of a video in seconds that the model sees at once; the segments whose middle is in its own part count."""

    start: float = -inf  # infinite: as far as the video goes
    end: float = inf
    own_start: float = -inf
    own_end: float = inf

    @property
    def crop(self) -> tuple[float, float] | None:
        """What an example is made of; None: the whole video."""
        return None if self.end == inf else (self.start, self.end)


def windows_over(first_seconds: float, last_seconds: float, window_seconds: float) -> list[Window]:
    """Windows from the first to the last frame, at most half a window apart."""
    room = last_seconds - first_seconds - window_seconds
    count = 1 + max(0, ceil(2 * room / window_seconds))
    if count == 1:
        return [Window()]
    starts = np.linspace(first_seconds, last_seconds - window_seconds, count)
    borders = [-inf, *(starts[:-1] + starts[1:] + window_seconds) / 2, inf]
    return [
        Window(float(start), float(start + window_seconds), float(own_start), float(own_end))
        for start, (own_start, own_end) in zip(starts, pairwise(borders), strict=True)
    ]


def best_windows(
    windows: Sequence[Window], times_seconds: np.ndarray, similarity: np.ndarray, most: int
) -> list[Window]:
    """The `most` windows whose own parts have the most similar frames (mean of the best three), in their order."""
    edges = np.searchsorted(times_seconds, [*(window.own_start for window in windows), inf])
    parts = (similarity[start:end] for start, end in pairwise(edges))
    score = [np.sort(part)[-3:].mean() if len(part) else -inf for part in parts]
    return [windows[index] for index in sorted(np.argsort(score, kind="stable")[::-1][:most])]


@dataclass
class Curve:
    """Relevance over time: at each of the model's steps that of the most relevant point of any level."""

    times_seconds: np.ndarray  # (N,) rising
    relevance: np.ndarray  # (N,) 0-1


@dataclass
class Found:
    """Segments of all texts or classes of a video, and what is known of each over time."""

    recipe: Recipe
    texts: list[np.ndarray] = field(default_factory=list)  # (N,) index of the text of each segment, of each batch
    segments: list[Tensor] = field(default_factory=list)  # (N, 2) seconds
    scores: list[Tensor] = field(default_factory=list)  # (N,)
    curves: dict[int, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    saliency: dict[int, np.ndarray] = field(default_factory=dict)  # of a text: one score per 2 s clip
    existence: dict[int, float] = field(default_factory=dict)  # of a text: in the window where it is most likely

    def add(
        self,
        outputs: Outputs,
        examples: Sequence[Example],
        windows: Sequence[Window],
        texts: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        """Outputs of windows for texts (B, C), given by their indices; scores are multiplied by `weights` (B,)."""
        segments, scores = segments_in_seconds(outputs, examples, self.recipe), outputs.relevance.sigmoid()
        own = segments.new_tensor([(window.own_start, window.own_end) for window in windows])[:, None, None]
        middle, above = segments.mean(dim=-1), scores > self.recipe.decode.score_threshold
        chosen = above & (middle >= own[..., 0]) & (middle < own[..., 1])
        row, text, _ = (index.cpu().numpy() for index in chosen.nonzero(as_tuple=True))
        segments, kept, text = segments[chosen].cpu(), scores[chosen].cpu(), texts[row, text]
        if weights is not None:
            kept = kept * torch.from_numpy(weights[row]).to(kept)
        if windows[0].crop is not None and len(kept) > MOST_CANDIDATES:
            best = kept.topk(MOST_CANDIDATES).indices.sort().values
            segments, kept, text = segments[best], kept[best], text[best.numpy()]
        self.texts.append(text)
        self.segments.append(segments)
        self.scores.append(kept)
        self._add_curves(outputs, scores, examples, windows, texts)

    def _add_curves(
        self,
        outputs: Outputs,
        scores: Tensor,
        examples: Sequence[Example],
        windows: Sequence[Window],
        texts: np.ndarray,
    ) -> None:
        num_steps, model = len(examples[0].frames), self.recipe.model
        sizes = [num_steps >> level for level in range(1 if model.pyramid == "none" else model.num_levels)]
        levels = scores.split(sizes, dim=-1)
        at_steps = [level.repeat_interleave(1 << number, dim=-1) for number, level in enumerate(levels)]
        highest = torch.stack(at_steps).amax(dim=0).float().cpu().numpy()
        logits = None if outputs.saliency is None else outputs.saliency.float().cpu().numpy()
        for row, (example, window) in enumerate(zip(examples, windows, strict=True)):
            times = example.grid.to_seconds(np.arange(num_steps))
            is_own = (times >= window.own_start) & (times < window.own_end)
            for column, text in enumerate(texts[row].tolist()):
                if text < MOST_CURVES:
                    self.curves.setdefault(text, []).append((times[is_own], highest[row, column][is_own]))
                if logits is not None:  # linearly interpolated at the middle of each clip
                    middles = (np.arange(max(1, int(example.duration_seconds / CLIP_SECONDS))) + 0.5) * CLIP_SECONDS
                    known = self.saliency.setdefault(text, np.full(len(middles), np.nan))
                    clips = (middles >= window.own_start) & (middles < window.own_end)
                    at = example.grid.to_steps(middles[clips])
                    known[clips] = np.interp(at, np.arange(num_steps), logits[row, column])

    def curve(self, text: int) -> Curve | None:
        """The relevance of a text over the windows that were seen; None of more labels than `MOST_CURVES`."""
        if text not in self.curves:
            return None
        parts = sorted(self.curves[text], key=lambda part: part[0][:1].tolist())
        return Curve(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def kept(self) -> list[tuple[int, np.ndarray]]:
        """(text, [start, end, score]) after Soft-NMS, best first of each text, or of all classes together where that is
        how the recipe decodes (`predict.detections_of`).
        """
        if not self.texts:
            return []
        texts, config = np.concatenate(self.texts), self.recipe.decode
        segments, scores = torch.cat(self.segments), torch.cat(self.scores)
        groups = [np.arange(len(texts))]
        if self.recipe.task != "tal" or config.nms_per_class:
            groups = [np.flatnonzero(texts == text) for text in np.unique(texts)]
        found = []
        for group in groups:
            ((index, windows),) = kept_windows(segments[group][None], scores[group][None], config)
            found += zip(texts[group][index].tolist(), windows, strict=True)
        if self.recipe.task == "tal":
            found = sorted(found, key=lambda item: -item[1][2])[: config.max_detections]
        return found


def pairs_of(items: Sequence[tuple[int, Window]], size: int) -> Iterator[Sequence[tuple[int, Window]]]:
    """Batches of so many items."""
    return (items[start : start + size] for start in range(0, len(items), size))


@torch.inference_mode()
def moments_in(
    loaded: LoadedModel,
    video: VideoFrames,
    texts: Sequence[np.ndarray],
    windows: Sequence[Sequence[Window]],
    on_done: Callable[[int], None] = lambda count: None,
) -> Found:
    """Moments for texts (K, D), each in its own windows; of one whole window those of `predict_moments`.

    With a calibration scores in windows are multiplied by the probability that the text is in its window at all, as a
    model that was trained on texts of their own videos only finds something in every window.
    """
    recipe, found = loaded.info.recipe, Found(loaded.info.recipe)
    pairs, times = [(index, window) for index, own in enumerate(windows) for window in own], video.times_seconds
    for part in pairs_of(pairs, QUERY_BATCH):
        examples = [linspace_example(video, recipe.data, text=texts[i], crop=window.crop) for i, window in part]
        batch = collate(examples, max_text_tokens=recipe.data.max_text_tokens)
        outputs, weights = forward(loaded.model, batch, recipe, pairing="own"), None
        if loaded.calibration is not None:
            best = outputs.relevance.sigmoid().amax(dim=(1, 2)).double().cpu().numpy()
            seen = [video.frames[slice(*np.searchsorted(times, (window.start, window.end)))] for _, window in part]
            known = zip(part, best, seen, strict=True)
            weights = np.array([loaded.calibration.score(score, own, texts[i]) for (i, _), score, own in known])
            for (index, _), weight in zip(part, weights.tolist(), strict=True):
                found.existence[index] = max(weight, found.existence.get(index, 0.0))
        indices, own = np.array([[index] for index, _ in part]), [window for _, window in part]
        found.add(outputs, examples, own, indices, weights if own[0].crop else None)
        on_done(len(part))
    return found


@torch.inference_mode()
def detections_in(
    loaded: LoadedModel,
    video: VideoFrames,
    parts: Iterable[tuple[int, ClassTexts]],
    windows: Sequence[Window],
    on_done: Callable[[int], None] = lambda count: None,
) -> Found:
    """Segments of classes, given in parts with the index of the first; of one whole window `predict_detections`."""
    recipe, found = loaded.info.recipe, Found(loaded.info.recipe)
    for first, texts in parts:
        for start in range(0, len(windows), VIDEO_BATCH):
            own = windows[start : start + VIDEO_BATCH]
            examples = [linspace_example(video, recipe.data, crop=window.crop) for window in own]
            outputs = class_outputs(loaded.model, examples, texts, recipe)
            labels = first + np.arange(outputs.relevance.shape[1])
            found.add(outputs, examples, own, np.broadcast_to(labels, (len(own), len(labels))))
            on_done(len(own) * len(labels))
    return found
