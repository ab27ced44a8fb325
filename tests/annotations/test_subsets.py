"""Parts of a manifest: lists of videos in every published form, and the two sides of zero-shot class splits."""

import pytest

from unloc.annotations.problems import Problems
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.annotations.subsets import (
    ClassSplit,
    apply_lists,
    read_class_list,
    read_class_splits,
    read_video_list,
    restricted,
    zero_shot_sides,
)
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


def write_lists(folder, **sides):
    for side, names in sides.items():
        (folder / side).mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(names):
            (folder / side / f"split_{number}.list").write_text(content)


def test_splits_come_in_the_order_of_their_numbers(tmp_path):
    write_lists(tmp_path / "half", train=["a\n"] * 12, test=["b\n"] * 12)
    names = [split.name for split in read_class_splits(tmp_path)]
    assert names == [f"half/split_{number}" for number in range(12)]


def test_a_class_on_both_sides_is_a_leak(tmp_path):
    write_lists(tmp_path, train=["a\nb\n"], test=["b\nc\n"])
    with pytest.raises(ManifestError, match=r"split_0: 1 .*'b'"):
        read_class_splits(tmp_path)


def test_a_missing_folder_or_side_is_an_error(tmp_path):
    with pytest.raises(MissingError, match="does not exist"):
        read_class_splits(tmp_path / "nowhere")
    with pytest.raises(MissingError, match=r"no train/\*\.list below"):
        read_class_splits(tmp_path)
    write_lists(tmp_path, train=["a\n"])
    with pytest.raises(MissingError, match=r"unseen side"):
        read_class_splits(tmp_path)


def test_a_list_without_names_or_with_one_twice_is_an_error(tmp_path):
    path = tmp_path / "x.list"
    path.write_text("Long jump \n\nDiving\n")
    assert read_class_list(path) == ("Long jump", "Diving")
    path.write_text("a\nb\na\n")
    with pytest.raises(ManifestError, match=r"x\.list:3: 'a'.*line 1"):
        read_class_list(path)
    path.write_text("\n")
    with pytest.raises(ManifestError, match="no class name"):
        read_class_list(path)


@pytest.fixture
def manifest():
    """Video `both` shows a seen and an unseen class."""
    shown = {"one": ("train", "a"), "two": ("train", "b"), "both": ("train", "ab"), "last": ("test", "b")}
    rows = [VideoRow(video_id, split, 9.0) for video_id, (split, _) in shown.items()]
    rows += [VideoRow("none", "test", 9.0)]
    rows += [
        InstanceRow(video_id, split, label, [0, 1]) for video_id, (split, labels) in shown.items() for label in labels
    ]
    return build_manifest(name="small", tasks=("tal",), rows=rows, classes=["a", "b"])


def test_training_sees_no_video_with_an_unseen_class_and_the_test_keeps_all_videos(manifest):
    split = ClassSplit(name="s", seen=("a",), unseen=("b",))
    seen, unseen = zero_shot_sides(manifest, split, "test")
    assert list(seen.videos["video_id"]) == ["one"] and seen.classes == ("a",)
    assert list(unseen.videos["video_id"]) == ["last", "none"] and unseen.classes == ("b",)
    assert list(unseen.instances["video_id"]) == ["last"]
    with pytest.raises(MissingError, match="split 'val'"):
        zero_shot_sides(manifest, split, "val")


def test_listed_classes_that_a_part_of_a_dataset_lacks_are_left_out(manifest):
    split = ClassSplit(name="s", seen=("more", "a"), unseen=("b", "others"))
    assert [side.classes for side in zero_shot_sides(manifest, split, "test")] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("seen", "unseen", "words"),
    [
        (("a",), ("c",), "on no side.*'b'"),
        (("a", "b"), ("c",), "none of the unseen"),
        (("c",), ("a", "b"), "none of the seen"),
    ],
)
def test_every_class_of_the_manifest_is_on_a_side_and_both_sides_have_some(manifest, seen, unseen, words):
    with pytest.raises(ManifestError, match=words):
        zero_shot_sides(manifest, ClassSplit(name="s", seen=seen, unseen=unseen), "test")
