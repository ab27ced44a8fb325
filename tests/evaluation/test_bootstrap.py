"""95 % intervals: a drawn video counts like a copy of it, and the ends are percentiles of the draws."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.small import average_precision, tal_detections, tal_manifest
from unloc.annotations.reading import Problems
from unloc.annotations.schema import InstanceRow, VideoRow, build_manifest
from unloc.evaluation.detection import Matches, detection, weighted_precision
from unloc.evaluation.evaluator import SCORES, bootstrap_intervals, evaluate, score
from unloc.evaluation.protocols import ACTIVITYNET_THRESHOLDS, PROTOCOLS
from unloc.evaluation.retrieval import QueryScores
from unloc.evaluation.screening import screen_frames
from unloc.evaluation.segmentation import (
    FrameScores,
    VideoFrames,
    frame_counts,
    frame_map,
    frame_precision,
    frame_scores,
    weighted_counts,
)
from unloc.predictions.reading import read_predictions
from unloc.predictions.records import FramePrediction

RNG = np.random.default_rng(0)
VIDEOS = [f"v{number}" for number in range(6)]
TRUTH = {v: [(label, 10 * k, 10 * k + 8) for k, label in enumerate(RNG.choice(["a", "b"], 3))] for v in VIDEOS}
FOUND = {
    v: [(label, start + RNG.normal(0, 2), end + RNG.normal(0, 2), RNG.random()) for label, start, end in items * 3]
    for v, items in TRUTH.items()
}
WEIGHTS = np.array([0, 3, 1, 2, 0, 1])


def copies(rows):
    """Every video as often as it is drawn."""
    counts = zip(rows.items(), WEIGHTS, strict=True)
    return {f"{video}-{number}": items for (video, items), count in counts for number in range(count)}


def test_weighted_average_precision_is_that_of_the_copied_videos():
    matches = Matches(tal_detections(FOUND), tal_manifest(TRUTH).instances, ACTIVITYNET_THRESHOLDS)
    ((values, present),) = weighted_precision(matches, np.append(WEIGHTS, 1).astype(float)[None])
    copied = average_precision(
        tal_detections(copies(FOUND)), tal_manifest(copies(TRUTH)).instances, ACTIVITYNET_THRESHOLDS
    )
    assert present.all() and set(copied) == set(matches.classes)
    for label, row in zip(matches.classes, values, strict=True):
        # Copies of one detection tie: average precision counts them one by one, the weighted one as one step.
        np.testing.assert_allclose(row, copied[label], atol=0.03)


def test_videos_drawn_once_each_give_the_score_itself():
    detections, manifest = tal_detections(FOUND), tal_manifest(TRUTH)
    matches = Matches(detections, manifest.instances, ACTIVITYNET_THRESHOLDS)
    ((values, _),) = weighted_precision(matches, np.ones((1, len(VIDEOS) + 1)))
    expected = average_precision(detections, manifest.instances, ACTIVITYNET_THRESHOLDS)
    np.testing.assert_allclose(values, [*expected.values()])


def test_weighted_recall_is_that_of_the_copied_videos():
    rules = PROTOCOLS["tal"]["thumos14"]
    draws = SCORES["tal"](tal_detections(FOUND), tal_manifest(TRUTH), rules).drawn(WEIGHTS[None])
    copied = SCORES["tal"](tal_detections(copies(FOUND)), tal_manifest(copies(TRUTH)), rules).metrics()
    recall = {name: values[0] for name, values in draws.items() if name.startswith("recall@")}
    assert recall == pytest.approx({name: copied[name] for name in recall}) and recall


def intervals(scores):
    return bootstrap_intervals(scores, scores.metrics(), seed=0)


class Drawn:
    """Scores with given draws, which keep the weights they are asked for."""

    num_videos = 50

    def __init__(self, draws):
        self.given = draws

    def drawn(self, weights):
        self.weights = weights
        return self.given


def test_draws_take_as_many_videos_as_there_are_and_follow_the_seed():
    scores = [Drawn({}) for _ in range(3)]
    for item, seed in zip(scores, (3, 3, 4), strict=True):
        bootstrap_intervals(item, {}, seed)
    weights, again, other = (item.weights for item in scores)
    assert weights.shape == (1000, 50) and (weights.sum(axis=1) == 50).all()
    np.testing.assert_array_equal(weights, again)
    assert (weights != other).any()


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide():
    hits = np.repeat([0.0, 1.0], 200)
    low, high = intervals(QueryScores(np.array([f"v{n}" for n in range(400)]), {"R1": hits}))["R1"]
    assert low == pytest.approx(45.1, abs=0.5) and high == pytest.approx(54.9, abs=0.5)  # 50 ± 1.96 · 2.5
    together = intervals(QueryScores(np.array(["v"] * 400), {"R1": hits}))["R1"]
    assert together == [50.0, 50.0]  # queries of one video are drawn together


def test_intervals_are_centred_on_the_score_and_stay_within_0_and_100():
    draws = {"a": np.linspace(60.0, 80.0, 1001), "b": np.linspace(90.0, 100.0, 1001)}
    found = bootstrap_intervals(Drawn(draws), {"a": 50.0, "b": 99.0}, seed=0)
    assert found["a"] == pytest.approx([40.5, 59.5]) and found["b"] == pytest.approx([94.25, 100.0])


def test_an_undefined_metric_has_no_interval():
    draws = {"a": np.array([np.nan, np.nan]), "b": np.array([1.0, np.nan]), "c": np.array([1.0, 2.0])}
    assert bootstrap_intervals(Drawn(draws), {"a": 1.0, "b": 1.0, "c": np.nan}, seed=0) == {"b": [1.0, 1.0]}
    assert intervals(QueryScores(np.zeros(0), {"R1": np.zeros(0)})) == {}
    assert intervals(FrameScores([])) == {}


def test_every_task_has_intervals_around_its_score():
    detections, manifest = tal_detections(FOUND), tal_manifest(TRUTH)
    for protocol in ("activitynet", "thumos14", "unloc"):
        found = intervals(SCORES["tal"](detections, manifest, PROTOCOLS["tal"][protocol]))
        scored = detection(detections, manifest, protocol)
        assert set(found) == set(scored)
        assert all(low <= scored[name] + 1e-6 and scored[name] - 1e-6 <= high for name, (low, high) in found.items())
        assert "mAP@avg" in found and found["mAP@avg"][0] < found["mAP@avg"][1]
    rows = [VideoRow(v, "test", 10.0) for v in VIDEOS] + [InstanceRow(v, "test", "a", [2, 7]) for v in VIDEOS]
    manifest = build_manifest(name="m", tasks=("as",), rows=rows, classes=("a", "b"))
    labels = [["a" if 1 <= k < 5 + n else None for k in range(10)] for n in range(6)]
    predictions = [
        FramePrediction(video_id=v, fps=1.0, labels=row, scores=RNG.random((10, 2)))
        for v, row in zip(VIDEOS, labels, strict=True)
    ]
    scores = frame_scores(predictions, manifest, PROTOCOLS["as"]["coin"])
    found, scored = intervals(scores), scores.metrics()
    assert set(found) == set(scored)
    assert all(low <= scored[name] <= high for name, (low, high) in found.items())


def test_segmentation_weights_count_as_copies():
    rows = [row for v in ("a", "b") for row in (VideoRow(v, "test", 10.0), InstanceRow(v, "test", "x", [0, 5]))]
    manifest = build_manifest(name="m", tasks=("as",), rows=rows, classes=("x",))
    scores = RNG.random((2, 10, 1))
    predictions = [
        FramePrediction(video_id=v, fps=1.0, labels=["x"] * (4 + 3 * n) + [None] * (6 - 3 * n), scores=scores[n])
        for n, v in enumerate("ab")
    ]
    frames = frame_scores(predictions, manifest, PROTOCOLS["as"]["coin"]).frames
    copied = FrameScores([frames[0], frames[0], frames[1]]).metrics()
    weights = np.array([[2, 1], [0, 0], [1, 1]])
    counts = weighted_counts(frame_counts(frames), weights[0])
    assert counts == pytest.approx({name: copied[name] for name in counts})
    draws = frame_map(frame_precision(frames, weights))
    assert draws["mAP"][0] == pytest.approx(copied["mAP"]) and np.isnan(draws["mAP"][1])
    assert draws["mAP"][2] == pytest.approx(FrameScores(frames).metrics()["mAP"])


def plain_precision(positive, scores, seconds):
    """Area under precision over recall, one threshold after the other."""
    area = 0.0
    for value in np.unique(scores[positive]):
        reached = scores >= value
        gained = seconds[positive & (scores == value)].sum()
        area += gained * seconds[reached & positive].sum() / seconds[reached].sum()
    return area / seconds[positive].sum()


FRAMES = st.lists(st.tuples(st.integers(-1, 2), *[st.integers(0, 4)] * 3), max_size=12)


@pytest.mark.parametrize("cells", [1, 20_000_000])
@given(st.lists(st.tuples(FRAMES, st.integers(0, 13)), min_size=1, max_size=3), st.data())
@settings(max_examples=60, deadline=None)
def test_frame_precision_is_that_of_copied_videos_ties_missing_scores_and_all(cells, videos, data):
    frames = []
    for rows, given_rows in videos:
        table = np.array(rows, dtype=float).reshape(-1, 4)
        scores = table[:given_rows, 1:] if given_rows and rows else None
        edges = np.cumsum([0.0, *(0.5 + np.arange(len(rows)) % 3)])
        truth = table[:, 0].astype(int)
        names = {"predicted": truth, "rows": np.arange(len(rows))}
        frames.append(VideoFrames(**names, edges=edges, truth=truth, scores=scores))
    frames[0] = replace(frames[0], scores=np.ones((1, 3)) if frames[0].scores is None else frames[0].scores)
    weight = st.lists(st.integers(0, 3), min_size=len(frames), max_size=len(frames))
    draws = np.array([data.draw(weight), [1] * len(frames)])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("unloc.evaluation.segmentation.CELLS", cells)
        found = frame_precision(frames, draws)
    lowest = min(video.scores.min() for video in frames if video.scores is not None)
    for number, weights in enumerate(draws):
        copies = [video for video, weight in zip(frames, weights, strict=True) for _ in range(weight)]
        seconds = np.concatenate([np.zeros(0), *(video.seconds for video in copies)])
        truth = np.concatenate([np.zeros(0), *(video.truth for video in copies)])
        for code in range(3):
            scores = [np.zeros(0)]
            for video in copies:
                column = np.full(len(video.truth), lowest)
                if video.scores is not None:
                    kept = video.scores[: len(column), code]
                    column[: len(kept)] = kept
                scores.append(column)
            if (truth == code).any():
                expected = plain_precision(truth == code, np.concatenate(scores), seconds)
                assert found[code, number] == pytest.approx(expected)
            else:
                assert np.isnan(found[code, number])


def test_scores_of_a_file_are_read_one_video_at_a_time(tmp_path):
    num_videos, shape = 40, (200, 100)
    classes = tuple(map(str, range(shape[1])))
    rows = [VideoRow(f"v{n}", "test", 200.0) for n in range(num_videos)]
    rows += [InstanceRow(f"v{n}", "test", str(n), [3 * n, 3 * n + 60]) for n in range(num_videos)]
    manifest = build_manifest(name="m", tasks=("as",), rows=rows, classes=classes)
    scores = {f"v{n}": RNG.random(shape) for n in range(num_videos)}
    np.savez(tmp_path / "s.npz", **scores)
    lines = [{"video_id": video, "fps": 1, "labels": [None] * 200, "scores_file": "s.npz"} for video in scores]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tracemalloc.start()
    predictions = screen_frames(read_predictions(tmp_path / "p.jsonl", "as").predictions, manifest, Problems())
    found = evaluate("as", predictions, manifest, "test")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    in_memory = [replace(item, scores=scores[item.video_id]) for item in predictions]
    assert found["metrics"]["mAP"] == score("as", in_memory, manifest)["mAP"] > 0
    assert peak < sum(table.nbytes for table in scores.values()) / 2
    assert found["per_class"]["7"]["AP"] > 0 and "77" not in found["per_class"]
