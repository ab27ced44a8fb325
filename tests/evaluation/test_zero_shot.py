"""Zero-shot localization over class splits: the official figures, leaks, pretraining names, the nonsense control."""

import numpy as np
import pytest

from tests.evaluation.small import load, same, tal_detections, tal_manifest
from unloc.annotations.converters import convert
from unloc.annotations.reading import read_names
from unloc.errors import ManifestError, MissingError
from unloc.evaluation.detection import detection
from unloc.evaluation.zero_shot import (
    ClassSplit,
    names_in_vocabulary,
    nonsense_manifest,
    read_class_splits,
    words_of,
    zero_shot,
)
from unloc.predictions.reading import read_predictions

OFFICIAL = {
    "activitynet13_tal": ("activitynet", "validation", "ActivityNet", "activitynet"),
    "thumos14_tal": ("thumos14", "test", "THUMOS14", "thumos14"),
}


@pytest.mark.parametrize("share", ["train_50_test_50", "train_75_test_25"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_all_ten_splits_and_their_mean_equal_the_official_figures(golden, shared, name, share):
    folder, (converter, test_split, dataset, protocol) = golden / name / "set_A", OFFICIAL[name]
    manifest = convert(converter, [folder / "ground_truth.json"]).select(test_split)
    lists = read_class_splits(shared / "annotations" / "zero_shot_splits" / "effprompt")
    chosen = [split for split in lists if split.name.startswith(f"{share}/{dataset}/")]
    detections = read_predictions(folder / "predictions_noties.json", "tal").predictions
    (found,) = zero_shot(lambda _: detections, manifest, chosen, protocol).values()
    expected = load(folder / "expected_zero_shot.json")
    for number in range(10):
        metrics, official = found["splits"][f"{share}/{dataset}/split_{number}"], expected[f"{share}/split_{number}"]
        assert same(metrics["mAP@avg"], 100 * official["average_mAP"])
        for threshold, value in official["mAP"].items():
            assert same(metrics[f"mAP@{threshold}"], 100 * value)
    assert found["num_splits"] == 10
    assert same(found["mean"]["mAP@avg"], 100 * expected[f"{share}/mean_over_10_splits"])
    averages = [expected[f"{share}/split_{number}"]["average_mAP"] for number in range(10)]
    assert same(found["std"]["mAP@avg"], 100 * float(np.std(averages)))


TRUTH = {"v1": [("Run", 0, 10), ("Jump", 20, 30)], "v2": [("Swim", 0, 5), ("Row", 50, 60)]}
SPLITS = [
    ClassSplit(name="half/split_0", seen=("Run", "Jump"), unseen=("Swim", "Row")),
    ClassSplit(name="half/split_1", seen=("Swim", "Row"), unseen=("Run", "Jump")),
]


def perfect(labels):
    return tal_detections({video: [(*i, 1.0) for i in items if i[0] in labels] for video, items in TRUTH.items()})


def test_each_split_is_scored_by_its_own_predictions_on_its_unseen_classes():
    by_split = {"half/split_0": perfect({"Swim", "Row"}), "half/split_1": perfect({"Run"})}
    found = zero_shot(lambda split: by_split[split.name], tal_manifest(TRUTH), SPLITS)["half"]
    assert [found["splits"][f"half/split_{n}"]["mAP@avg"] for n in range(2)] == [100.0, 50.0]
    assert found["mean"]["mAP@avg"] == 75.0 and found["std"]["mAP@avg"] == 25.0


def test_a_class_on_both_sides_is_a_leak_however_it_is_spelled():
    with pytest.raises(ManifestError, match="'long_jump' is 'LongJump'"):
        ClassSplit(name="half/split_0", seen=("Run", "LongJump", "Jump"), unseen=("Swim", "Row", "long_jump"))
    ClassSplit(name="half/split_0", seen=("走る",), unseen=("跳ぶ",))  # names without Latin letters are compared whole


def test_names_of_a_pretraining_vocabulary_are_found_by_their_words(tmp_path):
    assert words_of("BaseballPitch") == words_of("baseball_pitch") == {"baseball", "pitch"}
    vocabulary = ("skipping rope", "kayaking", "throwing baseball")
    found = names_in_vocabulary(("Rope skipping", "Kayak", "Baseball", "Tango"), vocabulary)
    assert found == {"same": {"Rope skipping": ["skipping rope"]}, "within": {"Baseball": ["throwing baseball"]}}
    (tmp_path / "k.csv").write_text("id,name\n0,run\n1,swim\n")
    (tmp_path / "k.txt").write_text("run\n\nswim\n")
    assert read_names(tmp_path / "k.csv", "name") == read_names(tmp_path / "k.txt", "name") == ("run", "swim")
    vocabularies = {"k": ("run", "swim")}
    found = zero_shot(lambda _: perfect({"Run"}), tal_manifest(TRUTH), SPLITS, vocabularies=vocabularies)["half"]
    overlap = found["unseen_names_in_vocabulary"]["k"]
    assert set(overlap["same"]) == {"Run", "Swim"} and overlap["percent_same_per_split"] == {"mean": 50.0, "most": 50.0}


def test_a_vocabulary_that_is_none_is_an_error_with_its_file(tmp_path):
    with pytest.raises(MissingError, match="does not exist"):
        read_names(tmp_path / "gone.csv", "name")
    (tmp_path / "k.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ManifestError, match="no column `name`"):
        read_names(tmp_path / "k.csv", "name")
    (tmp_path / "k.txt").write_text("\n")
    with pytest.raises(ManifestError, match="no name"):
        read_names(tmp_path / "k.txt", "name")


def test_kinetics_holds_a_third_of_the_unseen_names_of_activitynet(shared):
    names = read_class_splits(shared / "annotations" / "zero_shot_splits" / "effprompt")[0]
    vocabulary = read_names(shared / "annotations" / "kinetics" / "kinetics_400_labels.csv", "name")
    assert len(vocabulary) == 400
    same_names = names_in_vocabulary((*names.seen, *names.unseen), vocabulary)["same"]
    assert len(same_names) == 68 and "Tai chi" in same_names


def test_nonsense_names_are_the_same_every_time_and_all_different():
    names = tuple(f"Playing game {number}" for number in range(500))
    made = nonsense_manifest(tal_manifest({}, classes=names)).classes
    assert made == nonsense_manifest(tal_manifest({}, classes=names)).classes and len(set(made)) == 500
    assert nonsense_manifest(tal_manifest({}, classes=names[7:8])).classes == made[7:8]
    assert [len(word) for word in made[3].split()] == [7, 4, 2]


def test_the_control_is_scored_on_the_nonsense_names():
    manifest = tal_manifest(TRUTH)
    renamed = nonsense_manifest(manifest)
    assert not set(renamed.classes) & set(manifest.classes) and len(renamed.classes) == 4
    control = perfect({"Run", "Jump"})
    control["label"] = control["label"].map(dict(zip(manifest.classes, renamed.classes, strict=True)))
    everything = perfect(set(manifest.classes))
    found = zero_shot(lambda _: everything, manifest, SPLITS, control_of=lambda _: control)["half"]
    assert found["mean"]["mAP@avg"] == 100.0 and found["nonsense_control"]["mean"]["mAP@avg"] == 50.0


def test_the_floors_of_a_split_are_fitted_on_its_seen_classes_only():
    train = tal_manifest({"t1": [("Run", 0, 100)], "t2": [("Swim", 500, 1000)]}, classes=("Run", "Jump", "Swim", "Row"))
    test = tal_manifest({"v1": [("Swim", 0, 100)], "v2": [("Row", 0, 100)]}, classes=("Run", "Jump", "Swim", "Row"))
    nothing = perfect(set())
    floors = zero_shot(lambda _: nothing, test, SPLITS[:1], train=train)["half"]["floors"]
    assert floors["blind_constant"]["mAP@0.50"] == 75.0  # Run's box: 1 and 1/2 of two videos with equal scores
    swims_too = tal_manifest(TRUTH | {"t": [("Row", 0, 900)]})
    found = zero_shot(lambda _: nothing, test, SPLITS[:1], train=swims_too)["half"]
    assert found["floors"]["blind_constant"]["mAP@0.50"] == 0.0
    assert detection(nothing, test)["mAP@avg"] == 0.0
