"""Null queries: the numbers of the official code of GMR and NA-VMR, an oracle on random data, and `unloc eval`."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.evaluation.small import load, same
from unloc.annotations.converters import convert
from unloc.annotations.reading import Problems
from unloc.annotations.schema import QueryRow, VideoRow, build_manifest, save_manifest
from unloc.errors import InputError, ManifestError
from unloc.evaluation.evaluator import bootstrap_intervals, evaluate
from unloc.evaluation.protocols import PROTOCOLS
from unloc.evaluation.rejection import answers_of, rejection_scores
from unloc.evaluation.screening import screen_nulls
from unloc.predictions.reading import read_predictions
from unloc.predictions.records import MomentPrediction
from unloc.predictions.writing import write_moments

GMR, NA = PROTOCOLS["rejection"]["gmr"], PROTOCOLS["rejection"]["na-vmr"]
OPTIONS = {"thresholds": (0.6, 0.75, 0.5), "ranks": (1, 2, 10), "max_windows": 3}


@pytest.fixture
def rejection(golden):
    return golden / "rejection" / "set_A"


def scored(truth, predictions, rules):
    """The metrics of two files."""
    manifest = convert("na-vmr" if rules is NA else "gmr", truth, "test")
    found = screen_nulls(read_predictions(predictions, "rejection").predictions, manifest, Problems())
    return rejection_scores(answers_of(found, manifest), manifest, rules).metrics()


def assert_same(found, expected):
    for name, value in expected.items():
        assert same(found[name], value), (name, found[name], value)


def gmr_cases():
    names = "main options no_exist no_scores mixed_exist degenerate missing_extra repeated_qid always_reject"
    return [*names.split(), "whole_video", "raw_ground_truth"]


@pytest.mark.parametrize("name", gmr_cases())
def test_gmr_equals_the_official_scorer(rejection, name):
    case = load(rejection / "expected.json")["gmr"]["cases"][name]
    truth = [rejection / case["ground_truth"]]
    truth += [rejection / "ts_window_cfg.json"] if "ts_window_cfg" in case["options"] else []
    rules = replace(GMR, **OPTIONS) if name == "options" else GMR
    found = scored(truth, rejection / case["predictions"], rules)
    assert_same(found, case["unrounded"]["brief"])
    for threshold, values in case["unrounded"]["per_threshold"].items():
        assert_same(found, {f"{key}@{threshold}": value for key, value in values.items()})


@pytest.mark.parametrize("name", ["main", "short"])
def test_na_vmr_equals_the_official_scorer(rejection, name):
    case = load(rejection / "expected.json")["na_vmr"]["cases"][name]
    found = scored([rejection / case["ground_truth"]], rejection / case["predictions"], NA)
    assert_same(found, case["unrounded"])


def test_every_edge_case_equals_the_official_scorers_or_is_read_where_they_crash(rejection, tmp_path):
    cases, raised = load(rejection / "edge_cases.json"), []
    for kind, rules in (("gmr", GMR), ("na_vmr", NA)):
        for case in cases[kind]:
            truth, predictions = tmp_path / "truth.jsonl", tmp_path / "predictions.jsonl"
            truth.write_text("".join(json.dumps(row) + "\n" for row in case["ground_truth"]))
            given = case["predictions"]
            lines = [given] if isinstance(given, dict) else given
            predictions.write_text("".join(json.dumps(row) + "\n" for row in lines))
            of_case = replace(rules, ranks=(1, 12)) if "--k_list 1 12" in case.get("options", "") else rules
            if case.get("error"):
                raised.append(case["name"])
            else:
                assert_same(scored([truth], predictions, of_case), case["expected"])
    assert {"only_null_queries", "empty_window_list", "windows_null_on_positive"} <= set(raised)


def test_time_stamps_without_rules_are_an_error(rejection):
    with pytest.raises(ManifestError, match="no rule"):
        convert("gmr", [rejection / "ground_truth_raw.jsonl"], "test")


def world(seed, num_queries=60):
    """A manifest with null queries, several to a video, and predictions of most of them."""
    rng = np.random.default_rng(seed)
    rows = [VideoRow(f"v{n}", "test", 100.0) for n in range(10)]
    found = []
    for n in range(num_queries):
        starts = np.sort(rng.uniform(0, 80, rng.integers(0, 4)))
        segments = [[float(start), float(start) + 15.0] for start in starts]
        rows.append(QueryRow(f"v{n % 10}", "test", str(n), f"query {n}", segments))
        start = rng.uniform(0, 80, rng.integers(0, 8))
        windows = np.column_stack([start, start + rng.uniform(5, 20, len(start)), rng.uniform(0, 1, len(start))])
        existence = round(float(rng.uniform()), 1) if n % 3 else None
        item = {"qid": str(n), "video_id": f"v{n % 10}", "query": f"query {n}"}
        found += [MomentPrediction(**item, windows=windows, existence=existence)] if n % 11 else []
    return build_manifest(name="small", tasks=("mr",), rows=rows), found


def plain_iou(one, other):
    overlap = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return overlap / (one[1] - one[0] + other[1] - other[0] - overlap)


def plain_pairs(windows, truth, threshold):
    free, pairs = list(truth), []
    for window in windows:
        best = max(free, key=lambda moment: plain_iou(window, moment), default=None)
        if best is not None and plain_iou(window, best) >= threshold:
            free.remove(best)
            pairs.append(plain_iou(window, best))
    return pairs


def plain_scores(manifest, predictions):
    """GMR's scores word by word, in plain Python."""
    truth = {row["qid"]: row["segments"] for row in manifest.queries.to_dict("records")}
    items = {item.qid: (item.windows.tolist(), item.existence) for item in predictions}
    scores = {q: max((w[2] for w in ws), default=0.0) if s is None else s for q, (ws, s) in items.items()}
    null, positive = ([q for q in items if bool(truth[q]) == kind] for kind in (False, True))
    ordered = [1.0 if scores[p] > scores[n] else 0.5 * (scores[p] == scores[n]) for p in positive for n in null]
    result = {"AUROC": np.mean(ordered)}
    for tau in (0.4, 0.6):
        true = sum(scores[q] <= tau for q in null)
        others = sum(scores[q] <= tau for q in positive) + sum(scores[q] > tau for q in null)
        result[f"Rej-F1@{tau}"] = 2 * true / (2 * true + others)
        result[f"Acc@{tau}"] = (true + sum(scores[q] > tau for q in positive)) / len(items)
    for k in (1, 3, 5):
        union = []
        for q, (windows, _) in items.items():
            kept = windows[:k] if scores[q] > 0.4 else []
            pairs = plain_pairs(kept, truth[q], 0.0)
            empty = not kept and not truth[q]
            union.append(1.0 if empty else sum(pairs) / (len(kept) + len(truth[q]) - len(pairs)))
        result[f"G-mIoU@{k}"] = np.mean(union)
        steps = [t / 100 for t in range(50, 100, 5)]
        recalls = [[len(plain_pairs(items[q][0][:k], truth[q], t)) / len(truth[q]) for t in steps] for q in positive]
        result[f"mR@{k}"] = np.mean(recalls)
        result[f"mIoU@{k}"] = np.mean([np.mean(plain_pairs(items[q][0][:k], truth[q], -1) or 0) for q in positive])
    firsts = [max([plain_iou(w, m) for w in items[q][0][:1] for m in truth[q]], default=0.0) for q in positive]
    result["R1@0.5"] = np.mean(np.array(firsts) >= 0.5)
    result["kept-R1@0.5"] = np.mean([f >= 0.5 and scores[q] > 0.4 for f, q in zip(firsts, positive, strict=True)])
    return result


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_a_plain_restatement_on_random_queries(seed):
    manifest, found = world(seed)
    metrics = rejection_scores(answers_of(found, manifest), manifest, GMR).metrics()
    assert_same(metrics, {name: 100 * value for name, value in plain_scores(manifest, found).items()})


def test_intervals_hold_the_score_and_draws_of_all_videos_once_give_it():
    manifest, found = world(0)
    scores = rejection_scores(answers_of(found, manifest), manifest, GMR)
    metrics, draws = scores.metrics(), scores.drawn(np.ones((2, scores.num_videos)))
    for name, (low, high) in bootstrap_intervals(scores, metrics, 0).items():
        assert low <= metrics[name] <= high and same(draws[name][1], metrics[name]), name


def test_the_report_has_the_floor_that_rejects_everything():
    manifest, found = world(1)
    report = evaluate("rejection", found, manifest, "test")
    floor, share = report["floors"]["reject_all"], np.mean([not s for s in manifest.queries["segments"]])
    assert same(floor["Rej-F1@0.4"], 200 * share / (1 + share)) and same(floor["G-mIoU@3"], 100 * share)
    assert report["task"] == "mr" and report["coverage"]["queries_predicted"] == len(found)
    with pytest.raises(InputError, match="null"):
        only_null = replace(manifest, queries=manifest.queries.assign(segments=[[]] * len(manifest.queries)))
        rejection_scores(answers_of(found, only_null), only_null, GMR)


def test_the_command_scores_files_and_writes_existence(tmp_path, monkeypatch, unloc):
    monkeypatch.chdir(tmp_path)
    manifest, found = world(2)
    save_manifest(manifest, tmp_path / "m.jsonl")
    write_moments(tmp_path / "p.jsonl", found)
    words = "eval --manifest m.jsonl --split test --predictions p.jsonl --rejection --out scores --export again.jsonl"
    code, out, errors = unloc(*words.split(), "--intervals")
    stated = sum(item.existence is not None for item in found)
    assert code == 0 and "reject_all" in out and f"{stated} state an existence score" in out, errors
    report = load(tmp_path / "scores/metrics.json")
    assert report["rejection"] and report["protocol"] == "gmr" and "AUROC" in report["intervals"]
    assert_same(report["metrics"], rejection_scores(answers_of(found, manifest), manifest, GMR).metrics())
    again = read_predictions(tmp_path / "again.jsonl", "rejection").predictions
    assert [item.existence for item in again] == [item.existence for item in found]
    code, _, errors = unloc(*words.split(), "--task", "tal")
    assert code == 2 and "--rejection" in errors


def test_a_null_query_may_have_the_qid_of_another_video(tmp_path):
    rows = [{"qid": "a", "query": "a cat", "vid": "v1", "duration": 9, "relevant_windows": [[1, 3]]}]
    rows += [rows[0] | {"vid": "v2", "relevant_windows": [[0, 0]], "saliency_scores": [[]]}]
    path = tmp_path / "charades_id_pos_neg_test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = convert("na-vmr", [path])
    assert manifest.queries["segments"].tolist() == [[[1.0, 3.0]], []] and manifest.splits == ["test"]
    hits = [{"vid": "v1", "pred_relevant_windows": [[1, 3, 0.5]], "pred_class": 0.9}]
    hits += [{"vid": "v2", "pred_relevant_windows": [[1, 3, 0.9]], "pred_class": 0.1}]
    hits = [row | {"qid": "a", "query": "a cat"} for row in hits]
    for text in ("".join(json.dumps(row) + "\n" for row in hits), json.dumps({"preds": hits}, indent=1)):
        (tmp_path / "p.jsonl").write_text(text)
        assert_same(scored([path], tmp_path / "p.jsonl", NA), {"Rejection Accuracy": 100.0, "Recall@1, IoU@0.7": 100.0})
