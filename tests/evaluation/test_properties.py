"""Properties of every metric for any predictions: order, duplicates, symmetry, perfect and empty predictions."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.small import moments, query_manifest, tal_detections, tal_manifest
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.evaluation.detection import detection, kept_truth, overlap_over_union
from unloc.evaluation.evaluator import score
from unloc.evaluation.protocols import PROTOCOLS
from unloc.evaluation.retrieval import hull_ratio, moment_retrieval
from unloc.evaluation.segmentation import frame_scores
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table

FEW = settings(max_examples=15, deadline=None)
LABELS = ("Run", "Jump", "Swim")
times = st.integers(0, 40).map(lambda tick: tick / 2)  # a coarse grid: exact thresholds, duplicates, zero lengths
segments = st.tuples(times, times).map(sorted)


@st.composite
def detection_cases(draw):
    """(truth by video, detection rows with different scores)."""
    truth = {
        f"v{number}": draw(st.lists(st.tuples(st.sampled_from(LABELS), segments), min_size=1, max_size=4))
        for number in range(draw(st.integers(1, 4)))
    }
    truth = {video: [(label, *ends) for label, ends in items] for video, items in truth.items()}
    found = draw(
        st.lists(st.tuples(st.sampled_from([*truth, "nowhere"]), st.sampled_from(LABELS), segments), max_size=12)
    )
    rows = [(video, label, *ends, 1.0 - 0.01 * rank) for rank, (video, label, ends) in enumerate(found)]
    return truth, rows


@pytest.mark.parametrize("protocol", PROTOCOLS["tal"])
@given(detection_cases(), st.randoms(use_true_random=False))
@FEW
def test_the_order_of_videos_and_detections_changes_nothing(protocol, case, random):
    truth, rows = case
    before = detection(detections_table(rows), tal_manifest(truth, classes=LABELS), protocol)
    videos = list(truth)
    random.shuffle(videos)
    random.shuffle(rows)
    after = detection(detections_table(rows), tal_manifest({v: truth[v] for v in videos}, classes=LABELS), protocol)
    assert after == pytest.approx(before, nan_ok=True, abs=1e-9)


@given(detection_cases(), st.data())
@FEW
def test_a_worse_duplicate_never_raises_average_precision(case, data):
    truth, rows = case
    if not rows:
        return
    manifest = tal_manifest(truth, classes=LABELS)
    before = detection(detections_table(rows), manifest)
    copied = data.draw(st.sampled_from(rows))
    lower = data.draw(st.floats(0.0, copied[-1] - 0.005))
    # If the ground truth repeats the segment, the copy matches the second one: it is no duplicate.
    instances = manifest.instances[manifest.instances["video_id"] == copied[0]]
    if (instances["label"] == copied[1]).sum() > 1:
        return
    after = detection(detections_table([*rows, (*copied[:-1], lower)]), manifest)
    assert all(after[name] <= before[name] + 1e-9 for name in before)


@given(st.lists(st.tuples(segments, segments), min_size=1))
@FEW
def test_overlap_is_symmetric_within_0_and_1_and_1_with_itself(pairs):
    one, other = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    for ratio in (overlap_over_union, hull_ratio):
        np.testing.assert_array_equal(ratio(one, other), ratio(other, one))
        found = ratio(one, other)[np.isfinite(ratio(one, other))]
        assert ((found >= 0) & (found <= 1)).all()
    long = one[one[:, 1] > one[:, 0]]
    assert (overlap_over_union(long, long) == 1.0).all()


@given(detection_cases())
@FEW
def test_perfect_detections_score_100_by_every_protocol(case):
    truth, _ = case
    manifest = tal_manifest(truth, classes=LABELS)
    table = manifest.instances[["video_id", "label", "start_seconds", "end_seconds"]].assign(score=1.0)
    for protocol, rules in PROTOCOLS["tal"].items():
        kept = kept_truth(manifest.instances, rules)
        found = detection(table.loc[kept.index], manifest, protocol)
        if protocol.startswith("unloc"):
            found = {name: value for name, value in found.items() if name.startswith("mAP_present_classes")}
        assert all(value == pytest.approx(100.0, abs=1e-4) or np.isnan(value) for value in found.values())
        assert len(kept) == 0 or not np.isnan(list(found.values())).any()


# -- moments --------------------------------------------------------------------------------------------------------

windows_lists = st.lists(st.tuples(times, times, st.integers(1, 100)), max_size=12, unique_by=lambda window: window[2])


@st.composite
def moment_cases(draw):
    """(manifest rows by query, predictions)."""
    queries = []
    for number in range(draw(st.integers(1, 5))):
        truth = draw(st.lists(segments.filter(lambda ends: ends[1] > ends[0]), min_size=1, max_size=3))
        clips = draw(st.lists(st.integers(0, 9), unique=True, max_size=5))
        ratings = [[draw(st.integers(0, 4)) for _ in range(3)] for _ in clips]
        windows = np.array(draw(windows_lists), dtype=float).reshape(-1, 3)
        saliency = np.array(draw(st.lists(st.integers(0, 5), min_size=8, max_size=12)), dtype=float)
        names = {"qid": str(number), "video_id": f"v{number % 2}", "query": f"query {number}"}
        row = (names["video_id"], "test", names["qid"], names["query"], truth, clips, ratings)
        queries.append((row, MomentPrediction(**names, windows=windows, saliency=saliency)))
    return queries


def moment_manifest(queries):
    rows = [VideoRow(f"v{number}", "test", 20.0) for number in range(2)]
    return build_manifest(name="small", tasks=("mr", "hd"), rows=[*rows, *(QueryRow(*row) for row, _ in queries)])


@pytest.mark.parametrize("protocol", ["moment_detr", "lighthouse", "lighthouse-raw"])
@given(queries=moment_cases())
@FEW
def test_r1_equals_the_official_r1_and_r5_is_never_below(protocol, queries):
    found = score("mr", [item for _, item in queries], moment_manifest(queries), protocol)
    for threshold in (0.5, 0.7):
        assert found[f"R1@{threshold}"] == pytest.approx(found[f"MR-full-R1@{threshold}"], nan_ok=True)
        assert not found[f"R5@{threshold}"] < found[f"R1@{threshold}"]


@pytest.mark.parametrize("task", ["mr", "hd"])
@given(moment_cases(), st.randoms(use_true_random=False))
@FEW
def test_the_order_of_queries_and_lines_changes_nothing(task, queries, random):
    for protocol in PROTOCOLS[task]:
        before = score(task, [item for _, item in queries], moment_manifest(queries), protocol)
        shuffled = random.sample(queries, len(queries))
        lines = random.sample([item for _, item in queries], len(queries))
        after = score(task, lines, moment_manifest(shuffled), protocol)
        assert after == pytest.approx(before, nan_ok=True, abs=1e-9)


@given(moment_cases())
@FEW
def test_perfect_moments_score_100_by_every_protocol(queries):
    perfect = [
        MomentPrediction(
            qid=item.qid,
            video_id=item.video_id,
            query=item.query,
            windows=np.array(
                [[*window, 1.0 - 0.1 * rank] for rank, window in enumerate(dict.fromkeys(map(tuple, row[4])))]
            ),
        )
        for row, item in queries
    ]
    for protocol in PROTOCOLS["mr"]:
        found = score("mr", perfect, moment_manifest(queries), protocol)
        # Of two equal windows one prediction finds one, and lengths outside a range count as wrong in it, officially.
        unique = all(len(set(map(tuple, row[4]))) == len(row[4]) for row, _ in queries)
        kept = {name: value for name, value in found.items() if "MR-" not in name or "full" in name}
        kept = {name: value for name, value in kept.items() if unique or "mAP" not in name}
        assert all(value == 100.0 or np.isnan(value) for value in kept.values())


@given(moment_cases())
@FEW
def test_more_windows_never_lower_recall(queries):
    found = moment_retrieval([item for _, item in queries], moment_manifest(queries))
    for threshold in (0.3, 0.5, 0.7):
        assert found[f"R1@{threshold}"] <= found[f"R5@{threshold}"] <= found[f"R10@{threshold}"]
    for rank in (1, 5, 10):
        assert found[f"R{rank}@0.3"] >= found[f"R{rank}@0.5"] >= found[f"R{rank}@0.7"]


# -- frames ---------------------------------------------------------------------------------------------------------

FRAME_ROWS = [VideoRow(name, "test", 12.5) for name in ("a", "b", "c")]
FRAME_ROWS += [InstanceRow("a", "test", "Run", [0, 5]), InstanceRow("a", "test", "Jump", [6.2, 9])]
FRAME_ROWS += [InstanceRow("b", "test", "Swim", [3, 12.5])]
frame_lists = st.lists(st.sampled_from([*LABELS, None]), max_size=14)


@pytest.mark.parametrize("protocol", PROTOCOLS["as"])
@given(st.lists(frame_lists, min_size=3, max_size=3), st.permutations(range(3)))
@FEW
def test_the_order_of_videos_changes_nothing_in_segmentation(protocol, labels, order):
    named = [FramePrediction(video_id=name, fps=1.0, labels=found) for name, found in zip("abc", labels, strict=True)]

    def scored(order_of_rows, predictions):
        rows = [FRAME_ROWS[number] for number in order_of_rows] + FRAME_ROWS[3:]
        return score("as", predictions, build_manifest(name="m", tasks=("as",), rows=rows, classes=LABELS), protocol)

    shuffled = scored(order, [named[number] for number in order])
    assert shuffled == pytest.approx(scored(range(3), named), abs=1e-9)
    assert all(0.0 <= value <= 100.0 for value in shuffled.values())


@pytest.mark.parametrize("fps", [1.0, 2.0, 7.3, 10.0])
@pytest.mark.parametrize("protocol", PROTOCOLS["as"])
def test_perfect_frames_score_100_at_every_rate(protocol, fps):
    manifest = build_manifest(name="m", tasks=("as",), rows=FRAME_ROWS, classes=LABELS)
    blank = [FramePrediction(video_id=name, fps=fps, labels=[]) for name in "abc"]
    frames = frame_scores(blank, manifest, PROTOCOLS["as"][protocol]).frames
    truth = {name: video.truth for name, video in zip("abc", frames, strict=True)}
    perfect = [
        FramePrediction(
            video_id=name,
            fps=fps,
            labels=[None if code < 0 else LABELS[code] for code in codes],
            scores=np.stack([codes == code for code in range(3)], axis=1).astype(float),
        )
        for name, codes in truth.items()
    ]
    assert set(score("as", perfect, manifest, protocol).values()) == {100.0}


@pytest.mark.parametrize("protocol", PROTOCOLS["as"])
@given(st.lists(st.floats(0.02, 2.4), min_size=1, max_size=9))
@FEW
def test_perfect_labels_score_100_wherever_their_frames_are(protocol, spacings):
    manifest = build_manifest(name="m", tasks=("as",), rows=FRAME_ROWS, classes=LABELS)
    times = np.cumsum(np.append(0.0, np.resize(spacings, 700)))
    times = times[times < 12.5]
    blank = [FramePrediction(video_id=name, times_seconds=times, labels=[None] * len(times)) for name in "abc"]
    truth = [video.truth for video in frame_scores(blank, manifest, PROTOCOLS["as"][protocol]).frames]
    names = [[*(LABELS[code] if code >= 0 else None for code in codes), *[None] * len(times)] for codes in truth]
    perfect = [replace(item, labels=row[: len(times)]) for item, row in zip(blank, names, strict=True)]
    assert score("as", perfect, manifest, protocol)["frame_accuracy"] == 100.0


# -- nothing predicted ----------------------------------------------------------------------------------------------


def test_nothing_predicted_scores_0_by_every_protocol_and_never_crashes():
    tal = tal_manifest({"v": [("Run", 0, 10)], "w": [("Jump", 5, 5)]})
    empty = pd.concat([tal_detections({}), tal_detections({"v": [("Run", 0, 1, 1.0)]}).iloc[:0]])
    for protocol in ("activitynet", "thumos14", "opentad", "opentad-thumos14", "unloc", "unloc-thumos14"):
        assert set(score("tal", empty, tal, protocol).values()) == {0.0}
    mr = query_manifest([[0, 10]], relevant_clip_ids=[0], saliency_scores=[[4, 4, 4]])
    nothing = ([], [moments([])], [moments([], saliency=np.zeros(0))])
    for protocol in PROTOCOLS["mr"]:
        for found in nothing:
            assert all(value == 0.0 or np.isnan(value) for value in score("mr", found, mr, protocol).values())
    for found in nothing:
        metrics = score("hd", found, mr, "moment_detr")
        kept = {n: v for n, v in metrics.items() if not n.endswith(("mAP",)) or n.startswith("MR-full")}
        assert all(value == 0.0 or np.isnan(value) for name, value in kept.items() if not name.startswith("HL"))
        assert metrics["HL-min-VeryGood-Hit1"] == 0.0
    frames = build_manifest(name="m", tasks=("as",), rows=FRAME_ROWS, classes=LABELS)
    for protocol in PROTOCOLS["as"]:
        for found in ([], [FramePrediction(video_id="a", fps=1.0, labels=[])]):
            metrics = score("as", found, frames, protocol)
            assert metrics["F1@50"] == 0.0 and 0.0 < metrics["frame_accuracy"] < 100.0  # background is right somewhere
