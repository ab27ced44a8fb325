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
    """(T, D) float32 frame tokens."""
    frame_mask: np.ndarray
    """(T,) bool, true where valid."""
    duration_seconds: float
    """Length of the video."""
    grid: TimeGrid | None = None
    """Steps to seconds; None where steps are consecutive tokens, which are not evenly spaced (AS)."""
    query_index: int = -1
    """Row of the query table (query tasks)."""
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
    """(B, T) true where the row's own class is (AS, class pairs)."""
    rows_per_video: int = 1
    """Rows that stand for one video (class pairs), else 1."""

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in vars(self).items()}
        return Batch(**moved)


def pad_texts(texts: Sequence[np.ndarray], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Texts (K_i, D) as (C, K, D) with mask (C, K), K the longest; a text over max_tokens keeps its last token, EOS.

    Deviation from the official code, which cuts EOS off and so makes long captions indistinguishable (spec §1.3).
    """
    cut = [text if len(text) <= max_tokens else np.concatenate([text[: max_tokens - 1], text[-1:]]) for text in texts]
    longest = max(len(text) for text in cut)
    padded = torch.zeros(len(cut), longest, cut[0].shape[-1])
    mask = torch.zeros(len(cut), longest, dtype=torch.bool)
    for row, text in enumerate(cut):
        padded[row, : len(text)] = torch.from_numpy(np.asarray(text, dtype=np.float32))
        mask[row, : len(text)] = True
    return padded, mask


def collate(
    examples: Sequence[Example], *, max_text_tokens: int, class_texts: tuple[Tensor, Tensor] | None = None
) -> Batch:
    """Stack examples. With class_texts (tokens, mask) these are the texts; else each example's own query is."""
    if class_texts is None:
        texts, text_mask = pad_texts([example.text for example in examples], max_text_tokens)
    else:
        texts, text_mask = class_texts
    segments, segment_text = _pad_segments(examples, own_text=class_texts is None)
    return Batch(
        examples=tuple(examples),
        frames=torch.from_numpy(np.stack([example.frames for example in examples])),
        frame_mask=torch.from_numpy(np.stack([example.frame_mask for example in examples])),
        texts=texts,
        text_mask=text_mask,
        segments_steps=segments,
        segment_text=segment_text,
        step_classes=_stack([example.step_classes for example in examples]),
        **(_ratings(examples) if class_texts is None else {}),
    )


def _ratings(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Also where none is rated: processes that train together must all sum the same losses."""
    unrated = np.zeros(len(examples[0].frames), dtype=np.float32)
    saliency = np.stack([unrated if example.saliency is None else example.saliency for example in examples])
    is_rated = torch.tensor([example.saliency is not None for example in examples])
    return {"saliency": torch.from_numpy(saliency), "is_rated": is_rated}


def choose_classes(present: np.ndarray, num_classes: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) different class indices: those present (all, or a random part of them), then random others."""
    present = rng.permutation(np.unique(present[present >= 0]))[:count]
    others = rng.permutation(np.setdiff1d(np.arange(num_classes), present))
    return np.concatenate([present, others[: count - len(present)]]).astype(np.int64)


def collate_class_pairs(examples: Sequence[Example], class_texts: tuple[Tensor, Tensor], classes: np.ndarray) -> Batch:
    """One row per (video, class) of `classes` (B, M): the video's frames again, that class as the row's only text.

    A step then fuses M classes per video instead of all of them.
    """
    count = classes.shape[1]
    longest = max(1, *(len(example.segments_steps) for example in examples))
    segments = torch.zeros(classes.size, longest, 2)
    text = torch.full((classes.size, longest), -1, dtype=torch.long)
    for row, (index, class_index) in enumerate((b, c) for b, chosen in enumerate(classes) for c in chosen):
        own = examples[index].segments_steps[examples[index].segment_classes == class_index]
        segments[row, : len(own)] = torch.from_numpy(own)
        text[row, : len(own)] = row
    flat = torch.from_numpy(classes.reshape(-1))
    frames = torch.from_numpy(np.stack([example.frames for example in examples]))
    mask = torch.from_numpy(np.stack([example.frame_mask for example in examples]))
    steps = _stack([example.step_classes for example in examples])
    return Batch(
        examples=tuple(example for example in examples for _ in range(count)),
        frames=frames.repeat_interleave(count, dim=0),
        frame_mask=mask.repeat_interleave(count, dim=0),
        texts=class_texts[0][flat],
        text_mask=class_texts[1][flat],
        segments_steps=segments,
        segment_text=text,
        step_labels=None if steps is None else steps.repeat_interleave(count, dim=0) == flat[:, None],
        rows_per_video=count,
    )


def _pad_segments(examples: Sequence[Example], *, own_text: bool) -> tuple[Tensor, Tensor]:
    longest = max(1, *(len(example.segments_steps) for example in examples))
    segments = torch.zeros(len(examples), longest, 2)
    text = torch.full((len(examples), longest), -1, dtype=torch.long)
    for row, example in enumerate(examples):
        count = len(example.segments_steps)
        segments[row, :count] = torch.from_numpy(example.segments_steps)
        text[row, :count] = row if own_text else torch.as_tensor(example.segment_classes.tolist())
    return segments, text


def _stack(arrays: Sequence[np.ndarray | None]) -> Tensor | None:
    return None if arrays[0] is None else torch.from_numpy(np.stack(arrays))
