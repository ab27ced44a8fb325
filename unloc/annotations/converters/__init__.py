"""Annotations into the one manifest schema: `CONVERTERS` of official formats, `OWN` data, and those of other packages,
which are functions as in `OWN`. None imports another.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from unloc.annotations.converters import instances, own, queries, tools
from unloc.annotations.own import Media, own_tasks
from unloc.annotations.reading import Problems
from unloc.annotations.schema import Manifest, build_manifest
from unloc.callbacks import OnProgress
from unloc.errors import InputError, ManifestError
from unloc.plugins import added, added_names

CONVERTERS = {  # what gives the rows and classes of files, the tasks they serve, and their source
    "activitynet": (instances.activitynet, ("tal",), "ActivityNet 1.3"),
    "activitynet-captions": (queries.activitynet_captions, ("mr",), "ActivityNet Captions"),
    "charades-sta": (queries.charades_sta, ("mr",), "Charades-STA"),
    "qvhighlights": (queries.qvhighlights, ("mr", "hd"), "QVHighlights"),
    "coin": (instances.coin, ("as",), "COIN"),
    "thumos14": (partial(instances.activitynet, dataset="thumos14"), ("tal",), "THUMOS14"),
    "timelens": (queries.timelens, ("mr",), "TimeLens"),
    "gmr": (partial(queries.nullable, gmr=True), ("mr",), "GMR (generalized moment retrieval)"),
    "na-vmr": (queries.nullable, ("mr",), "NA-VMR (negative-aware video moment retrieval)"),
    "kinetics": (instances.kinetics, ("cls",), "Kinetics"),
}
OWN = {  # what gives the rows and classes of own labels, and their source
    "csv": (own.csv_or_json, "csv or JSON"),
    "json": (own.csv_or_json, "csv or JSON"),
    "folder": (own.folder, "clips in folders of classes"),
    "mstcn": (own.mstcn, "frame labels in MS-TCN's format"),
    "labelstudio": (tools.label_studio, "Label Studio"),
    "fiftyone": (tools.fiftyone, "FiftyOne"),
}
RENDERED_ID = r"v_synth\d+_\d+(_\d{6}_\d{6})?"  # video and clip ids of `unloc data synth`, in every format


def convert(
    name: str,
    paths: Sequence[Path],
    split: str | None = None,
    problems: Problems | None = None,
    media: Media | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Manifest:
    """The manifest of annotation files or folders of them; every change is logged in `problems`.

    `split` keeps one subset where the files state subsets, and names the split where they do not. Unknown durations are
    measured from the files of `media`. Raises InputError for an unknown format, MissingError for absent files,
    ManifestError with file and place.
    """
    own = OWN.get(name)
    if own is None and name not in CONVERTERS:
        own = (added("converters", name), f"format {name} of another package")
        if own[0] is None:
            known = ", ".join([*CONVERTERS, *OWN, *added_names("converters")])
            raise InputError(f"format {name!r} is not known; expected one of {known}")
    if split is not None and not split.strip():
        raise InputError("--split: got an empty name; name a split, or leave it out to keep all")
    media, problems = media or Media(), Problems() if problems is None else problems
    media.problems = problems
    if own:
        read, source = own
        rows, classes = read(list(paths), split, media)
        name, tasks = paths[0].resolve().stem or name, own_tasks(rows)
    else:
        read, tasks, source = CONVERTERS[name]
        rows, classes = read(list(paths), split, problems)
    manifest = build_manifest(name=name.replace("-", "_"), tasks=tasks, classes=classes, source=source, rows=rows)
    manifest = media.measure(manifest, on_progress) if media.videos else manifest
    if manifest.instances["end_seconds"].isna().any():  # labels of whole videos
        durations = manifest.instances["video_id"].map(manifest.stated_durations())
        ends = manifest.instances["end_seconds"].fillna(durations)
        if ends.isna().any():
            first = manifest.instances["video_id"][ends.isna()].iloc[0]
            raise ManifestError(f"{paths[0]}: the duration of {first}, which a label is of, is unknown; give --videos")
        manifest = replace(manifest, instances=manifest.instances.assign(end_seconds=ends))
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
