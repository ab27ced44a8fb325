"""Which file of a folder is a video's, and what a folder lacks."""

import pytest

from unloc.data.locate import folder_coverage, locate_videos
from unloc.data.schema import build_manifest, video_row
from unloc.errors import MissingError


def test_videos_are_found_by_file_name_id_and_with_or_without_the_prefix(tmp_path):
    for name in ("named.mkv", "abc.mp4", "v_def.avi"):
        (tmp_path / name).write_bytes(b"x")
    rows = [video_row("a", "t", 1, "named.mkv"), *(video_row(key, "t", 1) for key in ("v_abc", "def", "gone"))]
    files, missing = locate_videos(build_manifest(name="x", tasks=("mr",), rows=rows), tmp_path)
    assert {key: path.name for key, path in files.items()} == {"a": "named.mkv", "v_abc": "abc.mp4", "def": "v_def.avi"}
    assert missing == ["gone"]
    with pytest.raises(MissingError, match="--videos"):
        locate_videos(build_manifest(name="x", tasks=("mr",), rows=rows), tmp_path / "nowhere")


def test_coverage_tells_missing_empty_shared_and_unnamed_files(tmp_path):
    for name, content in {"a.mp4": b"x", "b.mkv": b"", "more.webm": b"x", "notes.txt": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    rows = [video_row(key, "t", 1) for key in ("a", "v_a", "b", "gone")]
    coverage = folder_coverage(build_manifest(name="x", tasks=("mr",), rows=rows), tmp_path)
    assert {key: path.name for key, path in coverage.found.items()} == {"a": "a.mp4", "v_a": "a.mp4", "b": "b.mkv"}
    assert (coverage.missing, coverage.empty, coverage.shared) == (["gone"], ["b"], ["v_a"])
    assert coverage.extra == [tmp_path / "more.webm"]


def test_of_several_files_with_one_name_the_video_and_the_least_nested_is_taken(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.json", "a.webm", "deep/a.webm", "deep/b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    rows = [video_row("a", "t", 1), video_row("b", "t", 1), video_row("c", "t", 1, "deep/a.webm")]
    files, _ = locate_videos(build_manifest(name="x", tasks=("mr",), rows=rows), tmp_path)
    assert {key: path.relative_to(tmp_path).as_posix() for key, path in files.items()} == {
        "a": "a.webm",
        "b": "deep/b.mp4",
        "c": "deep/a.webm",
    }


def test_a_named_file_that_is_not_there_is_missing_even_where_another_has_the_id(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    manifest = build_manifest(name="x", tasks=("mr",), rows=[video_row("a", "t", 1, "other.mp4")])
    assert locate_videos(manifest, tmp_path) == ({}, ["a"])
