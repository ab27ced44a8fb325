"""Official annotation formats into the one manifest schema; `CONVERTERS` names them. No converter imports another."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from unloc.annotations.official import Repairs
from unloc.annotations.schema import Manifest
from unloc.errors import InputError, ManifestError

RENDERED_ID = r"v_synth\d+_\d+"  # what `unloc data synth` calls its videos, in every format
CONVERTERS = {
    "activitynet": "activitynet",
    "activitynet-captions": "activitynet_captions",
    "charades-sta": "charades_sta",
    "qvhighlights": "qvhighlights",
    "coin": "coin",
    "thumos14": "thumos14",
    "timelens": "timelens",
}


def convert(name: str, paths: Sequence[Path], split: str | None = None, repairs: Repairs | None = None) -> Manifest:
    """The manifest of official annotation files or folders of them; what was changed is told in `repairs`.

    `split` keeps one subset where the files state subsets, and names the split where they do not.
    Raises InputError for an unknown format name, MissingError for absent files, ManifestError with file and place.
    """
    if name not in CONVERTERS:
        raise InputError(f"format {name!r} is not known; expected one of {', '.join(CONVERTERS)}")
    convert_: Callable[[list[Path], str | None, Repairs], Manifest] = import_module(
        f"unloc.annotations.converters.{CONVERTERS[name]}"
    ).convert
    manifest = convert_(list(paths), split, Repairs() if repairs is None else repairs)
    if manifest.videos.empty:
        raise ManifestError(f"{paths[0]}: no video in these annotations; is {name} their format?")
    if not manifest.videos["video_id"].str.strip().all():
        raise ManifestError(f"{paths[0]}: a video without an id in these annotations")
    if manifest.videos["video_id"].str.fullmatch(RENDERED_ID).all():
        source = f"synthetic world rendered by unloc, annotations in the format {name}"
        return replace(manifest, name=f"synthetic_{manifest.name}", source=source)
    return manifest
