"""Where examples get frames and texts from: tokens of a cache, or pixels and token ids for towers in the model.

Which texts a manifest needs, and class names as text tokens, plain or in prompts (UnLoc §4.2).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from torch import Tensor

from unloc.annotations.schema import Manifest
from unloc.cache.reading import Cache
from unloc.config import DataConfig
from unloc.examples.batches import pad_texts

_ACTS = ("", " a person", *(f" a person {verb}" for verb in ("using", "doing", "during", "performing", "practicing")))
_MEDIA = ("a photo", "a video", "a example", "a demonstration")
KINETICS_PROMPTS = tuple(f"{medium} of{act} {{}}." for act in _ACTS for medium in _MEDIA)
"""The 28 prompts that CLIP was published with for Kinetics."""


Tokenize = Callable[[list[str]], tuple[Tensor, Tensor]]  # ids (C, K) of texts, mask (C, K) true where not padding


@dataclass(frozen=True)
class VideoFrames:
    """The frames of one video with their true times."""

    video_id: str
    frames: np.ndarray  # (T, …) one row per frame: (T, D) tokens as a cache has them, or pixels
    times_seconds: np.ndarray  # (T,) when each frame is shown, ascending
    duration_seconds: float  # length of the video


class Source(Protocol):
    """Frames of videos and the texts that go with them."""

    name: str  # for messages: where it is

    def __contains__(self, video_id: str) -> bool: ...

    def durations_of(self, video_ids: Iterable[str]) -> dict[str, float]:
        """Measured seconds of those videos that are here."""

    def video_sha256(self, video_id: str) -> str | None:
        """What identifies a video's frames, where known."""

    def frames(self, video_id: str, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """Frames (T, …) and times (T,) of a video. With a generator frames may be augmented."""

    def texts(self, texts: list[str]) -> list[np.ndarray]:
        """Of each text its K tokens, BOS to EOS: (K, D) vectors or (K,) ids."""


class CachedTokens:
    """Tokens that `unloc extract` made; with `tokenize` texts are ids, for a text tower in the model."""

    def __init__(self, cache: Cache, tokenize: Tokenize | None = None) -> None:
        self.cache, self.name, self.durations_of = cache, str(cache.path), cache.durations_of
        self.texts = cache.texts if tokenize is None else partial(token_ids, tokenize)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.cache

    def video_sha256(self, video_id: str) -> str | None:
        """Checksum of the video's tokens."""
        return self.cache.row(self.cache.own_id(video_id)).get("tokens_sha256")

    def frames(self, video_id: str, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (T, D) and times (T,): view 0 (the centre crop), or with a generator a random view."""
        cached = self.cache[video_id]
        view = 0 if rng is None or len(cached.frames) == 1 else int(rng.integers(len(cached.frames)))
        return cached.frames[view], cached.times_seconds


def token_ids(tokenize: Tokenize, texts: list[str]) -> list[np.ndarray]:
    """Ids (K,) of each text, BOS to EOS."""
    return [row[valid].numpy() for row, valid in zip(*tokenize(texts), strict=True)] if texts else []


def prompted(class_name: str) -> list[str]:
    """A class name in all 28 prompts, underscores read as blanks."""
    return [prompt.format(class_name.replace("_", " ")) for prompt in KINETICS_PROMPTS]


def manifest_texts(manifest: Manifest, *, prompts: bool = True) -> list[str]:
    """Every sentence and every class name, and with `prompts` every class name in the 28 prompts."""
    texts = [*manifest.queries["text"], *manifest.classes]
    if prompts:
        texts += [text for name in manifest.classes for text in prompted(name)]
    return list(dict.fromkeys(texts))


class ClassTexts:
    """Tokens of every class name in every prompt, read from the source once."""

    def __init__(self, classes: tuple[str, ...], source: Source, config: DataConfig) -> None:
        self.max_tokens = config.max_text_tokens
        phrasings = [prompted(name) if config.prompts else [name] for name in classes]
        self.num_prompts = len(phrasings[0])
        self.num_averaged = self.num_prompts if config.prompt_ensembling else 1
        flat = source.texts([text for row in phrasings for text in row])
        self._tokens = [flat[start : start + self.num_prompts] for start in range(0, len(flat), self.num_prompts)]

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(C, K, D) and mask (C, K): each class in a random prompt."""
        return pad_texts([row[int(rng.integers(self.num_prompts))] for row in self._tokens], self.max_tokens)

    def prompt(self, index: int) -> tuple[Tensor, Tensor]:
        """(C, K, D) and mask (C, K): all classes in one prompt."""
        return pad_texts([row[index] for row in self._tokens], self.max_tokens)
