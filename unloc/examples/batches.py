"""Examples and batches: what the model and the losses are given."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unloc.examples.steps import TimeGrid


@dataclass(frozen=True, kw_only=True)
class Example:
    """One video, or one (video, query) pair, on its level-0 steps."""

    video_id: str
    frames: np.ndarray
    """(T, D) float32 frame tokens, or pixels."""
    frame_mask: np.ndarray
    """(T,) bool, true where valid."""
    duration_seconds: float
    """Length of the video."""
    grid: TimeGrid | None = None
    """Steps to seconds; None where steps are consecutive tokens, which are not evenly spaced (AS)."""
    text: np.ndarray | None = None
    """(K, Dt) tokens of the example's own query (query tasks)."""
    segments_steps: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    """(N, 2) segments in steps."""
    segment_classes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(N,) class index of each segment (class tasks)."""
    step_classes: np.ndarray | None = None
    """(T,) class index of each step, -1 background (AS)."""
    saliency: np.ndarray | None = None
    """(T,) saliency 0-1 of each step (HD)."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples stacked. B examples, T steps, C texts, K text tokens, N segments (padded)."""

    examples: tuple[Example, ...]
    """What was stacked, for ids, grids and durations."""
    frames: Tensor
    """(B, T, D)."""
    frame_mask: Tensor
    """(B, T) bool."""
    texts: Tensor
    """(C, K, Dt): the examples' own queries (C = B), or the class names."""
    text_mask: Tensor
    """(C, K) bool."""
    segments_steps: Tensor
    """(B, N, 2)."""
    segment_text: Tensor
    """(B, N) index into the texts, -1 where padded."""
    step_classes: Tensor | None = None
    """(B, T) class index, -1 background (AS)."""
    saliency: Tensor | None = None
    """(B, T), 0 where the query is not rated (query tasks)."""
    is_rated: Tensor | None = None
    """(B,) bool, true where the query has ratings (query tasks)."""
    step_labels: Tensor | None = None
    """(B, T) true where the step is of the row's class (AS, class pairs)."""
    rows_per_video: int = 1
    """Rows of one video (class pairs), else 1."""
    all_frames_valid: bool = False
    """True where frame_mask is known to be true everywhere."""
    all_tokens_valid: bool = False
    """True where text_mask is known to be true everywhere."""

    @property
    def model_masks(self) -> tuple[Tensor | None, Tensor | None]:
        """frame_mask and text_mask as the model takes them: None where all are valid."""
        return None if self.all_frames_valid else self.frame_mask, None if self.all_tokens_valid else self.text_mask

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in vars(self).items()}
        return Batch(**moved)


def pad_texts(texts: Sequence[np.ndarray], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Texts (K_i, D) or ids (K_i,) as (C, K, …) with mask (C, K), K the longest.

    A text over max_tokens keeps its last token, EOS. The official code cuts EOS off, which makes long captions
    indistinguishable.
    """
    cut = [text if len(text) <= max_tokens else np.concatenate([text[: max_tokens - 1], text[-1:]]) for text in texts]
    lengths = torch.tensor([len(text) for text in cut])
    dtype = torch.float32 if cut[0].ndim > 1 else torch.long
    padded = torch.zeros(len(cut), int(lengths.max()), *cut[0].shape[1:], dtype=dtype)
    for row, text in enumerate(cut):
        padded[row, : len(text)] = torch.from_numpy(text.astype(np.float32 if dtype.is_floating_point else np.int64))
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def collate(
    examples: Sequence[Example], *, max_text_tokens: int, class_texts: tuple[Tensor, Tensor] | None = None
) -> Batch:
    """Stack examples. The texts are `class_texts` (tokens, mask), or without them each example's own query."""
    texts, text_mask = class_texts or pad_texts([example.text for example in examples], max_text_tokens)
    longest = max(1, *(len(example.segments_steps) for example in examples))
    segments, segment_text = _no_segments(len(examples), longest)
    for row, example in enumerate(examples):
        count = len(example.segments_steps)
        segments[row, :count] = torch.from_numpy(example.segments_steps)
        segment_text[row, :count] = row if class_texts is None else torch.as_tensor(example.segment_classes.tolist())
    ratings = {}
    if class_texts is None:  # also where no query is rated: processes that train together must sum the same losses
        unrated = np.zeros(len(examples[0].frames), dtype=np.float32)
        rated = [example.saliency is not None for example in examples]
        saliency = [unrated if example.saliency is None else example.saliency for example in examples]
        ratings = {"saliency": torch.from_numpy(np.stack(saliency)), "is_rated": torch.tensor(rated)}
    frame_mask = _stacked(examples, "frame_mask")
    return Batch(
        examples=tuple(examples),
        frames=_stacked(examples, "frames"),
        frame_mask=frame_mask,
        all_frames_valid=bool(frame_mask.all()),
        all_tokens_valid=bool(text_mask.all()),
        texts=texts,
        text_mask=text_mask,
        segments_steps=segments,
        segment_text=segment_text,
        step_classes=_stacked(examples, "step_classes"),
        **ratings,
    )


def collate_class_pairs(examples: Sequence[Example], class_texts: tuple[Tensor, Tensor], classes: np.ndarray) -> Batch:
    """One row per (video, class) of `classes` (B, M): the video's frames with that class as the only text.

    A step then fuses M classes per video instead of all of them.
    """
    count = classes.shape[1]
    segments, text = _no_segments(classes.size, max(1, *(len(example.segments_steps) for example in examples)))
    for row, (index, class_index) in enumerate((b, c) for b, chosen in enumerate(classes) for c in chosen):
        own = examples[index].segments_steps[examples[index].segment_classes == class_index]
        segments[row, : len(own)] = torch.from_numpy(own)
        text[row, : len(own)] = row
    flat, steps = torch.from_numpy(classes.reshape(-1)), _stacked(examples, "step_classes")
    frame_mask, text_mask = _stacked(examples, "frame_mask"), class_texts[1][flat]
    return Batch(
        examples=tuple(example for example in examples for _ in range(count)),
        frames=_stacked(examples, "frames").repeat_interleave(count, dim=0),
        frame_mask=frame_mask.repeat_interleave(count, dim=0),
        all_frames_valid=bool(frame_mask.all()),
        all_tokens_valid=bool(text_mask.all()),
        texts=class_texts[0][flat],
        text_mask=text_mask,
        segments_steps=segments,
        segment_text=text,
        step_labels=None if steps is None else steps.repeat_interleave(count, dim=0) == flat[:, None],
        rows_per_video=count,
    )


def _no_segments(rows: int, longest: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(rows, longest, 2), torch.full((rows, longest), -1, dtype=torch.long)


def _stacked(examples: Sequence[Example], name: str) -> Tensor | None:
    arrays = [getattr(example, name) for example in examples]
    return None if arrays[0] is None else torch.from_numpy(np.stack(arrays))
