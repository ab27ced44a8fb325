"""ActivityNet Captions (MR): an object keyed by `v_<id>` with duration, timestamps and sentences."""

from collections.abc import Iterator
from pathlib import Path

from unloc.annotations.official import (
    Repairs,
    a_list,
    a_segment,
    an_object,
    files_below,
    files_with_splits,
    read_json_object,
    seconds,
    sentence,
)
from unloc.annotations.schema import Manifest, build_manifest, query_row, video_row
from unloc.errors import ManifestError


def convert(paths: list[Path], split: str | None, repairs: Repairs) -> Manifest:
    """All sentences of the files; the split of a file is in its name (train, val_1, val_2).

    The leading blanks and line breaks that the release carries are taken off the sentences; segments stay as written.
    """
    rows: list[dict] = []
    files = files_below(paths, "*.json", but="*_ids.json")
    for path, name in files_with_splits(files, split, repairs):
        for video_id, entry in read_json_object(path, repairs).items():
            rows += _video(video_id, name, entry, f"{path}: {video_id!r}", repairs)
    return build_manifest(name="activitynet_captions", tasks=("mr",), source="ActivityNet Captions", rows=rows)


def _video(video_id: str, split: str, entry: object, place: str, repairs: Repairs) -> Iterator[dict]:
    if not (isinstance(entry, dict) and "timestamps" in entry):
        raise ManifestError(f"{place}: not an ActivityNet Captions entry; expected duration, timestamps, sentences")
    segments = a_list(an_object(entry, place), "timestamps", place)
    sentences = a_list(entry, "sentences", place)
    if len(segments) != len(sentences):
        raise ManifestError(f"{place}: {len(segments)} timestamps for {len(sentences)} sentences")
    yield video_row(video_id, split, seconds(entry, "duration", place))
    for number, (segment, text) in enumerate(zip(segments, sentences, strict=True)):
        if not isinstance(text, str):
            raise ManifestError(f"{place}.sentences[{number}]: expected a string, got {type(text).__name__}")
        bounds = a_segment(segment, f"{place}.timestamps[{number}]")
        words = sentence(text, f"{place}.sentences[{number}]", repairs)
        yield query_row(video_id, split, f"{split}:{video_id}:{number}", words, [bounds])
