"""Predictions of a model: of frames with their times and texts without a manifest, and of all videos of a manifest."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.callbacks import OnProgress
from unloc.config import DecodeConfig, Recipe
from unloc.errors import DivergedError
from unloc.evaluation.evaluator import Predictions
from unloc.examples.batches import Batch, Example, collate
from unloc.examples.examples import Examples, linspace_example, windows_of
from unloc.examples.sources import ClassTexts, Source, VideoFrames
from unloc.examples.steps import at_distinct_times
from unloc.inference.device import computing
from unloc.inference.existence import best_score
from unloc.inference.load import LoadedModel
from unloc.model.build import EndToEnd
from unloc.model.unloc import Outputs, UnLoc
from unloc.ops.nms import soft_nms
from unloc.ops.points import decode_segments, make_points
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table
from unloc.tasks import task_named

QUERY_BATCH, VIDEO_BATCH, WINDOW_BATCH, TEXT_BATCH, FRAME_BATCH = 16, 4, 16, 64, 64


@torch.inference_mode()
def predict_moments(
    loaded: LoadedModel, videos: Sequence[VideoFrames], texts: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Moments of each video for its own text (K, D): (N, 3) start, end, score in seconds, best first, and where the
    model has a saliency head one score per 2 s clip. All are computed in one batch.
    """
    recipe = loaded.info.recipe
    examples = [linspace_example(video, recipe.data, text=text) for video, text in zip(videos, texts, strict=True)]
    batch = collate(examples, max_text_tokens=recipe.data.max_text_tokens)
    outputs = forward(loaded.model, batch, recipe, pairing="own")
    segments = segments_in_seconds(outputs, examples, recipe)[:, 0]
    kept, found = kept_windows(segments, outputs.relevance[:, 0].sigmoid(), recipe.decode), []
    step_logits = None if outputs.saliency is None else outputs.saliency[:, 0].float().cpu().numpy()
    for row, (example, (_, windows)) in enumerate(zip(examples, kept, strict=True)):
        saliency = None
        if step_logits is not None:  # linearly interpolated at the middle of each clip
            middles = (np.arange(max(1, int(example.duration_seconds / CLIP_SECONDS))) + 0.5) * CLIP_SECONDS
            saliency = np.interp(example.grid.to_steps(middles), np.arange(step_logits.shape[1]), step_logits[row])
        found.append((windows, saliency))
    return found


@torch.inference_mode()
def predict_detections(
    loaded: LoadedModel, videos: Sequence[VideoFrames], texts: ClassTexts
) -> list[list[tuple[int, np.ndarray]]]:
    """Detections of all classes in each video: class index and start, end, score in seconds, best first."""
    recipe = loaded.info.recipe
    examples = [linspace_example(video, recipe.data) for video in videos]
    outputs = class_outputs(loaded.model, examples, texts, recipe)
    return detections_of(segments_in_seconds(outputs, examples, recipe), outputs.relevance.sigmoid(), recipe.decode)


@torch.inference_mode()
def predict_frames(
    loaded: LoadedModel, videos: Sequence[VideoFrames], texts: ClassTexts
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Times (T,) of each video's frames and the logits (T, C) of all classes at each."""
    recipe, parts = loaded.info.recipe, []
    windows = [windows_of(video, recipe.data.num_steps) for video in videos]
    flat = [window for own in windows for window in own]
    for start in range(0, len(flat), WINDOW_BATCH):
        outputs = class_outputs(loaded.model, flat[start : start + WINDOW_BATCH], texts, recipe)
        parts.append(outputs.relevance.transpose(1, 2).double().cpu().numpy())
    logits, first, found = np.concatenate(parts), 0, []
    for video, own in zip(videos, windows, strict=True):
        valid = np.stack([window.frame_mask for window in own])
        found.append(at_distinct_times(video.times_seconds, logits[first : first + len(own)][valid]))
        first += len(own)
    return found


@torch.inference_mode()
def predict_labels(loaded: LoadedModel, videos: Sequence[VideoFrames], texts: ClassTexts) -> np.ndarray:
    """Probabilities (B, C) of all classes in each video."""
    recipe = loaded.info.recipe
    examples = [linspace_example(video, recipe.data) for video in videos]
    outputs = class_outputs(loaded.model, examples, texts, recipe)
    mask = outputs.relevance.new_tensor(np.stack([example.frame_mask for example in examples]), dtype=torch.bool)
    return outputs.video_logits(mask).double().sigmoid().cpu().numpy()


def predict_split(
    loaded: LoadedModel, manifest: Manifest, source: Source, on_progress: OnProgress = lambda done, total: None
) -> Predictions:
    """Predictions for all videos of the selected manifest, of the kind the task has; texts are encoded once."""
    loaded, source = core_and_source(loaded, source)
    recipe, classes, predictions = loaded.info.recipe, loaded.info.classes, []
    examples = Examples(recipe.task, manifest, source, recipe.data)
    is_query = task_named(recipe.task).text_kind == "query"
    items = examples.queries if is_query else examples.videos
    texts = None if is_query else ClassTexts(classes, source, recipe.data)
    size = QUERY_BATCH if is_query else VIDEO_BATCH
    for start in range(0, len(items), size):
        part = items[start : start + size]
        videos = [examples.video(row["video_id"] if is_query else row) for row in part]
        if is_query:
            own = [examples.texts[row["text"]] for row in part]
            found = predict_moments(loaded, videos, own)
            for row, video, text, (windows, saliency) in zip(part, videos, own, found, strict=True):
                named = {"qid": row["qid"], "video_id": row["video_id"], "query": row["text"]}
                if loaded.calibration is not None:
                    named["existence"] = loaded.calibration.score(best_score(windows), video.frames, text)
                predictions.append(MomentPrediction(**named, windows=windows, saliency=saliency))
        elif recipe.task == "tal":
            for video_id, detections in zip(part, predict_detections(loaded, videos, texts), strict=True):
                predictions += [(video_id, classes[label], *window) for label, window in detections]
        elif recipe.task == "cls":
            for video_id, scores in zip(part, predict_labels(loaded, videos, texts), strict=True):
                best, seconds = np.argsort(-scores, kind="stable"), examples.durations[video_id]
                rows = ((video_id, classes[label], 0.0, seconds, scores[label]) for label in best)
                predictions += itertools.islice(rows, recipe.decode.max_detections)
        else:
            for video_id, (times, logits) in zip(part, predict_frames(loaded, videos, texts), strict=True):
                background = logits.max(axis=1) <= recipe.decode.background_logit
                best = zip(background, logits.argmax(axis=1), strict=True)
                labels = [None if is_background else classes[label] for is_background, label in best]
                named = {"video_id": video_id, "times_seconds": times}
                predictions.append(FramePrediction(**named, labels=labels, scores=logits))
        on_progress(min(start + size, len(items)), len(items))
    return detections_table(predictions) if recipe.task in ("tal", "cls") else predictions


def core_and_source(loaded: LoadedModel, source: Source) -> tuple[LoadedModel, Source]:
    """The core of a model with towers, and the source as these encode it; any other model and source as they are."""
    if not isinstance(loaded.model, EndToEnd):
        return loaded, source
    return replace(loaded, model=loaded.model.core), EncodedInputs(source, loaded)


class EncodedInputs:
    """A source as the towers of a model encode it; tokens of a source stay as they are."""

    def __init__(self, source: Source, loaded: LoadedModel) -> None:
        self.source, self.loaded, self.model, self.name = source, loaded, loaded.model, source.name
        self.durations_of, self.video_sha256 = source.durations_of, source.video_sha256
        self._last: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.source

    def frames(self, video_id: str, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (T, D) and times (T,) of a video."""
        if video_id not in self._last:
            frames, times = self.source.frames(video_id, rng)
            if frames.dtype != np.uint8:
                return frames, times
            tokens, device = [], next(self.model.parameters()).device
            for start in range(0, len(times), FRAME_BATCH):  # reads no more frames than it encodes
                pixels = torch.from_numpy(frames[np.arange(start, min(start + FRAME_BATCH, len(times)))])
                with torch.inference_mode(), computing(device, self.loaded.info.recipe.train.precision):
                    found = self.model.image_tower(pixels[None].to(device), start)[0]
                    tokens.append(found.float().cpu().numpy())
            self._last = {video_id: (np.concatenate(tokens), times)}
        return self._last[video_id]

    def texts(self, texts: list[str]) -> list[np.ndarray]:
        """Tokens (K, D) of each text."""
        return self.source.texts(texts) if self.model.text_tower is None else encode_texts(self.loaded, texts)


@torch.inference_mode()
def encode_texts(loaded: LoadedModel, texts: list[str]) -> list[np.ndarray]:
    """Tokens (K, D) of each text, of a model with a text tower."""
    tower, found = loaded.model.text_tower, []
    device = next(loaded.model.parameters()).device
    for start in range(0, len(texts), TEXT_BATCH):
        ids, mask = tower.tokenize(texts[start : start + TEXT_BATCH])
        with computing(device, loaded.info.recipe.train.precision):
            tokens = tower(ids.to(device), mask.to(device)).float().cpu()
        found += [row[valid].numpy() for row, valid in zip(tokens, mask, strict=True)]
    return found


def forward(model: UnLoc, batch: Batch, recipe: Recipe, *, pairing: str) -> Outputs:
    """Float32 outputs of a batch, computed in the recipe's precision. Raises DivergedError where one is not finite."""
    device = next(model.parameters()).device
    batch = batch.to(device)
    with computing(device, recipe.train.precision):
        frame_mask, text_mask = batch.model_masks
        outputs = model(batch.frames, frame_mask, batch.texts, text_mask, pairing=pairing)
    if not outputs.relevance.isfinite().all():
        ids = ", ".join(dict.fromkeys(batch.video_ids))
        raise DivergedError(f"the model's outputs are not finite on videos {ids}: its weights are unusable")
    return outputs.at_least_float32()


def class_outputs(model: UnLoc, examples: Sequence[Example], texts: ClassTexts, recipe: Recipe) -> Outputs:
    """Outputs for all classes: raw head outputs, averaged over the prompts (as the official code) or of the first."""
    outputs = []
    for prompt in range(texts.num_averaged):
        class_texts = texts.prompt(prompt)
        batch = collate(examples, max_text_tokens=recipe.data.max_text_tokens, class_texts=class_texts)
        outputs.append(forward(model, batch, recipe, pairing="all"))
    relevance, share = sum(each.relevance for each in outputs), 1.0 / len(outputs)
    if outputs[0].displacements is None:
        return Outputs(relevance * share, None, None)
    return Outputs(relevance * share, sum(each.displacements for each in outputs) * share, None)


def segments_in_seconds(outputs: Outputs, examples: Sequence[Example], recipe: Recipe) -> Tensor:
    """(B, C, P, 2) segments in seconds, clipped to the video."""
    displacements, num_levels = outputs.displacements, 1 if recipe.model.pyramid == "none" else recipe.model.num_levels
    points = make_points(len(examples[0].frames), num_levels, displacements.device)
    grids = [(e.grid.start_seconds, e.grid.seconds_per_step, e.duration_seconds) for e in examples]
    start, spacing, duration = displacements.new_tensor(grids).T[..., None, None, None]
    return (start + decode_segments(displacements, points) * spacing).clamp(min=0.0).minimum(duration)


def kept_windows(segments: Tensor, scores: Tensor, config: DecodeConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """What Soft-NMS keeps of every row (R, P, 2), (R, P), best first: indices (N,), and (N, 3) start, end, score."""
    limits = {"score_threshold": config.score_threshold, "max_detections": config.max_detections}
    index, kept = soft_nms(segments, scores, sigma=config.nms_sigma, **limits)
    chosen = segments.gather(1, index[..., None].expand(-1, -1, 2))
    windows = torch.cat([chosen, kept[..., None]], dim=-1).double()
    rows = zip(*(values.cpu().numpy() for values in (index, windows, kept > 0)), strict=True)
    return [(index[valid], window[valid]) for index, window, valid in rows]


def detections_of(segments: Tensor, scores: Tensor, config: DecodeConfig) -> list[list[tuple[int, np.ndarray]]]:
    """(class index, [start, end, score]) of each video's segments after Soft-NMS: at most `max_detections` of all
    classes, best first. Segments (B, C, P, 2), scores (B, C, P).

    Soft-NMS runs over all classes together by default, as in the official code; within each class with `nms_per_class`.
    """
    count, points = scores.shape[1:]
    if config.nms_per_class:
        rows, found = kept_windows(segments.flatten(0, 1), scores.flatten(0, 1), config), []
        for first in range(0, len(rows), count):
            per_class = enumerate(rows[first : first + count])
            video = [(label, window) for label, (_, windows) in per_class for window in windows]
            found.append(sorted(video, key=lambda item: -item[1][2])[: config.max_detections])
        return found
    segments, scores = segments.flatten(1, 2), scores.flatten(1)
    above = scores > config.score_threshold
    chosen = above.byte().argsort(dim=1, descending=True, stable=True)[:, : int(above.sum(1).amax())]  # in their order
    segments, scores = segments.gather(1, chosen[..., None].expand(-1, -1, 2)), scores.gather(1, chosen)
    rows = zip((chosen // points).cpu().numpy(), kept_windows(segments, scores, config), strict=True)
    return [list(zip(labels[index].tolist(), windows, strict=True)) for labels, (index, windows) in rows]
