"""Official annotation formats into the one manifest schema; `CONVERTERS` names them. No converter imports another."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from unloc.annotations.converters import instances, queries, timelens
from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest
from unloc.errors import InputError, ManifestError

CONVERTERS: dict[str, Callable[[list[Path], str | None, Problems], Manifest]] = {
    "activitynet": instances.activitynet,
    "activitynet-captions": queries.activitynet_captions,
    "charades-sta": queries.charades_sta,
    "qvhighlights": queries.qvhighlights,
    "coin": instances.coin,
    "thumos14": instances.thumos14,
    "timelens": timelens.convert,
}
RENDERED_ID = r"v_synth\d+_\d+"  # video ids of `unloc data synth`, in every format


def convert(name: str, paths: Sequence[Path], split: str | None = None, problems: Problems | None = None) -> Manifest:
    """The manifest of official annotation files or folders of them; every change is logged in `problems`.

    `split` keeps one subset where the files state subsets, and names the split where they do not.
    Raises InputError for an unknown format name, MissingError for absent files, ManifestError with file and place.
    """
    if name not in CONVERTERS:
        raise InputError(f"format {name!r} is not known; expected one of {', '.join(CONVERTERS)}")
    manifest = CONVERTERS[name](list(paths), split, Problems() if problems is None else problems)
    if manifest.videos.empty or not manifest.videos["video_id"].str.strip().all():
        what = "no video" if manifest.videos.empty else "a video without an id"
        raise ManifestError(f"{paths[0]}: {what} in these annotations; is {name} their format?")
    if manifest.videos["video_id"].str.fullmatch(RENDERED_ID).all():
        source = f"synthetic world rendered by unloc, annotations in the format {name}"
        return replace(manifest, name=f"synthetic_{manifest.name}", source=source)
    return manifest
