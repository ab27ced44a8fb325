"""Official annotation formats into the one manifest schema; `CONVERTERS` names them. No converter imports another."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from unloc.data.schema import Manifest
from unloc.errors import InputError

CONVERTERS = {
    "activitynet": "activitynet",
    "activitynet-captions": "activitynet_captions",
    "charades-sta": "charades_sta",
    "qvhighlights": "qvhighlights",
    "coin": "coin",
    "thumos14": "thumos14",
}


def convert(name: str, paths: Sequence[Path], split: str | None = None) -> Manifest:
    """The manifest of official annotation files. Raises InputError for an unknown format name."""
    if name not in CONVERTERS:
        raise InputError(f"format {name!r} is not known; expected one of {', '.join(CONVERTERS)}")
    convert_: Callable[[list[Path], str | None], Manifest] = import_module(
        f"unloc.data.converters.{CONVERTERS[name]}"
    ).convert
    return convert_(list(paths), split)
