"""Blocked-video lists in the forms they are published in."""

import pytest

from unloc.annotations.schema import build_manifest, instance_row, query_row, video_row
from unloc.annotations.subsets import only_videos, read_video_list, without_videos
from unloc.errors import ManifestError, MissingError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '["v_x", "y", "x"]'),
        ("b.json", '{"x": 1, "v_y": 2}'),
        ("c.csv", "video,seconds\nv_x,1\nv_y,2\n"),
        ("d.txt", "x Diving\n\nv_y\n"),
    ],
)
def test_every_form_of_a_list_gives_its_ids(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_video_list(tmp_path / name) == {"x", "y"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "[1, 2]", "expected a list of video ids"),
        ("b.json", '"x"', "expected a list of video ids"),
        ("c.csv", "seconds\n1\n", "no column"),
        ("d.txt", "\n", "no video id in this list"),
    ],
)
def test_what_is_no_list_is_an_error_with_its_file(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=f"{name}.*{words}"):
        read_video_list(tmp_path / name)
    with pytest.raises(MissingError, match="does not exist"):
        read_video_list(tmp_path / "nowhere.json")


def test_videos_go_with_all_that_is_annotated_in_them_even_the_last():
    rows = [video_row(key, "t", 1.0) for key in ("v_x", "y")]
    rows += [query_row("v_x", "t", "1", "q", [[0, 1]]), instance_row("y", "t", "a", 0, 1)]
    manifest = build_manifest(name="m", tasks=("mr",), rows=rows, classes=["a"])
    part = without_videos(manifest, {"x"})
    assert list(part.videos["video_id"]) == ["y"] and part.queries.empty and len(part.instances) == 1
    part = only_videos(manifest, {"v_x"})
    assert list(part.videos["video_id"]) == ["v_x"] and len(part.queries) == 1 and part.instances.empty
    nothing = without_videos(only_videos(manifest, ()), {"x"})
    assert nothing.videos.empty and list(nothing.videos.columns) == list(manifest.videos.columns)
