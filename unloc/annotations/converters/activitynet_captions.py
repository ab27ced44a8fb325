"""ActivityNet Captions (MR): an object keyed by `v_<id>` with duration, timestamps and sentences."""

from dataclasses import dataclass
from pathlib import Path

from unloc.annotations.official import files_below, files_with_splits, sentence
from unloc.annotations.problems import Problems
from unloc.annotations.schema import Manifest, QueryRow, VideoRow, build_manifest
from unloc.annotations.values import Segment, parse_json, read_text, typed
from unloc.errors import ManifestError


@dataclass(frozen=True)
class _Video:
    duration: float
    timestamps: list[Segment]
    sentences: list[str]


def convert(paths: list[Path], split: str | None, problems: Problems) -> Manifest:
    """All sentences of the files; the split of a file is in its name (train, val_1, val_2). Segments as written."""
    rows: list[VideoRow | QueryRow] = []
    files = files_below(paths, "*.json", but="*_ids.json")
    for path, name in files_with_splits(files, split, problems):
        for video_id, video in typed(
            dict[str, _Video], parse_json(read_text(path), str(path), problems), str(path)
        ).items():
            place = f"{path}: {video_id!r}"
            if len(video.timestamps) != len(video.sentences):
                raise ManifestError(f"{place}: {len(video.timestamps)} timestamps, {len(video.sentences)} sentences")
            rows.append(VideoRow(video_id, name, video.duration))
            for number, (segment, text) in enumerate(zip(video.timestamps, video.sentences, strict=True)):
                text = sentence(text, f"{place}.sentences[{number}]", problems)
                rows.append(QueryRow(video_id, name, f"{name}:{video_id}:{number}", text, [segment]))
    return build_manifest(name="activitynet_captions", tasks=("mr",), source="ActivityNet Captions", rows=rows)
