"""The real annotation files: official counts, bad rows and repairs as the reference states them (metrics.md §1, §2)."""

from collections import Counter
from functools import cache

import pytest

from unloc.annotations.check import add_actions, check_manifest, shared_between_splits
from unloc.annotations.converters import convert
from unloc.annotations.reading import Problems, listed_filter, read_video_list
from unloc.annotations.schema import load_manifest, restricted, save_manifest
from unloc.evaluation.zero_shot import read_class_splits, zero_shot_sides


@pytest.fixture(scope="module")
def converted(shared):
    """Folder name to (manifest, repairs), each converted once."""
    formats = {"activitynet_1.3": "activitynet", "activitynet_captions": "activitynet-captions"}

    @cache
    def of(folder):
        problems = Problems()
        name = formats.get(folder, folder.replace("_", "-"))
        return convert(name, [shared / "annotations" / folder], None, problems), problems

    return of


def findings(manifest):
    return check_manifest(manifest)[1]


def counts(table, column="split"):
    return table[column].value_counts().to_dict()


def test_activitynet_has_its_videos_instances_and_known_bad_rows(converted):
    manifest, problems = converted("activitynet_1.3")
    assert counts(manifest.videos) == {"training": 10024, "validation": 4926, "testing": 5044}
    assert counts(manifest.instances) == {"training": 15410, "validation": 7654}
    assert len(manifest.classes) == 200 and not problems.places
    assert Counter(item.kind for item in findings(manifest)) == {
        "segment of at most 0.1 s": 79,
        "segment past the video": 14,
        "segment past the video by rounding": 212,  # together 153 + 73
        "duplicate row": 47,  # 28 + 19
        "zero-length segment": 12,
    }
    kinds = Counter(item.kind for item in findings(manifest.select("validation")))
    assert kinds["segment of at most 0.1 s"] == 32


def test_captions_have_their_sentences_and_shared_videos(converted):
    manifest, problems = converted("activitynet_captions")
    assert counts(manifest.videos) == {"train": 10009, "val_1": 4917, "val_2": 4885}
    assert counts(manifest.queries) == {"train": 37421, "val_1": 17505, "val_2": 17031}
    assert shared_between_splits(manifest) == {("val_1", "val_2"): 4885}
    assert problems.counts == {"sentence with surplus blanks or line breaks: cleaned": 49046}
    assert Counter(item.kind for item in findings(manifest)) == {
        "segment past the video by rounding": 35,  # 29 + 5 + 1
        "segment of at most 0.1 s": 10,
        "zero-length segment": 2,
        "reversed segment": 2,
    }


def test_charades_has_its_queries_and_repair_cuts_the_ends_that_pass_the_video(converted):
    manifest, _ = converted("charades_sta")
    assert counts(manifest.videos) == {"train": 5338, "test": 1334}
    assert counts(manifest.queries) == {"train": 12408, "test": 3720}
    lengths = dict(zip(manifest.videos["video_id"], manifest.videos["duration_seconds"], strict=True))
    rows = zip(manifest.queries["split"], manifest.queries["video_id"], manifest.queries["segments"], strict=True)
    past = Counter(split for split, video_id, [[_, end]] in rows if end > lengths[video_id])
    assert past == {"train": 1805, "test": 562}
    repaired, found = check_manifest(manifest, "repair")
    assert counts(repaired.queries) == {"train": 12404, "test": 3720}
    problems = Problems()
    add_actions(found, problems)
    assert problems.counts == {
        "segment past the video: cut to the video": 2361,
        "segment past the video by rounding: cut to the video": 3,
        "reversed segment: segment dropped": 4,  # three of them end past the video too
        "query without a window left: dropped": 4,
    }


def test_qvhighlights_has_its_queries_moments_and_durations_that_contradict_the_name(converted):
    manifest, _ = converted("qvhighlights")
    assert counts(manifest.queries) == {"train": 7218, "val": 1550, "test": 1542}
    assert manifest.queries["segments"].map(len).sum() == 18367 and manifest.videos["video_id"].nunique() == 10148
    assert manifest.queries["saliency_scores"].notna().all()
    found = [Counter(item.kind for item in findings(manifest.select(split))) for split in ("train", "val", "test")]
    assert found == [{"duration contradicts the name": number} for number in (213, 39, 47)]


def test_thumos14_has_its_instances_and_the_thirty_past_the_end(converted):
    manifest, _ = converted("thumos14")
    assert counts(manifest.videos) == {"validation": 200, "test": 212}
    assert counts(manifest.instances) == {"validation": 3007, "test": 3358} and len(manifest.classes) == 20
    assert Counter(item.kind for item in findings(manifest)) == {"segment wholly past the video": 30}


def test_coin_names_the_812_videos_that_lack_annotations(converted):
    manifest, problems = converted("coin")
    assert counts(manifest.videos) == {"training": 8419, "testing": 2596}
    assert counts(manifest.instances) == {"training": 32937, "testing": 10107} and len(manifest.classes) == 778
    gaps = {rule.split()[2]: places for rule, places in problems.places.items() if rule.startswith("coverage gap")}
    assert {subset: len(places) for subset, places in gaps.items()} == {"training": 611, "testing": 201}
    assert not {*gaps["training"], *gaps["testing"]} & set(manifest.videos["video_id"])
    assert Counter(item.kind for item in findings(manifest)) == {"segment past the video": 1}


def test_the_gap_of_one_split_is_that_splits(shared):
    problems = Problems()
    assert convert("coin", [shared / "annotations/coin"], "testing", problems).splits == ["testing"]
    assert sorted(map(len, problems.places.values()))[-1] == 201


@pytest.mark.parametrize("folder", ["thumos14", "qvhighlights"])
def test_a_real_manifest_is_the_same_after_writing_and_reading(converted, folder, tmp_path):
    manifest, _ = converted(folder)
    save_manifest(manifest, tmp_path / "m.jsonl")
    again = load_manifest(tmp_path / "m.jsonl")
    for table in ("videos", "queries", "instances"):
        assert getattr(again, table).equals(getattr(manifest, table))


@pytest.mark.parametrize(
    ("option", "name", "left"),
    [
        ("only", "video_info_new.csv", {"training": 9649, "validation": 4728, "testing": 4851}),
        ("without", "blocked_etad.json", {"training": 9976, "validation": 4895, "testing": 5044}),
        ("without", "blocked_api_a2net.json", None),
    ],
)
def test_blocked_lists_and_the_bmn_list_leave_the_videos_they_should(converted, shared, option, name, left):
    manifest, _ = converted("activitynet_1.3")
    path = shared / "annotations/activitynet_1.3" / name
    part = restricted(manifest, listed_filter(**{"only": [], "without": [], option: [path]}))
    assert left is None or counts(part.videos) == left
    assert set(part.instances["video_id"]) <= set(part.videos["video_id"])
    if option == "without":
        assert len(part.videos) == 19994 - len(read_video_list(path))


@pytest.mark.parametrize("dataset", ["ActivityNet", "THUMOS14"])
@pytest.mark.parametrize("share", [50, 75])
def test_the_ten_class_splits_divide_the_classes_and_two_sources_agree(converted, shared, dataset, share):
    manifest, _ = converted("activitynet_1.3" if dataset == "ActivityNet" else "thumos14")
    test_split = "validation" if dataset == "ActivityNet" else "test"
    folder = f"train_{share}_test_{100 - share}/{dataset}"
    splits, others = (
        read_class_splits(shared / "annotations/zero_shot_splits" / source / folder)
        for source in ("effprompt", "stale")
    )
    assert [split.name for split in splits] == [f"split_{number}" for number in range(10)]
    for split, other in zip(splits, others, strict=True):
        assert len(split.seen) == len(manifest.classes) * share // 100
        assert (set(split.seen), set(split.unseen)) == (set(other.seen), set(other.unseen))
    seen, unseen = zero_shot_sides(manifest, splits[0], test_split)
    assert set(seen.instances["label"]) == set(splits[0].seen) and set(unseen.instances["label"]) == set(
        splits[0].unseen
    )
    showing = manifest.instances[manifest.instances["label"].isin(splits[0].unseen)]["video_id"]
    assert not set(seen.videos["video_id"]) & set(showing)
    assert len(unseen.videos) == len(manifest.select(test_split).videos)
