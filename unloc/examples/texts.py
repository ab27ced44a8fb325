"""Which texts a manifest needs, and class names as text tokens, plain or in prompts (UnLoc §4.2)."""

import numpy as np
from torch import Tensor

from unloc.annotations.schema import Manifest
from unloc.config import DataConfig
from unloc.examples.batches import pad_texts
from unloc.examples.sources import Source

_ACTS = ("", " a person", *(f" a person {verb}" for verb in ("using", "doing", "during", "performing", "practicing")))
_MEDIA = ("a photo", "a video", "a example", "a demonstration")
KINETICS_PROMPTS = tuple(f"{medium} of{act} {{}}." for act in _ACTS for medium in _MEDIA)
"""The 28 prompts that CLIP was published with for Kinetics."""


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
