"""Official annotation formats into the one manifest schema; `CONVERTERS` names them. No converter imports another."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from unloc.annotations.converters import clips, instances, queries
from unloc.annotations.reading import Problems
from unloc.annotations.schema import Manifest, build_manifest
from unloc.errors import InputError, ManifestError

CONVERTERS = {  # what gives the rows and classes of files, the tasks they serve, and their source
    "activitynet": (instances.activitynet, ("tal",), "ActivityNet 1.3"),
    "activitynet-captions": (queries.activitynet_captions, ("mr",), "ActivityNet Captions"),
    "charades-sta": (queries.charades_sta, ("mr",), "Charades-STA"),
    "qvhighlights": (queries.qvhighlights, ("mr", "hd"), "QVHighlights"),
    "coin": (instances.coin, ("as",), "COIN"),
    "thumos14": (partial(instances.activitynet, dataset="thumos14"), ("tal",), "THUMOS14"),
    "timelens": (queries.timelens, ("mr",), "TimeLens"),
    "kinetics": (clips.kinetics, ("cls",), "Kinetics"),
}
RENDERED_ID = r"v_synth\d+_\d+(_\d{6}_\d{6})?"  # video and clip ids of `unloc data synth`, in every format


def convert(name: str, paths: Sequence[Path], split: str | None = None, problems: Problems | None = None) -> Manifest:
    """The manifest of official annotation files or folders of them; every change is logged in `problems`.

    `split` keeps one subset where the files state subsets, and names the split where they do not. Raises InputError for
    an unknown format, MissingError for absent files, ManifestError with file and place.
    """
    if name not in CONVERTERS:
        raise InputError(f"format {name!r} is not known; expected one of {', '.join(CONVERTERS)}")
    if split is not None and not split.strip():
        raise InputError("--split: got an empty name; name a split, or leave it out to keep all")
    read, tasks, source = CONVERTERS[name]
    rows, classes = read(list(paths), split, Problems() if problems is None else problems)
    manifest = build_manifest(name=name.replace("-", "_"), tasks=tasks, classes=classes, source=source, rows=rows)
    if split is not None and len(manifest.videos):
        known = {subset.lower(): subset for subset in manifest.splits}
        if split.lower() not in known:
            counts = manifest.videos["split"].value_counts(sort=False).items()
            has = ", ".join(f"{subset} ({count} videos)" for subset, count in counts)
            raise ManifestError(f"{paths[0]}: no video of split {split!r}; these annotations have {has}")
        manifest = manifest.select(known[split.lower()])
    ids = manifest.videos["video_id"]
    if ids.empty or not ids.str.strip().all():
        what = "no video" if ids.empty else "a video without an id"
        raise ManifestError(f"{paths[0]}: {what} in these annotations; is {name} their format?")
    if ids.str.fullmatch(RENDERED_ID).all():
        source = f"synthetic world rendered by unloc, annotations in the format {name}"
        return replace(manifest, name=f"synthetic_{manifest.name}", source=source)
    return manifest
