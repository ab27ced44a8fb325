"""Videos to extract, and whether two caches of them are the same."""

import json
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import render_video, write_manifest
from unloc.annotations.schema import VideoRow
from unloc.cache.opening import open_cache
from unloc.cache.writing import audit_cache


def render_videos(folder: Path, num_frames: Iterable[int]) -> tuple[Path, Path]:
    """The folder with videos of so many frames, and their manifest beside it."""
    rows = []
    for number, frames in enumerate(num_frames):
        render_video(folder / f"v{number:02}.mp4", num_frames=frames, seed=number)
        rows.append(VideoRow(f"v{number:02}", "test", None))
    return folder, write_manifest(folder.with_suffix(".jsonl"), *rows)


def files_of(folder: Path) -> dict[str, Path]:
    """Videos by id."""
    return {path.stem: path for path in sorted(folder.glob("*.mp4"))}


def token_bytes(cache: Path) -> dict[str, bytes]:
    found = sorted(path for path in cache.glob("*/[0-9]*/*/c/**/*") if path.is_file())
    return {str(path.relative_to(cache)): path.read_bytes() for path in found}


def check_equal(cache: Path, clean: Path) -> None:
    """Nothing lost, nothing twice, no byte that differs, and nothing left over."""
    assert token_bytes(cache) == token_bytes(clean)
    ours, theirs = open_cache(cache), open_cache(clean)
    assert list(ours.places) == list(theirs.places)
    assert [table["videos"]["video_id"] for table in ours.tables.values()] == [
        table["videos"]["video_id"] for table in theirs.tables.values()
    ]
    failed = [[row["reason"] for row in table["failed"]] for table in ours.tables.values()]
    assert failed == [[row["reason"] for row in table["failed"]] for table in theirs.tables.values()]
    assert not audit_cache(cache).damages
    assert not [item for item in cache.rglob("*") if item.name.endswith(".part") or item.parent.name == "staging"]
    rows = [json.loads(line) for line in (cache / "ledger.jsonl").read_text().splitlines()]
    assert {row["video_id"] for row in rows if row["status"] == "cached"} == set(ours.places)
