"""Every kind of bad row is found with its line, and changed only by the rule asked for."""

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unloc.annotations.check import (
    NOTES,
    add_actions,
    check_file,
    check_manifest,
    counted_findings,
    segment_problem,
    shared_between_splits,
)
from unloc.annotations.reading import Problems
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest, load_manifest, save_manifest
from unloc.errors import ManifestError


def findings(manifest):
    return check_manifest(manifest)[1]


def actions(found):
    problems = Problems()
    add_actions(found, problems)
    return problems.counts


@pytest.fixture
def bad_manifest():
    rows = [
        VideoRow("v", "train", 10.0),
        VideoRow("v", "train", 10.0),
        VideoRow("w", "train", -1.0),
        VideoRow("x", "train", None),
        QueryRow("v", "train", "1", "fine", [[1, 2], [5, 12], [1, 2]]),
        QueryRow("v", "train", "2", "reversed", [[5, 4]]),
        QueryRow("v", "train", "2", " ", [[3, 3]]),
        QueryRow("u", "train", "4", "nowhere", [[1, 2]]),
        QueryRow("v", "val", "5", "no such split", [[1, 2]]),
        QueryRow("v", "train", "6", "rated", [[0, 4]], [0, 7], [[1, 2, 9], [1, 1, 1]]),
        QueryRow("v", "train", "7", "short", [[0, 4]], [0, 1], [[1, 2, 3]]),
        QueryRow("v", "train", "8", "late", [[8, 10]], [9], [[1, 2, 3]]),
        QueryRow("v", "train", "9", "rounded", [[8, 10.01]]),
        QueryRow("v", "train", "10", "infinite", [[0, math.inf]]),
        InstanceRow("v", "train", "cat", [1, 2]),
        InstanceRow("v", "train", "cat", [1, 2]),
        InstanceRow("v", "train", "dog", [-1, 2]),
        InstanceRow("v", "train", "cat", [11, 12]),
        InstanceRow("x", "train", "cat", [0, 999]),
    ]
    return build_manifest(name="bad", tasks=("mr",), rows=rows, classes=["cat", "eel", "cat", " "])


def test_every_kind_of_bad_row_is_found_with_its_line(bad_manifest, tmp_path):
    save_manifest(bad_manifest, tmp_path / "m.jsonl")
    found = findings(load_manifest(tmp_path / "m.jsonl"))
    assert {(item.line, item.kind) for item in found if not item.is_note} == {
        (1, "duplicate class"),
        (1, "empty class"),
        (3, "duplicate video"),
        (4, "bad duration"),
        (6, "duplicate window"),
        (6, "segment past the video"),
        (7, "reversed segment"),
        (8, "duplicate qid"),
        (8, "empty text"),
        (8, "zero-length segment"),
        (9, "video not described"),
        (10, "unknown split"),
        (11, "saliency out of range"),
        (12, "saliency of wrong length"),
        (13, "clip outside the video"),
        (15, "segment not finite"),
        (17, "duplicate row"),
        (18, "unknown label"),
        (18, "segment before the video"),
        (19, "segment wholly past the video"),
    }
    assert {(item.line, item.kind) for item in found if item.is_note} == {
        (1, "class without instances"),
        (5, "unknown duration"),
        (8, "segment of at most 0.1 s"),
        (14, "segment past the video by rounding"),
    }


def test_what_a_folder_lacks_is_found_at_the_line_of_its_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    rows = [VideoRow(key, "t", 1.0) for key in ("a", "v_a", "gone")]
    save_manifest(build_manifest(name="x", tasks=("mr",), rows=rows), tmp_path / "m.jsonl")
    found = check_file(tmp_path / "m.jsonl", videos=tmp_path).findings
    assert sorted((item.line, item.kind) for item in found) == [
        (2, "empty video file"),
        (3, "empty video file"),
        (3, "two ids with one file"),
        (4, "missing video"),
    ]


def test_kinds_are_counted_with_their_first_place(bad_manifest):
    problems = counted_findings(findings(bad_manifest), Path("m.jsonl"))
    assert next(iter(problems.counts)) == "duplicate class"
    assert problems.counts["segment not finite"] == 1 and problems.counts["unknown duration [note]"] == 1
    assert problems.places["segment past the video"][0].startswith("m.jsonl:6: ")


@pytest.mark.parametrize(
    ("start", "end", "duration", "problem"),
    [
        (0, 10, 10, None),
        (0, 10.01, 10, "segment past the video by rounding"),
        (0, 10.02, 10, "segment past the video"),
        (10, 11, 10, "segment wholly past the video"),
        (0, 99, math.nan, None),
        (-0.1, 1, 10, "segment before the video"),
        (2, 2, 10, "zero-length segment"),
        (3, 2, 10, "reversed segment"),
        (math.nan, 2, 10, "segment not finite"),
    ],
)
def test_a_segment_has_one_problem_or_none(start, end, duration, problem):
    assert segment_problem(start, end, duration) == problem


def test_repair_cuts_and_drops_and_every_finding_carries_its_action(bad_manifest):
    repaired, found = check_manifest(bad_manifest, "repair")
    assert repaired.queries["segments"].tolist() == [[[1, 2], [5, 10]], [[0, 4]], [[0, 4]], [[8, 10]], [[8, 10]]]
    assert repaired.queries["saliency_scores"].tolist() == [None] * 5
    assert repaired.videos["duration_seconds"].fillna(0).tolist() == [10, 0, 0]
    assert repaired.instances[["start_seconds", "end_seconds"]].to_numpy().tolist() == [[1, 2], [0, 999]]
    assert repaired.classes == ("cat", "eel")
    assert actions(found) == {
        "duplicate class: dropped": 1,
        "empty class: dropped": 1,
        "duplicate video: dropped": 1,
        "bad duration: made unknown": 1,
        "duplicate window: window dropped": 1,
        "segment past the video: cut to the video": 1,
        "reversed segment: segment dropped": 1,
        "zero-length segment: segment dropped": 1,
        "query without a window left: dropped": 3,
        "empty text: dropped": 1,
        "video not described: dropped": 1,
        "unknown split: dropped": 1,
        "saliency out of range: ratings removed": 1,
        "saliency of wrong length: ratings removed": 1,
        "clip outside the video: ratings removed": 1,
        "segment past the video by rounding: cut to the video": 1,
        "segment not finite: segment dropped": 1,
        "duplicate row: dropped": 1,
        "unknown label: dropped": 1,
        "segment before the video: cut to the video": 1,
        "segment wholly past the video: segment dropped": 1,
    }


def test_drop_leaves_out_what_repair_would_cut_and_keeps_what_is_only_rounded(bad_manifest):
    dropped = check_manifest(bad_manifest, "drop")[0]
    assert dropped.queries["segments"].tolist() == [[[1, 2]], [[0, 4]], [[0, 4]], [[8, 10]], [[8, 10.01]]]
    assert list(dropped.videos["video_id"]) == ["v", "x"]


@pytest.mark.parametrize("rule", ["repair", "drop"])
def test_after_a_rule_no_bad_row_is_left_and_a_second_time_nothing_changes(bad_manifest, rule):
    once, _ = check_manifest(bad_manifest, rule)
    twice, found = check_manifest(once, rule)
    assert all(item.is_note and not item.action for item in found)
    assert twice.queries.equals(once.queries) and twice.instances.equals(once.instances)


bound = st.floats(-5, 15) | st.sampled_from([math.nan, math.inf, 0.0, 10.0, 10.005])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(bound, bound), max_size=6), st.sampled_from(["repair", "drop"]))
def test_after_a_rule_every_segment_lies_in_its_video(segments, rule):
    rows = [VideoRow("v", "train", 10.0), QueryRow("v", "train", "1", "q", segments)]
    rows += [InstanceRow("v", "train", "a", segment) for segment in segments]
    result = check_manifest(build_manifest(name="x", tasks=("mr",), rows=rows, classes=["a"]), rule)[0]
    left = [tuple(segment) for segments in result.queries["segments"] for segment in segments]
    assert all(0 <= start < end <= (10 if rule == "repair" else 10.01) + 1e-6 for start, end in left)
    assert not [item for item in findings(result) if not item.is_note]
    good = {(start, end) for start, end in segments if 0 <= start < end <= 10}
    assert good <= set(left)


def test_keep_changes_nothing_and_a_manifest_without_videos_is_an_error(bad_manifest):
    kept, found = check_manifest(bad_manifest)
    assert kept is bad_manifest and not actions(found)
    empty = build_manifest(name="x", tasks=("mr",), rows=[VideoRow("v", "train", -1.0)])
    with pytest.raises(ManifestError, match="no video of 'x'"):
        check_manifest(empty, "drop")


def test_a_name_that_states_another_length_than_the_duration_is_noted_with_every_query():
    rows = [VideoRow("ab_60.0_210.0", "val", 150.0), VideoRow("cd_60.0_210.0", "val", 126.0)]
    rows += [
        VideoRow("ef_0.0_2.5", "val", None),
        VideoRow("clip_1_9", "val", 4.0),
        VideoRow("gh_0.0_9.0", "val", 2.0),
    ]
    rows += [QueryRow(video, "val", str(n), f"query {n}", [[0, 1]]) for n, video in enumerate(["cd_60.0_210.0"] * 2)]
    found = [item for item in findings(build_manifest(name="m", tasks=("mr",), rows=rows)) if "name" in item.kind]
    assert [item.message.split()[0].strip(":") for item in found] == ["gh_0.0_9.0", "cd_60.0_210.0", "cd_60.0_210.0"]
    assert all(item.is_note for item in found)


def test_segments_too_short_to_be_meant_are_noted():
    rows = [VideoRow("v", "val", 9.0)]
    rows += [
        InstanceRow("v", "val", "a", [start, end]) for start, end in ((0, 0), (1, 1.01), (2, 2.1), (3, 3.2), (5, 4))
    ]
    rows.append(QueryRow("v", "val", "1", "q", [[0, 0.05], [2, 4]]))
    manifest = build_manifest(name="m", tasks=("tal", "mr"), rows=rows, classes=("a",))
    kinds = Counter(item.kind for item in findings(manifest))
    assert kinds == {"segment of at most 0.1 s": 4, "zero-length segment": 1, "reversed segment": 1}


def test_hidden_annotations_stay_hidden():
    rows = [VideoRow("v", "test", 10.0), QueryRow("v", "test", "1", "words", [])]
    manifest = build_manifest(name="x", tasks=("mr",), rows=rows)
    assert not findings(manifest)
    for rule in ("keep", "repair", "drop"):
        assert check_manifest(manifest, rule)[0].queries["segments"].tolist() == [[]]


def test_videos_that_splits_share_are_counted():
    rows = [VideoRow(key, split, 1.0) for key, split in (("a", "one"), ("a", "two"), ("b", "two"), ("c", "three"))]
    assert shared_between_splits(build_manifest(name="x", tasks=("mr",), rows=rows)) == {("one", "two"): 1}


DOCUMENT = Path(__file__).parents[2] / "docs/data.md"


def test_the_document_names_every_kind_and_its_manifest_can_be_read(bad_manifest, tmp_path):
    words = DOCUMENT.read_text(encoding="utf-8")
    assert not [kind for kind in {item.kind for item in findings(bad_manifest)} | NOTES if kind not in words]
    (tmp_path / "m.jsonl").write_text(words.split("```json")[1].split("```")[0].strip())
    assert not findings(load_manifest(tmp_path / "m.jsonl"))
