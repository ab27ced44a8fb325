"""ActivityNet Captions (MR): an object keyed by `v_<id>` with duration, timestamps and sentences."""

from pathlib import Path

from unloc.data.official import files_below, need, read_json_object, split_of_name
from unloc.data.schema import Manifest, build_manifest, query_row, video_row
from unloc.errors import ManifestError


def convert(paths: list[Path], split: str | None = None) -> Manifest:
    """All sentences of the files; the split of a file is in its name (train, val_1, val_2).

    The leading blanks and line breaks that the release carries are taken off the sentences.
    """
    rows = []
    for path in files_below(paths, "*.json"):
        content = read_json_object(path)
        name = split_of_name(path, split)
        for video_id, entry in content.items():
            where = f"{path}: {video_id!r}"
            if not isinstance(entry, dict):
                raise ManifestError(
                    f"{where}: not an ActivityNet Captions entry; expected duration, timestamps, sentences"
                )
            need(entry, ("duration", "timestamps", "sentences"), where)
            if len(entry["timestamps"]) != len(entry["sentences"]):
                raise ManifestError(
                    f"{where}: {len(entry['timestamps'])} timestamps for {len(entry['sentences'])} sentences"
                )
            rows.append(video_row(video_id, name, float(entry["duration"])))
            for number, (segment, text) in enumerate(zip(entry["timestamps"], entry["sentences"], strict=True)):
                qid = f"{name}:{video_id}:{number}"
                rows.append(query_row(video_id, name, qid, " ".join(text.split()), [segment]))
    return build_manifest(name="activitynet_captions", tasks=("mr",), source="ActivityNet Captions", rows=rows)
