"""Which texts a manifest needs in a cache."""

from unloc.annotations.schema import Manifest
from unloc.examples.prompts import prompted


def manifest_texts(manifest: Manifest, *, prompts: bool = True) -> list[str]:
    """Every sentence and every class name, and with `prompts` every class name in the 28 CLIP Kinetics prompts."""
    names = list(manifest.classes)
    texts = [*manifest.queries["text"], *names]
    if prompts:
        texts += [text for name in names for text in prompted(name)]
    return list(dict.fromkeys(texts))
