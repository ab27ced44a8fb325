"""Class names as text tokens, plain or through prompts (spec §4.6)."""

import numpy as np
from torch import Tensor

from unloc.cache.reading import Cache
from unloc.config import DataConfig
from unloc.examples.batches import pad_texts
from unloc.examples.prompts import prompted


class ClassTexts:
    """Tokens of every class name under every prompt, read from the cache once."""

    def __init__(self, classes: tuple[str, ...], cache: Cache, config: DataConfig) -> None:
        self.max_tokens = config.max_text_tokens
        phrasings = [prompted(name) if config.prompts else [name] for name in classes]
        self.num_prompts = len(phrasings[0])
        self.num_averaged = self.num_prompts if config.prompt_ensembling else 1
        flat = cache.texts([text for row in phrasings for text in row])
        self._tokens = [flat[start : start + self.num_prompts] for start in range(0, len(flat), self.num_prompts)]

    def sample(self, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """(C, K, D) and mask (C, K): each class under a prompt of its own drawing, or without rng under the first."""
        chosen = [0 if rng is None else int(rng.integers(self.num_prompts)) for _ in self._tokens]
        return pad_texts([row[prompt] for row, prompt in zip(self._tokens, chosen, strict=True)], self.max_tokens)

    def prompt(self, index: int) -> tuple[Tensor, Tensor]:
        """(C, K, D) and mask (C, K): all classes under one prompt."""
        return pad_texts([row[index] for row in self._tokens], self.max_tokens)
