"""Class names replaced by made-up words: a control that shows what a zero-shot figure owes to the names.

A model asked for classes by words that mean nothing can localise, but cannot know which class is which; what it still
scores does not come from reading the names.
"""

from dataclasses import replace

import numpy as np

from unloc.annotations.schema import Manifest

_CONSONANTS, _VOWELS = tuple("bdfgklmnprstvz"), tuple("aeiou")


def nonsense_names(names: tuple[str, ...], seed: int = 0) -> dict[str, str]:
    """A made-up name for every name, with as many words of the same lengths; all different.

    Each follows from its name and the seed alone, whatever other names there are, but for a rare clash.
    """
    made: dict[str, str] = {}
    for name in names:
        rng = np.random.default_rng([seed, *name.encode()])
        new = _made_up(name, rng)
        while new in made.values() or new in names:
            new = f"{new} {_made_up('word', rng)}"
        made[name] = new
    return made


def _made_up(name: str, rng: np.random.Generator) -> str:
    """Consonants and vowels in turn; a letter more for a word of one letter, which could be an article."""
    words = []
    for word in name.split() or ["word"]:
        letters = [rng.choice(_VOWELS if place % 2 else _CONSONANTS) for place in range(max(2, len(word)))]
        words.append("".join(letters))
    return " ".join(words)


def nonsense_manifest(manifest: Manifest, seed: int = 0) -> Manifest:
    """The manifest with its classes renamed to nonsense, in the same order; videos and segments stay."""
    made = nonsense_names(manifest.classes, seed)
    instances = manifest.instances.assign(label=manifest.instances["label"].map(made))
    return replace(
        manifest,
        name=f"{manifest.name}_nonsense",
        classes=tuple(made[name] for name in manifest.classes),
        instances=instances,
    )
