"""Accuracy of video classification against loops over videos and classes, and what a file of predictions may hold."""

import json

import numpy as np
import pytest

from tests.evaluation.small import same
from unloc.annotations.reading import Problems
from unloc.annotations.schema import InstanceRow, VideoRow, build_manifest, save_manifest
from unloc.evaluation.evaluator import evaluate, score
from unloc.evaluation.screening import screen_labels
from unloc.predictions.records import detections_table

CLASSES = tuple("abcdefgh")


def label_manifest(truth, more=()):
    """From {video: labels}; `more` are videos of a training split, all of the last class."""
    rows = [VideoRow(name, "val", 10.0) for name in truth] + [VideoRow(name, "train", 10.0) for name in more]
    rows += [InstanceRow(name, "val", label, [0.0, 10.0]) for name, labels in truth.items() for label in labels]
    rows += [InstanceRow(name, "train", CLASSES[-1], [0.0, 10.0]) for name in more]
    return build_manifest(name="small", tasks=("cls",), rows=rows, classes=CLASSES)


def predicted(scores):
    """From {video: {label: score}}."""
    return detections_table((v, label, 0.0, 10.0, value) for v, of in scores.items() for label, value in of.items())


def by_loops(truth, scores):
    """top-1, top-5 and mean class accuracy in percent, as the module's docstring says."""
    ranked = {v: sorted(scores.get(v, {}), key=lambda label, v=v: -scores[v][label]) for v in truth}  # stable
    labelled = [v for v in truth if truth[v]]
    tops = [100 * np.mean([bool(set(truth[v]) & set(ranked[v][:k])) for v in labelled]) for k in (1, 5)]
    of_classes = []
    for name in {label for labels in truth.values() for label in labels}:
        of_classes.append(np.mean([ranked[v][:1] == [name] for v in labelled if name in truth[v]]))
    return [*tops, 100 * np.mean(of_classes)]


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_loops_with_ties_missing_videos_and_several_labels(seed):
    rng = np.random.default_rng(seed)
    truth = {f"v{n}": list(rng.permutation(list(CLASSES[:-1]))[: rng.integers(0, 3)]) for n in range(30)}
    scores = {v: {label: float(rng.integers(4)) for label in rng.permutation(list(CLASSES))} for v in truth}
    del scores["v3"]
    metrics = score("cls", predicted(scores), label_manifest(truth))
    wanted = dict(zip(("top1_accuracy", "top5_accuracy", "mean_class_accuracy"), by_loops(truth, scores), strict=True))
    assert list(metrics) == list(wanted) and all(same(metrics[name], wanted[name]) for name in wanted)


def test_the_report_has_floors_intervals_classes_and_coverage():
    truth = {"v0": ["a"], "v1": ["a"], "v2": ["b"], "v3": ["h"], "hidden": []}
    found = predicted({"v0": {"a": 0.9, "b": 0.1}, "v1": {"b": 0.6, "a": 0.5}, "v2": {"b": 0.2}})
    manifest = label_manifest(truth, more=("t0", "t1"))
    report = evaluate("cls", found, manifest, "val", train_split="train", interval_seed=0)
    assert report["metrics"] == {"top1_accuracy": 50, "top5_accuracy": 75, "mean_class_accuracy": 50}
    assert report["per_class"] == {"a": {"accuracy": 50}, "b": {"accuracy": 100}, "h": {"accuracy": 0}}
    assert report["floors"] == {
        "blind_constant": {"top1_accuracy": 25, "top5_accuracy": 100, "mean_class_accuracy": 100 / 3}
    }
    assert report["coverage"]["missing"] == ["v3"] and report["coverage"]["videos_annotated"] == 4
    assert same(report["coverage"]["metrics_without_missing"]["top1_accuracy"], 200 / 3)
    low, high = report["intervals"]["top1_accuracy"]
    assert 0 <= low < 50 < high <= 100
    fitted_here = evaluate("cls", None, manifest, "val", train_split=None)
    assert list(fitted_here["floors"]) == ["blind_constant_fitted_on_val"]


def test_what_cannot_be_scored_is_left_out_and_counted():
    rows = [("v0", "a", 0, 1, 0.5), ("v0", "a", 0, 1, 0.4), ("v0", "b", 0, 1, np.nan), ("v0", "x", 0, 1, 0.9)]
    problems = Problems()
    kept = screen_labels(
        detections_table([*rows, ("w", "a", 0, 1, 0.3)]), label_manifest({"v0": "a", "v1": "b"}), problems
    )
    assert kept["score"].tolist() == [0.5, 0.4] and len(problems.counts) == 5 and set(problems.counts.values()) == {1}


def test_a_file_without_segments_is_scored_by_the_command(unloc, tmp_path):
    save_manifest(label_manifest({"v0": "a", "v1": "b"}), tmp_path / "m.jsonl")
    results = {"v0": [{"label": "a", "score": 2.0}, {"label": "b", "score": 1.0}], "v1": [{"label": "a", "score": 0.0}]}
    (tmp_path / "p.json").write_text(json.dumps({"version": "VERSION 1.3", "results": results}))
    words = (
        "--predictions",
        tmp_path / "p.json",
        "--manifest",
        tmp_path / "m.jsonl",
        "--split",
        "val",
        "--task",
        "cls",
    )
    code, out, errors = unloc("eval", *words, "--out", tmp_path / "out", "--export", tmp_path / "again.csv", "--strict")
    assert code == 0, errors
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]["top1_accuracy"] == 50
    assert "top5_accuracy" in out and (tmp_path / "again.csv").is_file()
