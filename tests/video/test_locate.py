"""Which file of a folder belongs to a video, and which files a folder lacks."""

import os
from pathlib import Path

import pytest

from unloc.annotations.schema import VideoRow, build_manifest
from unloc.errors import MissingError
from unloc.video.locate import folder_coverage, index_videos, video_files


def test_videos_are_found_by_file_name_id_and_with_or_without_the_prefix(tmp_path):
    for name in ("named.mkv", "abc.mp4", "v_def.avi"):
        (tmp_path / name).write_bytes(b"x")
    rows = [VideoRow("a", "t", 1, "named.mkv"), *(VideoRow(key, "t", 1) for key in ("v_abc", "def", "gone"))]
    files, missing = index_videos(tmp_path).locate(build_manifest(name="x", tasks=("mr",), rows=rows).videos)
    assert {key: path.name for key, path in files.items()} == {"a": "named.mkv", "v_abc": "abc.mp4", "def": "v_def.avi"}
    assert missing == ["gone"]
    with pytest.raises(MissingError, match="--videos"):
        index_videos(tmp_path / "nowhere").locate(build_manifest(name="x", tasks=("mr",), rows=rows).videos)


def test_coverage_lists_missing_empty_shared_and_unnamed_files(tmp_path):
    for name, content in {"a.mp4": b"x", "b.mkv": b"", "more.webm": b"x", "notes.txt": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    rows = [VideoRow(key, "t", 1) for key in ("a", "v_a", "b", "gone")]
    coverage = folder_coverage(build_manifest(name="x", tasks=("mr",), rows=rows).videos, tmp_path)
    assert {key: path.name for key, path in coverage.found.items()} == {"a": "a.mp4", "v_a": "a.mp4", "b": "b.mkv"}
    assert (coverage.missing, coverage.empty, coverage.shared) == (["gone"], ["b"], ["v_a"])
    assert coverage.extra == [tmp_path / "more.webm"]


def test_of_several_files_with_one_name_the_least_nested_video_is_used(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.json", "a.webm", "deep/a.webm", "deep/b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    rows = [VideoRow("a", "t", 1), VideoRow("b", "t", 1), VideoRow("c", "t", 1, "deep/a.webm")]
    files, _ = index_videos(tmp_path).locate(build_manifest(name="x", tasks=("mr",), rows=rows).videos)
    assert {key: path.relative_to(tmp_path).as_posix() for key, path in files.items()} == {
        "a": "a.webm",
        "b": "deep/b.mp4",
        "c": "deep/a.webm",
    }


def test_a_named_file_that_does_not_exist_is_missing_even_if_another_has_the_id(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    manifest = build_manifest(name="x", tasks=("mr",), rows=[VideoRow("a", "t", 1, "other.mp4")])
    assert index_videos(tmp_path).locate(manifest.videos) == ({}, ["a"])


def manifest_of(**files):
    return build_manifest(name="x", tasks=("mr",), rows=[VideoRow(key, "t", 1, file) for key, file in files.items()])


@pytest.fixture
def linked(tmp_path):
    """videos/real/a.mp4; videos/link → elsewhere with b.mp4; videos/real/loop → videos; videos/again → videos/real."""
    folder, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    (folder / "real").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    (folder / "real" / "a.mp4").write_bytes(b"a")
    (elsewhere / "deep" / "b.mp4").write_bytes(b"b")
    (folder / "link").symlink_to(elsewhere)
    (folder / "real" / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "real")
    (folder / "nowhere").symlink_to(tmp_path / "gone")
    (folder / "itself.mp4").symlink_to("itself.mp4")
    return folder


def test_links_to_folders_are_followed_and_loops_are_noticed(linked):
    wanted = manifest_of(a=None, b=None, c="link/deep/b.mp4", d="again/a.mp4", e="real/loop/real/a.mp4", f="nowhere")
    files, missing = index_videos(linked).locate(wanted.videos)
    assert missing == ["f"] and {key: path.read_bytes() for key, path in files.items()} == {
        "a": b"a", "b": b"b", "c": b"b", "d": b"a", "e": b"a"
    }  # fmt: skip
    assert [path.name for path in video_files(linked)] == ["a.mp4", "b.mp4"]


def test_a_file_named_through_a_link_does_not_count_as_unnamed(linked):
    coverage = folder_coverage(manifest_of(a="again/a.mp4", b="link/deep/b.mp4", c="real/a.mp4").videos, linked)
    assert coverage.extra == [] and coverage.shared == ["c"] and not coverage.missing


def test_absolute_paths_inside_the_folder_are_accepted_and_others_are_not(linked, monkeypatch):
    inside, outside = linked / "real" / "a.mp4", linked.parent / "elsewhere" / "deep" / "b.mp4"
    wanted = manifest_of(a=str(inside), b=str(outside), c="../elsewhere/deep/b.mp4", d=str(linked / "again" / "a.mp4"))
    for folder in (linked, linked / ".." / "videos"):
        files, missing = index_videos(folder).locate(wanted.videos)
        assert sorted(files) == ["a", "d"] and missing == ["b", "c"]
    monkeypatch.chdir(linked.parent)
    assert sorted(index_videos(Path("videos")).locate(wanted.videos)[0]) == ["a", "d"]


def test_an_overlong_path_is_the_failure_of_its_video(linked, caplog):
    wanted = manifest_of(a="real/a.mp4", b="x" * 5000 + ".mp4", c="y/" * 3000 + "c.mp4", d=str(linked / ("z" * 300)))
    assert index_videos(linked).locate(wanted.videos)[1] == ["b", "c", "d"]
    deep, depth = os.open(linked, os.O_RDONLY), 0
    while depth < 4300:  # deeper than a path can say
        os.mkdir("d" * 200, dir_fd=deep)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep, depth = deeper, depth + 201
    os.close(os.open("deep.mp4", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
    os.close(deep)
    assert sorted(index_videos(linked).locate(manifest_of(a=None, deep=None).videos)[0]) == ["a"]
    assert "cannot be listed" in caplog.text
