"""One manifest schema for all tasks: which videos exist and what is annotated in them.

A manifest is a JSON-lines file. The first line describes it; every other line is one row with a `kind`:

    {"kind": "manifest", "version": 1, "name": "charades_sta", "tasks": ["mr"], "classes": [], "source": "…"}
    {"kind": "video",    "video_id": "3MSZA", "split": "test", "file": null, "duration_seconds": 30.96}
    {"kind": "query",    "video_id": "3MSZA", "split": "test", "qid": "7", "text": "…", "segments": [[24.3, 30.4]],
                         "relevant_clip_ids": [12, 13], "saliency_scores": [[4, 3, 2], [1, 0, 2]]}
    {"kind": "instance", "video_id": "v1", "split": "validation", "label": "Long jump", "segment": [3.1, 9.8]}

Times are seconds from the start of the video, segments half-open. A video may be in several splits (ActivityNet
Captions val_1 and val_2): videos are keyed by (video_id, split), and annotations name the same pair.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from unloc.annotations.reading import Name, Problems, Segment, brief, listed_filter, parse_json, read_as, read_lines
from unloc.errors import InputError, ManifestError, MissingError
from unloc.files import url_of, write_file
from unloc.tasks import task_named

if TYPE_CHECKING:
    from unloc.cache.reading import Cache

CLIP_SECONDS = 2.0  # QVHighlights: saliency is given per clip of this length
HEADER = {"version": float, "name": str, "tasks": list[str], "classes": list[str] | None, "source": str | None}


@dataclass(frozen=True)
class VideoRow:
    """A video of a split."""

    video_id: Name
    split: Name
    duration_seconds: float | None  # None where unknown
    file: str | None = None  # path below the video folder; None: the file is found by the video's id


@dataclass(frozen=True)
class QueryRow:
    """A sentence and where it happens, for moment retrieval and highlight detection."""

    video_id: Name
    split: Name
    qid: Name
    text: str
    segments: list[Segment]  # empty where the split hides them
    relevant_clip_ids: list[float] | None = None  # indices of 2 s clips
    saliency_scores: list[list[float]] | None = None  # for each relevant clip the ratings of three people, 0-4


@dataclass(frozen=True)
class InstanceRow:
    """A labelled segment, for action localization and segmentation; for classification the whole video."""

    video_id: Name
    split: Name
    label: Name
    segment: Segment


Row = VideoRow | QueryRow | InstanceRow
Rows = tuple[Sequence[Row], Sequence[str]]  # of a converter: rows of a manifest, and its classes
ROWS = {"manifest": HEADER, "video": VideoRow, "query": QueryRow, "instance": InstanceRow}
INSTANCE_COLUMNS = ["video_id", "split", "label", "start_seconds", "end_seconds", "line"]
_TABLES = {"video": "videos", "query": "queries", "instance": "instances"}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Videos and their annotations as tables of the rows above; `line` is a row's line in the manifest file."""

    name: str
    tasks: tuple[str, ...]  # which of mr, tal, as, hd, cls the annotations serve
    classes: tuple[str, ...]  # class names in their fixed order; empty for query datasets
    source: str  # where the annotations came from
    videos: pd.DataFrame  # one row per (video_id, split); duration_seconds is NaN where unknown
    queries: pd.DataFrame  # one row per sentence
    instances: pd.DataFrame  # one row per labelled segment: start_seconds, end_seconds

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in order of first appearance."""
        return list(dict.fromkeys(self.videos["split"]))

    def filter(self, keep: Callable[[pd.DataFrame], pd.Series]) -> "Manifest":
        """The manifest with those rows of its three tables for which `keep(table)` is true."""
        tables = {key: getattr(self, key) for key in _TABLES.values()}
        return replace(self, **{key: table[keep(table)].reset_index(drop=True) for key, table in tables.items()})

    def select(self, split: str | None) -> "Manifest":
        """The manifest restricted to one split; None keeps all. Raises MissingError where the split does not exist."""
        if split is None:
            return self
        if split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise MissingError(f"split {split!r} is not in manifest {self.name!r}; it has: {known}")
        return self.filter(lambda table: table["split"] == split)

    def stated_durations(self) -> dict[str, float]:
        """Seconds of every video, NaN where unknown."""
        return self.videos.drop_duplicates("video_id").set_index("video_id")["duration_seconds"].to_dict()

    def required_durations(self) -> dict[str, float]:
        """Seconds of every video. Raises InputError where one is unknown (nothing guesses it), with ways to find it."""
        durations, unknown = self.stated_durations(), self.videos["video_id"][~_has_duration(self)].unique()
        if len(unknown):
            counts = f"{len(unknown)} of {len(durations)} videos (first: {unknown[0]})"
            problem = f"manifest {self.name!r} states no duration for {counts}, which metrics and floors need"
            advice = "measure them: unloc data check MANIFEST --videos DIR --out NEW"
            raise InputError(f"{problem}: give --cache with a cache of these videos, or {advice}")
        return durations


def build_manifest(
    *,
    name: str,
    tasks: Iterable[str],
    rows: Iterable[Row],
    classes: Iterable[str] = (),
    source: str = "",
    lines: Sequence[int] | None = None,
) -> Manifest:
    """A manifest from rows and the line of each in its file; without `lines`, those that `save_manifest` gives them."""
    if lines is None:
        order = [ROWS[kind] for kind in _TABLES]
        rows = sorted(rows, key=lambda row: order.index(type(row)))
        lines = range(2, 2 + len(rows))
    numbered, tables = list(zip(rows, lines, strict=True)), {}
    for kind, key in _TABLES.items():
        records = [vars(row) | {"line": line} for row, line in numbered if isinstance(row, ROWS[kind])]
        columns = [*(item.name for item in fields(ROWS[kind])), "line"]
        if kind == "instance":
            columns = INSTANCE_COLUMNS
            for record in records:
                record["start_seconds"], record["end_seconds"] = record["segment"]
        types = {"line": int} | {column: float for column in columns if column.endswith("_seconds")}
        tables[key] = pd.DataFrame(records, columns=columns).astype(types)
    return Manifest(name=name, tasks=tuple(tasks), classes=tuple(classes), source=source, **tables)


def manifest_rows(manifest: Manifest) -> Iterator[dict]:
    """All rows as JSON objects: videos, then queries, then instances; of unknown values only a duration is stated."""
    for kind, key in _TABLES.items():
        for row in getattr(manifest, key).drop(columns="line").to_dict("records"):
            if kind == "instance":
                row["segment"] = [row.pop("start_seconds"), row.pop("end_seconds")]
            row = {name: None if value != value else value for name, value in row.items()}  # NaN is unknown
            known = {name: value for name, value in row.items() if value is not None or name == "duration_seconds"}
            yield {"kind": kind} | known


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Write the manifest, whole or not at all. Raises OSError, or InputError where a text cannot be encoded."""
    header = {"kind": "manifest", "version": 1, "name": manifest.name, "tasks": list(manifest.tasks)}
    header |= {"classes": list(manifest.classes), "source": manifest.source}
    rows = [header, *manifest_rows(manifest)]
    try:
        write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    except UnicodeEncodeError as error:
        text = error.object[max(error.start - 20, 0) : error.end].encode("ascii", "backslashreplace").decode()
        raise InputError(f"manifest {path} cannot be written: a lone surrogate in {text!r}") from None


def load_manifest(path: Path | str, unreadable: dict[int, str] | None = None) -> Manifest:
    """Read a manifest file or URL. With `unreadable`, lines that are not rows go there with the reason and are skipped.
    Raises MissingError where the file is absent, ManifestError with file and line where a row cannot be read.
    """
    if url_of(path) is None and not Path(path).exists():
        raise MissingError(f"manifest {path} does not exist; `unloc data convert` or `unloc data synth` makes one")
    rows: dict[int, dict | Row] = {}
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        try:
            content = parse_json(line, place)
            kind = content.get("kind") if isinstance(content, dict) else None
            if not isinstance(kind, str) or kind not in ROWS:
                raise ValueError(f"expected an object with a kind ({', '.join(ROWS)}), got {brief(content)}")
            if (kind == "manifest") != (not rows):
                raise ValueError(f"expected one row of kind 'manifest', the first; got {kind!r}")
            row = read_as(ROWS[kind], content)
            if kind == "manifest" and row["version"] != 1:
                raise ValueError(f"not a manifest of version 1, got version {row['version']}")
            for task in row["tasks"] if kind == "manifest" else ():
                task_named(task)
            rows[number] = row
        except ValueError as error:
            reason = str(error).removeprefix(f"{place}: ")
            if unreadable is None or not rows:
                advice = "" if rows else "; convert official files with `unloc data convert`"
                raise ManifestError(f"{place}: {reason}{advice}") from None
            unreadable[number] = reason
    if not any(isinstance(row, VideoRow) for row in rows.values()):
        problem = "describes no video that can be read" if rows else "is empty"
        first = "".join(f"; line {number}: {reason}" for number, reason in [*(unreadable or {}).items()][:1])
        raise ManifestError(f"{path} {problem}; expected a manifest with rows of kind 'video'{first}")
    header, *body = rows.values()
    described = {"classes": header["classes"] or (), "source": header["source"] or ""}
    return build_manifest(name=header["name"], tasks=header["tasks"], rows=body, lines=list(rows)[1:], **described)


def cached_durations(manifest: Manifest, cache: "Cache") -> Manifest:
    """The manifest with the measured durations of cached videos where it states none."""
    unknown = manifest.videos["video_id"][~_has_duration(manifest)].unique().tolist()
    return fill_durations(manifest, cache.durations_of(unknown))


def fill_durations(manifest: Manifest, seconds: Mapping[str, float]) -> Manifest:
    """The manifest with these durations, by video, where it states none."""
    found = manifest.videos["video_id"].map(seconds).astype(float)
    stated = manifest.videos["duration_seconds"].where(_has_duration(manifest) | found.isna(), found)
    return replace(manifest, videos=manifest.videos.assign(duration_seconds=stated))


def _has_duration(manifest: Manifest) -> pd.Series:
    return manifest.videos["duration_seconds"].between(0, math.inf, inclusive="neither")


def restricted(manifest: Manifest, keep: Callable[[str], bool], split: str | None = None) -> Manifest:
    """The manifest with those videos for whose id `keep` is true; with `split`, other splits stay whole."""
    other = split is not None
    return manifest.filter(lambda rows: rows["video_id"].map(keep).astype(bool) | (other & (rows["split"] != split)))


def apply_lists(manifest: Manifest, without: Iterable[Path], only: Iterable[Path], problems: Problems) -> Manifest:
    """The manifest without the videos of the lists `without` and with those of `only`; each left out is logged. Raises
    InputError where a list leaves no video.
    """
    filters = {f"--without {path}": listed_filter([path], []) for path in without}
    for option, keep in (filters | {f"--only {path}": listed_filter([], [path]) for path in only}).items():
        for video_id in manifest.videos["video_id"].unique():
            problems.add(f"video left out by {option}", video_id, not keep(video_id))
        before, manifest = len(manifest.videos), restricted(manifest, keep)
        if manifest.videos.empty:
            raise InputError(f"{option}: no video is left of {before}; are its ids of this dataset?")
    return manifest
