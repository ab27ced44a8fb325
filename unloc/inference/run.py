"""Predictions of a model for the videos of a manifest, from their cached tokens (spec §5)."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unloc.annotations.schema import CLIP_SECONDS, Manifest
from unloc.cache.reading import Cache
from unloc.config import DecodeConfig, Recipe
from unloc.errors import DivergedError
from unloc.examples.batches import Batch, Example, collate
from unloc.examples.examples import InstanceExamples, QueryExamples, WindowExamples
from unloc.examples.steps import at_distinct_times
from unloc.inference.device import computing
from unloc.inference.load import LoadedModel
from unloc.inference.texts import ClassTexts
from unloc.model.unloc import Outputs, UnLoc
from unloc.ops.decode import decode_segments
from unloc.ops.nms import soft_nms
from unloc.ops.points import make_points
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table

Predictions = list[MomentPrediction] | pd.DataFrame | list[FramePrediction]


def predict_split(loaded: LoadedModel, manifest: Manifest, cache: Cache, *, batch_size: int = 16) -> Predictions:
    """Predictions for every annotated video of the (already selected) manifest, of the kind the task asks for."""
    recipe = loaded.info.recipe
    with torch.inference_mode():
        if recipe.task in ("mr", "hd"):
            return predict_moments(loaded.model, recipe, QueryExamples(manifest, cache, recipe.data), batch_size)
        texts = ClassTexts(loaded.info.classes, cache, recipe.data)
        if recipe.task == "tal":
            examples = InstanceExamples(manifest, cache, recipe.data)
            return predict_detections(loaded, examples, texts, max(1, batch_size // 4))
        return predict_frames(loaded, WindowExamples(manifest, cache, recipe.data), texts)


def predict_moments(model: UnLoc, recipe: Recipe, examples: QueryExamples, batch_size: int) -> list[MomentPrediction]:
    """Moments (and saliency where there is a head) of every query, each with its own video."""
    predictions = []
    for indices in chunks(range(len(examples)), batch_size):
        batch = collate([examples.example(i) for i in indices], max_text_tokens=recipe.data.max_text_tokens)
        outputs = forward(model, batch, recipe, pairing="own")
        windows = decode_moments(outputs, batch.examples, recipe)
        for row, example in enumerate(batch.examples):
            query = examples.queries.iloc[example.query_index]
            predictions.append(
                MomentPrediction(
                    qid=query["qid"],
                    video_id=query["video_id"],
                    query=query["text"],
                    windows=windows[row],
                    saliency=clip_saliency(outputs.saliency[row, 0], example) if outputs.saliency is not None else None,
                )
            )
    return predictions


def forward(model: UnLoc, batch: Batch, recipe: Recipe, *, pairing: str) -> Outputs:
    """The model's float32 outputs of a batch, on its device and in the recipe's precision."""
    device = next(model.parameters()).device
    batch = batch.to(device)
    with computing(device, recipe.train.precision):
        outputs = model(batch.frames, batch.frame_mask, batch.texts, batch.text_mask, pairing=pairing)
    if not outputs.relevance.isfinite().all():
        ids = ", ".join(dict.fromkeys(example.video_id for example in batch.examples))
        raise DivergedError(f"the model's outputs are not finite on videos {ids}: its weights are of no use")
    return outputs.at_least_float32()


def decode_moments(outputs: Outputs, examples: Sequence[Example], recipe: Recipe) -> list[np.ndarray]:
    """(N, 3) start, end, score in seconds of each example's one text, best first."""
    segments = segments_in_seconds(outputs, examples)[:, 0]
    return kept_windows(segments, outputs.relevance[:, 0].sigmoid(), recipe.decode)


def segments_in_seconds(outputs: Outputs, examples: Sequence[Example]) -> Tensor:
    """(B, C, P, 2) segments in seconds, clipped to the video."""
    num_steps = len(examples[0].frames)
    points = make_points(num_steps, num_levels_of(outputs.relevance.shape[-1], num_steps))
    displacements = outputs.displacements
    segments = decode_segments(displacements, points.to(displacements.device))
    start, spacing, duration = (
        displacements.new_tensor(values)[:, None, None, None]
        for values in (
            [example.grid.start_seconds for example in examples],
            [example.grid.seconds_per_step for example in examples],
            [example.duration_seconds for example in examples],
        )
    )
    return (start + segments * spacing).clamp(min=0.0).minimum(duration)


def num_levels_of(num_points: int, num_steps: int) -> int:
    """Levels of a pyramid with that many points over that many steps."""
    levels, size = 0, num_steps
    while num_points > 0:
        num_points -= size
        size //= 2
        levels += 1
    return levels


def kept_windows(segments: Tensor, scores: Tensor, config: DecodeConfig) -> list[np.ndarray]:
    """(N, 3) start, end, decayed score of every row (R, P, 2), (R, P) after Soft-NMS, best first."""
    kept = soft_nms(
        segments,
        scores,
        sigma=config.nms_sigma,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
    )
    chosen = segments.gather(1, kept.index[..., None].expand(-1, -1, 2))
    rows = torch.cat([chosen, kept.scores[..., None]], dim=-1).double().cpu().numpy()
    valid = kept.valid.cpu().numpy()
    return [row[mask] for row, mask in zip(rows, valid, strict=True)]


def clip_saliency(logits: Tensor, example: Example) -> np.ndarray:
    """One score per 2 s clip: the step logits, linearly interpolated at the middle of each clip."""
    num_clips = max(1, int(example.duration_seconds / CLIP_SECONDS))
    middles = (np.arange(num_clips) + 0.5) * CLIP_SECONDS
    steps = example.grid.to_steps(middles)
    return np.interp(steps, np.arange(len(logits)), logits.float().cpu().numpy())


def predict_detections(
    loaded: LoadedModel, examples: InstanceExamples, texts: ClassTexts, batch_size: int
) -> pd.DataFrame:
    """Detections of every class in every video."""
    recipe, rows = loaded.info.recipe, []
    for indices in chunks(range(len(examples)), batch_size):
        outputs, batch = class_outputs(loaded.model, [examples.example(i) for i in indices], texts, recipe)
        segments = segments_in_seconds(outputs, batch.examples)
        for row, example in enumerate(batch.examples):
            found = detections_of(segments[row], outputs.relevance[row].sigmoid(), recipe.decode)
            rows += [(example.video_id, loaded.info.classes[label], *window) for label, window in found]
    return detections_table(rows)


def detections_of(segments: Tensor, scores: Tensor, config: DecodeConfig) -> Iterator[tuple[int, np.ndarray]]:
    """(class index, [start, end, score]) of one video's (C, P, 2) segments after Soft-NMS: at most `max_detections` of
    all classes, best first.

    Soft-NMS runs over all classes together by default, as the official code does; within each class with
    `nms_per_class`.
    """
    if config.nms_per_class:
        per_class = enumerate(kept_windows(segments, scores, config))
        found = [(label, window) for label, windows in per_class for window in windows]
        yield from sorted(found, key=lambda item: -item[1][2])[: config.max_detections]
        return
    candidates = torch.nonzero(scores > config.score_threshold)
    if not len(candidates):
        return
    label, point = candidates.T
    flat_segments, flat_scores = segments[label, point][None], scores[label, point][None]
    kept = soft_nms(
        flat_segments,
        flat_scores,
        sigma=config.nms_sigma,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
    )
    for index, score in zip(kept.index[0][kept.valid[0]], kept.scores[0][kept.valid[0]], strict=True):
        yield int(label[index]), np.array([*flat_segments[0, index].tolist(), float(score)])


def class_outputs(
    model: UnLoc, examples: Sequence[Example], texts: ClassTexts, recipe: Recipe
) -> tuple[Outputs, Batch]:
    """Outputs for all classes: raw head outputs, averaged over the prompts or of the first (spec §5.1)."""
    total: Outputs | None = None
    for prompt in range(texts.num_averaged):
        batch = collate(examples, max_text_tokens=recipe.data.max_text_tokens, class_texts=texts.prompt(prompt))
        outputs = forward(model, batch, recipe, pairing="all")
        total = outputs if total is None else _added(total, outputs)
    share = 1.0 / texts.num_averaged
    displacements = None if total.displacements is None else total.displacements * share
    return Outputs(total.relevance * share, displacements, None), batch


def _added(one: Outputs, other: Outputs) -> Outputs:
    displacements = None if one.displacements is None else one.displacements + other.displacements
    return Outputs(one.relevance + other.relevance, displacements, None)


def predict_frames(loaded: LoadedModel, examples: WindowExamples, texts: ClassTexts) -> list[FramePrediction]:
    """One label per cached frame, at its own time: the windows of a video one after another, padding cut off."""
    recipe, predictions = loaded.info.recipe, []
    for index in range(len(examples)):
        windows = examples.windows(index)
        outputs, batch = class_outputs(loaded.model, windows, texts, recipe)
        logits = outputs.relevance.transpose(1, 2).cpu()[batch.frame_mask].double().numpy()
        video_id = windows[0].video_id
        times, logits = at_distinct_times(examples.cache[video_id].times_seconds, logits)
        best = logits.argmax(axis=1)
        names = [loaded.info.classes[label] for label in best]
        background = logits.max(axis=1) <= recipe.decode.background_logit
        labels = [None if is_background else name for name, is_background in zip(names, background, strict=True)]
        predictions.append(FramePrediction(video_id=video_id, times_seconds=times, labels=labels, scores=logits))
    return predictions


def chunks(items: Iterable[int], size: int) -> Iterator[list[int]]:
    """Lists of at most `size` items, in order."""
    held: list[int] = []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
