import csv
import itertools
import json

import numpy as np
import pytest

from unloc.synth.events import plan_video
from unloc.synth.formats import all_annotations, rate_clips, relevant_clips
from unloc.synth.vocabulary import CLASS_ACTIONS, MOTION_PHRASES, SHAPE_WORDS, STEP_ACTIONS, opposite_motion


@pytest.fixture(scope="module")
def files(plans):
    return all_annotations(plans, 31)


def test_activitynet_has_the_official_keys_and_every_class_event(files, plans):
    content = json.loads(files["activitynet.json"])
    assert set(content) == {"taxonomy", "version", "database"}
    assert "synthetic" in content["version"] and "synthetic" in json.loads(files["coin.json"])["version"]
    nodes = {node["nodeName"]: node for node in content["taxonomy"]}
    assert all(nodes[action.name]["parentName"] in nodes for action in CLASS_ACTIONS)
    for plan in plans:
        entry = content["database"][plan.video_id]
        assert set(entry) == {"duration", "subset", "resolution", "url", "annotations"}
        assert len(entry["annotations"]) == sum(event.action in CLASS_ACTIONS for event in plan.events)
    assert {entry["subset"] for entry in content["database"].values()} == {"training", "validation", "testing"}


def test_every_format_converts_into_a_manifest_that_says_it_is_synthetic(files, tmp_path):
    from unloc.annotations.converters import convert

    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    single = {"activitynet": "activitynet.json", "coin": "coin.json"}
    folders = {"activitynet-captions": "activitynet_captions", "charades-sta": "charades_sta", "gmr": "gmr"}
    for name, place in {**single, **folders, "qvhighlights": "qvhighlights"}.items():
        manifest = convert(name, [tmp_path / place])
        assert manifest.name.startswith("synthetic_") and manifest.source.startswith("synthetic world")


def test_captions_have_one_sentence_per_timestamp_and_keys_with_v_(files, plans):
    splits = {split: json.loads(files[f"activitynet_captions/{split}.json"]) for split in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == len(plans)
    for plan in plans:
        entry = splits[plan.split][plan.video_id]
        assert plan.video_id.startswith("v_")
        assert len(entry["timestamps"]) == len(entry["sentences"]) == len(plan.events)


def test_charades_lines_are_id_start_end_and_sentence_and_lengths_stand_in_the_csv(files, plans):
    by_id = {plan.video_id: plan for plan in plans}
    for split in ("train", "val", "test"):
        rows = list(csv.DictReader(files[f"charades_sta/Charades_v1_{split}.csv"].splitlines()))
        lengths = {row["id"]: float(row["length"]) for row in rows}
        for line in files[f"charades_sta/charades_sta_{split}.txt"].splitlines():
            place, sentence = line.split("##")
            video_id, start, end = place.split()
            assert by_id[video_id].split == split and sentence
            assert 0 <= float(start) < float(end) <= lengths[video_id] + 0.1


def test_qvhighlights_windows_are_exactly_the_relevant_clips(files):
    rows = [json.loads(line) for line in files["qvhighlights/highlight_train_release.jsonl"].splitlines()]
    assert len({row["qid"] for row in rows}) == len(rows)
    for row in rows:
        clips = [clip for start, end in row["relevant_windows"] for clip in range(start // 2, end // 2)]
        assert clips == row["relevant_clip_ids"] and clips
        assert all(one[1] < other[0] for one, other in itertools.pairwise(row["relevant_windows"]))
        assert np.shape(row["saliency_scores"]) == (len(clips), 3)
        assert row["relevant_windows"][-1][1] <= row["duration"]
    scores = np.concatenate([row["saliency_scores"] for row in rows])
    assert scores.min() >= 0 and scores.max() == 4 and len(np.unique(scores)) == 5


def test_every_query_has_a_very_good_clip_and_most_have_a_worse_one(files):
    rows = [json.loads(line) for line in files["qvhighlights/highlight_train_release.jsonl"].splitlines()]
    best = np.array([np.max(row["saliency_scores"]) for row in rows])
    assert (best == 4).mean() > 0.98
    many = [row for row in rows if len(row["relevant_clip_ids"]) > 1]
    assert np.mean([np.max(row["saliency_scores"], axis=1).min() < 4 for row in many]) > 0.6


def test_half_of_the_gmr_queries_are_null_and_tell_a_motion_that_no_object_of_that_look_has(files, plans):
    lines = [line for split in ("train", "val", "test") for line in files[f"gmr/{split}.jsonl"].splitlines()]
    rows, opposites = {row["qid"]: row for row in map(json.loads, lines)}, 0
    assert len(rows) == len(lines) == 2 * sum(len(plan.events) for plan in plans)
    for plan in plans:
        for number, event in enumerate(plan.events):
            true, null = (rows[f"{plan.video_id}_{number}{ending}"] for ending in ("", "_null"))
            assert true["relevant_windows"] == [[event.start_seconds, event.end_seconds]]
            assert null["relevant_windows"] == []
            nouns = [f"{event.action.colour} {noun}" for noun in SHAPE_WORDS[event.action.shape]]
            told = {
                motion
                for motion, phrases in MOTION_PHRASES.items()
                if any(f"{noun} {phrase}" in null["query"].lower() for noun in nouns for phrase in phrases)
            }
            shown = {other.action.motion for other in plan.events if other.action.look == event.action.look}
            assert told and not told & shown, null
            opposites += opposite_motion(event.action.motion) in told
    assert 0.2 < opposites / (len(rows) / 2) < 0.7


def test_coin_step_ids_name_one_label_each_and_steps_are_sorted(files):
    database = json.loads(files["coin.json"])["database"]
    labels = {(step["id"], step["label"]) for entry in database.values() for step in entry["annotation"]}
    assert len(labels) == len(dict(labels)) == len(STEP_ACTIONS)
    for entry in database.values():
        segments = [step["segment"] for step in entry["annotation"]]
        assert segments == sorted(segments)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(segments))


def test_unseen_classes_recombine_words_of_seen_classes(files):
    for folder, num_unseen in (("train_50_test_50", 12), ("train_75_test_25", 6)):
        for number in range(10):
            seen = files[f"zero_shot/{folder}/train/split_{number}.list"].split("\n")[:-1]
            unseen = files[f"zero_shot/{folder}/test/split_{number}.list"].split("\n")[:-1]
            assert sorted(seen + unseen) == sorted(action.name for action in CLASS_ACTIONS)
            assert len(unseen) == num_unseen
            assert set(" ".join(unseen).split()) <= set(" ".join(seen).split())


def test_a_clip_is_relevant_where_events_fill_half_of_it_and_the_best_always_is():
    plan = plan_video(31, 0)
    event = plan.events[0]
    grades = relevant_clips([event], 40)
    halves = {clip for clip in range(40) if event.overlap_seconds(2 * clip, 2 * clip + 2) >= 1.0}
    assert halves <= set(grades) and len(set(grades) - halves) <= 1
    assert max(grades.values()) == 4


def test_raters_mostly_agree_and_stay_in_range():
    scores = np.array(rate_clips(dict.fromkeys(range(500), 4), np.random.default_rng(0)))
    assert scores.shape == (500, 3) and set(np.unique(scores)) == {3, 4}
    assert 0.75 < (scores == 4).mean() < 0.95
