"""Lists of videos in every published form, and the part of a manifest that they leave."""

import pytest

from unloc.annotations.reading import Problems, read_video_list
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, apply_lists, build_manifest, restricted
from unloc.errors import InputError, ManifestError, MissingError


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
        ("a.json", "[1, 2]", "list of video ids"),
        ("b.json", '"x"', "list of video ids"),
        ("c.csv", "seconds\n1\n", "no column"),
        ("d.txt", "\n", "no video id"),
    ],
)
def test_a_file_that_is_not_a_list_is_an_error_with_its_name(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=f"{name}.*{words}"):
        read_video_list(tmp_path / name)
    with pytest.raises(MissingError, match="does not exist"):
        read_video_list(tmp_path / "nowhere.json")


def test_videos_go_with_all_that_is_annotated_in_them_and_a_list_that_leaves_none_is_refused(tmp_path):
    rows = [VideoRow(key, "t", 1.0) for key in ("v_x", "y")]
    rows += [QueryRow("v_x", "t", "1", "q", [[0, 1]]), InstanceRow("y", "t", "a", [0, 1])]
    manifest = build_manifest(name="m", tasks=("mr",), rows=rows, classes=["a"])
    for name, listed in (("x", "x"), ("v_x", "v_x"), ("all", "x\ny")):
        (tmp_path / name).write_text(listed)
    problems = Problems()
    part = apply_lists(manifest, [tmp_path / "x"], [], problems)
    assert list(part.videos["video_id"]) == ["y"] and part.queries.empty and len(part.instances) == 1
    assert list(problems.places.values()) == [["v_x"]]
    part = apply_lists(manifest, [], [tmp_path / "v_x"], problems)
    assert list(part.videos["video_id"]) == ["v_x"] and len(part.queries) == 1 and part.instances.empty
    with pytest.raises(InputError, match="left of 2"):
        apply_lists(manifest, [tmp_path / "all"], [], problems)
    nothing = restricted(manifest, lambda _: False)
    assert nothing.videos.empty and list(nothing.videos.columns) == list(manifest.videos.columns)


def test_a_csv_that_is_none_is_an_error_with_its_line(tmp_path):
    (tmp_path / "old_mac.csv").write_bytes(b"video_id,seconds\nv,1\rw,2\n")
    with pytest.raises(ManifestError, match=r"old_mac\.csv:\d+: not csv"):
        read_video_list(tmp_path / "old_mac.csv")
