"""QVHighlights (MR and HD): JSON lines; the test split comes with or without annotations."""

from pathlib import Path

from unloc.data.official import files_below, need, read_json_lines, split_of_name
from unloc.data.schema import Manifest, build_manifest, query_row, video_row


def convert(paths: list[Path], split: str | None = None) -> Manifest:
    """All queries with their windows and the three raters' saliency per relevant clip."""
    rows, seen = [], set()
    for path in files_below(paths, "highlight_*.jsonl"):
        name = split_of_name(path, split)
        for number, entry in read_json_lines(path):
            need(entry, ("qid", "query", "duration", "vid"), f"{path}:{number}")
            video_id = entry["vid"]
            if (video_id, name) not in seen:
                seen.add((video_id, name))
                rows.append(video_row(video_id, name, float(entry["duration"])))
            rows.append(
                query_row(
                    video_id,
                    name,
                    str(entry["qid"]),
                    entry["query"].strip(),
                    entry.get("relevant_windows", []),
                    entry.get("relevant_clip_ids"),
                    entry.get("saliency_scores"),
                )
            )
    return build_manifest(name="qvhighlights", tasks=("mr", "hd"), source="QVHighlights", rows=rows)
