"""One manifest schema for all tasks: which videos exist and what is annotated in them.

A manifest is a JSON-lines file. The first line describes it; every other line is one row with a `kind`:

    {"kind": "manifest", "version": 1, "name": "charades_sta", "tasks": ["mr"], "classes": [], "source": "…"}
    {"kind": "video",    "video_id": "3MSZA", "split": "test", "file": null, "duration_seconds": 30.96}
    {"kind": "query",    "video_id": "3MSZA", "split": "test", "qid": "7", "text": "…", "segments": [[24.3, 30.4]],
                         "relevant_clip_ids": [12, 13], "saliency_scores": [[4, 3, 2], [1, 0, 2]]}
    {"kind": "instance", "video_id": "v1", "split": "validation", "label": "Long jump", "segment": [3.1, 9.8]}

Times are seconds from the start of the video, segments half-open. A video may stand in several splits (ActivityNet
Captions val_1 and val_2): videos are keyed by (video_id, split), annotations name the same pair. `query` rows serve
moment retrieval and highlight detection (saliency: three raters, 0-4, per relevant 2 s clip), `instance` rows serve
temporal action localization and action segmentation. `classes` fixes the class order for labels.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from unloc.annotations.rows import parse_row
from unloc.errors import InputError, ManifestError, MissingError
from unloc.files import url_of, write_file

SCHEMA_VERSION = 1
CLIP_SECONDS = 2.0  # QVHighlights: saliency is given per clip of this length
VIDEO_COLUMNS = ["video_id", "split", "file", "duration_seconds", "line"]
QUERY_COLUMNS = ["video_id", "split", "qid", "text", "segments", "relevant_clip_ids", "saliency_scores", "line"]
INSTANCE_COLUMNS = ["video_id", "split", "label", "start_seconds", "end_seconds", "line"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Videos and their annotations. `line` columns hold the line of the manifest file a row came from."""

    name: str
    tasks: tuple[str, ...]
    """Which of mr, tal, as, hd the annotations serve."""
    classes: tuple[str, ...] = ()
    """Class names in their fixed order; empty for query datasets."""
    source: str = ""
    """Where the annotations came from, in words."""
    videos: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=VIDEO_COLUMNS))
    """One row per (video_id, split): file (relative path or None), duration_seconds (NaN where unknown)."""
    queries: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=QUERY_COLUMNS))
    """One row per sentence: segments is a list of [start, end] in seconds (empty where the split hides them)."""
    instances: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=INSTANCE_COLUMNS))
    """One row per labelled segment: start_seconds, end_seconds."""

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in order of first appearance."""
        return list(dict.fromkeys(self.videos["split"]))

    def select(self, split: str | None) -> "Manifest":
        """The manifest restricted to one split; None keeps all.

        Raises MissingError where the split does not exist, naming those that do.
        """
        if split is None:
            return self
        if split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise MissingError(f"split {split!r} is not in manifest {self.name!r}; it has: {known}")
        parts = {key: _rows(getattr(self, key), split) for key in ("videos", "queries", "instances")}
        return replace(self, **parts)


def _rows(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table[table["split"] == split].reset_index(drop=True)


def video_row(video_id: str, split: str, duration_seconds: float, file: str | None = None) -> dict:
    """A video row as it stands in the file."""
    return {
        "kind": "video",
        "video_id": video_id,
        "split": split,
        "file": file,
        "duration_seconds": duration_seconds,
    }


def query_row(
    video_id: str,
    split: str,
    qid: str,
    text: str,
    segments: Iterable[Iterable[float]],
    relevant_clip_ids: list[int] | None = None,
    saliency_scores: list[list[int]] | None = None,
) -> dict:
    """A query row as it stands in the file; saliency keys only where there is saliency."""
    row = {"kind": "query", "video_id": video_id, "split": split, "qid": qid, "text": text}
    row["segments"] = [list(map(float, segment)) for segment in segments]
    if relevant_clip_ids is not None:
        row |= {"relevant_clip_ids": relevant_clip_ids, "saliency_scores": saliency_scores}
    return row


def instance_row(video_id: str, split: str, label: str, start_seconds: float, end_seconds: float) -> dict:
    """An instance row as it stands in the file."""
    segment = [float(start_seconds), float(end_seconds)]
    return {"kind": "instance", "video_id": video_id, "split": split, "label": label, "segment": segment}


def build_manifest(
    *, name: str, tasks: Iterable[str], rows: Iterable[dict], classes: Iterable[str] = (), source: str = ""
) -> Manifest:
    """A manifest from rows as they stand in a file; where they name no `line`, as `save_manifest` will place them."""
    tables: dict[str, list[dict]] = {"video": [], "query": [], "instance": []}
    for row in rows:
        tables[row["kind"]].append(_flat(row))
    line = 1
    for row in (row for table in tables.values() for row in table):
        line += 1
        row.setdefault("line", line)
    return Manifest(
        name=name,
        tasks=tuple(tasks),
        classes=tuple(classes),
        source=source,
        videos=pd.DataFrame(tables["video"], columns=VIDEO_COLUMNS).astype({"duration_seconds": float}),
        queries=pd.DataFrame(tables["query"], columns=QUERY_COLUMNS),
        instances=pd.DataFrame(tables["instance"], columns=INSTANCE_COLUMNS),
    )


def _flat(row: dict) -> dict:
    flat = {key: value for key, value in row.items() if key not in ("kind", "segment")}
    if row["kind"] == "instance":
        flat["start_seconds"], flat["end_seconds"] = row["segment"]
    if row["kind"] == "query":
        flat.setdefault("relevant_clip_ids", None)
        flat.setdefault("saliency_scores", None)
    return flat


def numbered(manifest: Manifest) -> Manifest:
    """The manifest with `line` as `save_manifest` writes it: header, videos, queries, instances."""
    line, tables = 2, {}
    for key in ("videos", "queries", "instances"):
        table = getattr(manifest, key)
        tables[key] = table.assign(line=range(line, line + len(table)))
        line += len(table)
    return replace(manifest, **tables)


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Write the manifest, whole or not at all. Raises InputError where the path cannot be written."""
    header = {
        "kind": "manifest",
        "version": SCHEMA_VERSION,
        "name": manifest.name,
        "tasks": list(manifest.tasks),
        "classes": list(manifest.classes),
        "source": manifest.source,
    }
    lines = [json.dumps(row, ensure_ascii=False) for row in [header, *manifest_rows(manifest)]]
    try:
        write_file(path, "\n".join(lines) + "\n")
    except UnicodeEncodeError as error:
        words = error.object[max(error.start - 20, 0) : error.end].encode("ascii", "backslashreplace").decode()
        raise InputError(
            f"manifest {path} cannot be written: half a character (a lone surrogate) in {words!r}"
        ) from None
    except OSError as error:
        raise InputError(f"manifest {path} cannot be written: {error.strerror or error}") from None


def manifest_rows(manifest: Manifest) -> Iterable[dict]:
    """All rows in file form: videos, then queries, then instances."""
    for row in manifest.videos.to_dict("records"):
        duration = None if pd.isna(row["duration_seconds"]) else row["duration_seconds"]
        yield video_row(row["video_id"], row["split"], duration, row["file"] if isinstance(row["file"], str) else None)
    for row in manifest.queries.to_dict("records"):
        clip_ids = row["relevant_clip_ids"] if isinstance(row["relevant_clip_ids"], list) else None
        yield query_row(
            row["video_id"], row["split"], row["qid"], row["text"], row["segments"], clip_ids, row["saliency_scores"]
        )
    for row in manifest.instances.to_dict("records"):
        yield instance_row(row["video_id"], row["split"], row["label"], row["start_seconds"], row["end_seconds"])


@dataclass(frozen=True)
class UnreadableLine:
    """A line of a manifest file that is no row, and why."""

    line: int
    reason: str


def load_manifest(path: Path | str, unreadable: list[UnreadableLine] | None = None) -> Manifest:
    """Read a manifest file, or one at a URL. With a list, unreadable lines go there and are left out, not raised.

    Raises MissingError where the file is absent, ManifestError with file and line where a row cannot be read.
    """
    url, path = url_of(path), Path(path)
    if url is None and path.is_dir():
        raise ManifestError(f"{path} is a folder; expected a manifest file")
    if url is None and not path.is_file():
        raise MissingError(f"manifest {path} does not exist; `unloc data convert` or `unloc data synth` makes one")
    lines = _lines(path, url)
    if not any(map(str.strip, lines)):
        raise ManifestError(f"{path} is empty; expected a manifest (first line: kind, version, name, tasks)")
    header = _header(path, lines[0])
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            rows.append(_row(line) | {"line": number})
        except ValueError as error:
            if unreadable is None:
                raise ManifestError(f"{path}:{number}: {error}") from None
            unreadable.append(UnreadableLine(number, str(error)))
    manifest = build_manifest(rows=rows, **{key: header[key] for key in ("name", "tasks", "classes", "source")})
    if manifest.videos.empty:
        first = f"; line {unreadable[0].line}: {unreadable[0].reason}" if unreadable else ""
        raise ManifestError(f"{path} describes no video that can be read; expected rows of kind 'video'{first}")
    return manifest


def _lines(path: Path, url: str | None) -> list[str]:
    if url is None:
        content = path.read_bytes()
    else:
        from unloc.cache.object_store import read_url  # here: it imports zarr

        content = read_url(url)
    try:
        # Not splitlines: a sentence may hold other line separators (U+2028) that JSON leaves as they are.
        return io.StringIO(content.decode("utf-8-sig"), newline=None).read().split("\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not text (byte {error.start} is not UTF-8); expected a manifest") from None


def _header(path: Path, line: str) -> dict:
    try:
        header = parse_row(line)
    except ValueError as error:
        raise ManifestError(f"{path}:1: {error}; official files go through `unloc data convert`") from None
    if header["kind"] != "manifest" or header["version"] != SCHEMA_VERSION:
        raise ManifestError(
            f'{path}:1: not a manifest of version {SCHEMA_VERSION}: expected {{"kind": "manifest", …}}, '
            f"got kind {header['kind']!r}, version {header.get('version')!r}; "
            "official files go through `unloc data convert`"
        )
    return header


def _row(line: str) -> dict:
    row = parse_row(line)
    if row["kind"] == "manifest":
        raise ValueError("a second header; manifests are joined by converting their annotations together")
    return row
