"""Zero-shot class splits: their lists, and the two sides of a manifest."""

import pytest

from unloc.annotations.schema import InstanceRow, VideoRow, build_manifest
from unloc.errors import ManifestError, MissingError
from unloc.evaluation.zero_shot import ClassSplit, read_class_splits, zero_shot_sides


def write_lists(folder, **sides):
    for side, names in sides.items():
        (folder / side).mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(names):
            (folder / side / f"split_{number}.list").write_text(content)


def test_splits_come_in_the_order_of_their_numbers(tmp_path):
    write_lists(tmp_path / "half", train=["a\n"] * 12, test=["b\n"] * 12)
    names = [split.name for split in read_class_splits(tmp_path)]
    assert names == [f"half/split_{number}" for number in range(12)]


@pytest.mark.parametrize("name", ["b", "B"])
def test_a_class_on_both_sides_is_a_leak(tmp_path, name):
    write_lists(tmp_path, train=["a\nb\n"], test=[f"{name}\nc\n"])
    with pytest.raises(ManifestError, match=rf"split_0: 1 .*'{name}' is 'b'"):
        read_class_splits(tmp_path)


def test_a_missing_folder_or_side_is_an_error(tmp_path):
    with pytest.raises(MissingError, match="does not exist"):
        read_class_splits(tmp_path / "nowhere")
    with pytest.raises(MissingError, match=r"no train/\*\.list below"):
        read_class_splits(tmp_path)
    write_lists(tmp_path, train=["a\n"])
    with pytest.raises(MissingError, match=r"test.split_0\.list does not exist"):
        read_class_splits(tmp_path)


def test_a_list_has_each_name_once_and_one_without_names_is_an_error(tmp_path):
    write_lists(tmp_path, train=["Long jump \n\nDiving\nDiving\n"], test=["Surfing\n"])
    [split] = read_class_splits(tmp_path)
    assert split.seen == ("Long jump", "Diving") and split.unseen == ("Surfing",)
    write_lists(tmp_path, train=["\n"], test=["Surfing\n"])
    with pytest.raises(ManifestError, match="no name in this list"):
        read_class_splits(tmp_path)


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
