"""Examples and batches: what the model and the losses are given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from unloc.examples.steps import TimeGrid


@dataclass(frozen=True, kw_only=True)
class Example:
    """One video, or one (video, query) pair, on its level-0 steps."""

    video_id: str
    frames: np.ndarray  # (T, D) frame tokens, float16 or float32, or pixels
    frame_mask: np.ndarray  # (T,) bool, true where valid
    duration_seconds: float  # length of the video
    grid: TimeGrid | None = None  # steps to seconds; None for consecutive tokens, which are not evenly spaced (AS)
    text: np.ndarray | None = None  # (K, Dt) tokens of the example's own query (query tasks)
    segments_steps: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # (N, 2) segments in steps
    segment_classes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # (N,) class of each
    step_classes: np.ndarray | None = None  # (T,) class index of each step, -1 background (AS)
    saliency: np.ndarray | None = None  # (T,) saliency 0-1 of each step (HD)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples stacked. B examples, T steps, C texts, K text tokens, N segments (padded)."""

    video_ids: tuple[str, ...]  # the video of each of the B rows, for messages
    frames: Tensor  # (B, T, D)
    frame_mask: Tensor  # (B, T) bool
    texts: Tensor  # (C, K, Dt): the examples' own queries (C = B), or the class names
    text_mask: Tensor  # (C, K) bool
    segments_steps: Tensor  # (B, N, 2)
    segment_text: Tensor  # (B, N) index into the texts, -1 where padded
    step_labels: Tensor | None = None  # (B, C, T) true where the step is of the class; of class pairs C is 1 (AS)
    saliency: Tensor | None = None  # (B, T), 0 where the query is not rated (query tasks)
    is_rated: Tensor | None = None  # (B,) bool, true where the query has ratings (query tasks)
    place: tuple[int, int] | None = None  # first of these videos in the batch of all processes, and how many that has
    task: str = ""  # which task these are examples of
    rows_per_video: int = 1  # rows of one video (class pairs), else 1
    all_frames_valid: bool = False  # true where frame_mask is known to be true everywhere
    all_tokens_valid: bool = False  # the same of text_mask

    @property
    def model_masks(self) -> tuple[Tensor | None, Tensor | None]:
        """frame_mask and text_mask as the model takes them: None where all are valid."""
        frame_mask = None if self.all_frames_valid else self.frame_mask
        return frame_mask, None if self.all_tokens_valid else self.text_mask

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device, float16 as float32. From pinned memory the copy is not waited for."""

        def moved(tensor: Tensor) -> Tensor:
            tensor = tensor.to(device, non_blocking=True)
            return tensor.float() if tensor.dtype == torch.float16 else tensor

        return self._mapped(moved)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (DataLoader calls this)."""
        return self._mapped(Tensor.pin_memory)

    def videos(self, first: int, end: int, *, own_texts: bool) -> "Batch":
        """The batch of some of its videos. `own_texts`: the texts are one per row, and go with it."""
        rows = slice(first * self.rows_per_video, end * self.rows_per_video)
        whole = ("frames",) if own_texts else ("frames", "texts", "text_mask")
        tensors = {key: value for key, value in vars(self).items() if isinstance(value, Tensor) and key not in whole}
        part = {key: value[rows] for key, value in tensors.items()} | {"frames": self.frames[first:end]}
        if own_texts:
            text = part["segment_text"]
            part["segment_text"] = (text - rows.start).where(text >= 0, -1)
        return replace(self, video_ids=self.video_ids[rows], **part)

    def __reduce__(self) -> tuple:
        """Between processes a batch is one block of memory: each tensor by itself would cost a connection."""
        fields = dict(vars(self))
        tensors = {key: value for key, value in fields.items() if isinstance(value, Tensor)}
        layouts = {key: (value.shape, value.dtype, value.nbytes) for key, value in tensors.items()}
        blocks = [pad(value.flatten().view(torch.uint8), (0, -value.nbytes % 8)) for value in tensors.values()]
        return _unpacked, ({**fields, **layouts}, list(layouts), torch.cat(blocks))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(self, **{key: change(value) for key, value in vars(self).items() if isinstance(value, Tensor)})


def _unpacked(fields: dict, packed: list[str], block: Tensor) -> Batch:
    start = 0
    for key in packed:
        shape, dtype, size = fields[key]
        fields[key] = block[start : start + size].view(dtype).view(shape)
        start += size + -size % 8
    return Batch(**fields)


def pad_texts(texts: Sequence[np.ndarray], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Texts (K_i, D) or ids (K_i,) as (C, K, …) with mask (C, K), K the longest. A text over max_tokens keeps its last
    token, EOS (the official code cuts it off: long captions become alike).
    """
    cut = [text if len(text) <= max_tokens else np.concatenate([text[: max_tokens - 1], text[-1:]]) for text in texts]
    rows = [torch.from_numpy(text.astype(np.float32 if text.ndim > 1 else np.int64)) for text in cut]
    padded, lengths = pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def collate(
    examples: Sequence[Example], *, max_text_tokens: int, class_texts: tuple[Tensor, Tensor] | None = None
) -> Batch:
    """Stack examples. The texts are `class_texts` (tokens, mask), or without them each example's own query."""
    texts, text_mask = class_texts or pad_texts([example.text for example in examples], max_text_tokens)
    longest = max(1, *(len(example.segments_steps) for example in examples))
    segments = np.zeros((len(examples), longest, 2), dtype=np.float32)
    segment_text, labels = np.full((len(examples), longest), -1), {}
    for row, example in enumerate(examples):
        count = len(example.segments_steps)
        segments[row, :count] = example.segments_steps
        segment_text[row, :count] = row if class_texts is None else example.segment_classes
    if class_texts is None:  # also where no query is rated: processes that train together must sum the same losses
        unrated = np.zeros(len(examples[0].frames), dtype=np.float32)
        saliency = [unrated if example.saliency is None else example.saliency for example in examples]
        labels["saliency"] = torch.from_numpy(np.stack(saliency))
        labels["is_rated"] = torch.tensor([example.saliency is not None for example in examples])
    elif examples[0].step_classes is not None:
        steps = torch.from_numpy(np.stack([example.step_classes for example in examples]))
        labels["step_labels"] = steps[:, None] == torch.arange(len(texts))[:, None]
    frame_mask = torch.from_numpy(np.stack([example.frame_mask for example in examples]))
    return Batch(
        video_ids=tuple(example.video_id for example in examples),
        frames=torch.from_numpy(np.stack([example.frames for example in examples])),
        frame_mask=frame_mask,
        all_frames_valid=bool(frame_mask.all()),
        all_tokens_valid=bool(text_mask.all()),
        texts=texts,
        text_mask=text_mask,
        segments_steps=torch.from_numpy(segments),
        segment_text=torch.from_numpy(segment_text),
        **labels,
    )


def class_pairs(batch: Batch, classes: np.ndarray) -> Batch:
    """One row per (video, class) of `classes` (B, M), that class its only text; frames stay one row per video."""
    count, classes = classes.shape[1], torch.from_numpy(classes).flatten()
    video, row = torch.arange(len(batch.frames)).repeat_interleave(count), torch.arange(len(classes))
    text_mask = batch.text_mask[classes]
    return replace(
        batch,
        video_ids=tuple(batch.video_ids[index] for index in video),
        frame_mask=batch.frame_mask[video],
        all_tokens_valid=bool(text_mask.all()),
        texts=batch.texts[classes],
        text_mask=text_mask,
        segments_steps=batch.segments_steps[video],
        segment_text=row[:, None].where(batch.segment_text[video] == classes[:, None], -1),
        step_labels=None if batch.step_labels is None else batch.step_labels[video, classes][:, None],
        rows_per_video=count,
    )
