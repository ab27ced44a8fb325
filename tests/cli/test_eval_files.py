"""`unloc eval --predictions`: what does not match is refused with a hint, and no file of others is overwritten."""

import hashlib
import json

import pytest

from tests.cli.scored import AS, HD, MR, TAL, TRUTH, answer, metrics_of, write_mr, write_tal


def shifted(change):
    """The true detections with changed ids, labels and times."""
    return dict(change(video, label, start, end) for video, (label, start, end) in TRUTH.items())


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        (shifted(lambda v, c, a, b: (f"v_{v}", (c, a, b))), "after removing v_"),
        (
            shifted(lambda v, c, a, b: (f"{v}.mp4", (c, a, b))),
            "the file ending",
        ),
        (shifted(lambda v, c, a, b: (v, (c.upper(), a, b))), "class names match"),
        (shifted(lambda v, c, a, b: (v, (c, a / 100, b / 100))), "look like fractions"),
        (shifted(lambda v, c, a, b: (v, (c, a * 25 + 300, b * 25 + 300))), "look like frames"),
        (shifted(lambda v, c, a, b: (v, (c, a * 1000, b * 1000))), "look like milliseconds"),
        ({"t1": ("Run", 0, 50)}, "videos of split train"),
        ({"x": ("Run", 0, 50)}, "1 video ids (first 'x')"),
        ({"v1": ("Run", 50, 60), "v3": ("Run", 0, 5)}, "no prediction reaches"),
        ({}, "no predictions in it"),
    ],
)
def test_if_no_prediction_matches_the_error_has_a_hint(fails, scored, found, hint):
    write_tal(scored / "p.json", found)
    words = (*TAL.split(), "--predictions", "p.json", "--out", "m.json")
    assert hint in fails(*words, saying="p.json: nothing matches")
    assert not (scored / "m.json").exists()


@pytest.mark.parametrize(
    ("words", "change", "hint"),
    [
        (MR, {"vid": "v_v1", "qid": "a"}, "after removing v_"),
        (MR, {"query": "QUERY 1", "qid": "a"}, "queries match"),
        (MR, {"pred_relevant_windows": [[0, 0.5, 0.9]]}, "look like fractions"),
        (MR, {"pred_relevant_windows": [[250, 500, 0.9]]}, "look like frames"),
        (MR, {"pred_relevant_windows": []}, "predictions has windows"),
        (HD, {"pred_relevant_windows": [], "pred_saliency_scores": None}, "windows or saliency"),
        (HD, {"pred_relevant_windows": [], "pred_saliency_scores": None, "vid": "x", "qid": "a"}, "none of the 1"),
    ],
)
def test_if_no_moment_matches_the_error_has_a_hint(fails, scored, words, change, hint):
    write_mr(scored / "p.jsonl", [answer(1, **change)])
    assert hint in fails(*words.split(), "--predictions", "p.jsonl", saying="nothing matches")


def test_frames_with_other_class_names_are_an_error_with_a_hint(fails, scored):
    (scored / "p.jsonl").write_text((scored / "as.jsonl").read_text().replace("Run", "run").replace("Jump", "JUMP"))
    fails(*AS.split(), "--predictions", "p.jsonl", saying="class names match")


def test_partial_matches_are_scored_and_another_unit_is_reported(unloc, scored):
    write_tal(scored / "p.json", {"v1": TRUTH["v1"], "v2": ("Jump", 0, 5000), "v3": ("Run", 3000, 9000)})
    code, out, _ = unloc(*TAL.split(), "--predictions", "p.json", "--out", "m.json")
    told = json.loads((scored / "m.json").read_text())["bad_predictions"]
    assert code == 0 and metrics_of(scored / "m.json")["mAP@0.50"] > 0 and "segments look like" in out
    assert [count for kind, (count, _) in told.items() if "segments look like" in kind] == [3]


def test_misspelled_keys_and_missing_saliency_are_counted(unloc, scored):
    rows = [answer(1), answer(2)]
    rows[1]["pred_saliency_score"] = rows[1].pop("pred_saliency_scores")
    write_mr(scored / "p.jsonl", rows)
    code, out, _ = unloc(*HD.split(), "--predictions", "p.jsonl")
    assert code == 0 and "1 × key 'pred_saliency_score' looks like" in out
    assert "1 × no pred_saliency_scores" in out
    assert "bad predictions" not in unloc(*MR.split(), "--predictions", "p.jsonl")[1]  # which scores no saliency


def test_metrics_json_states_its_inputs(unloc, scored):
    write_tal(scored / "p.json", {"v1": TRUTH["v1"], "v2": ("Jump", 0, 40)})
    assert unloc(*TAL.split(), "--predictions", "p.json", "--out", "m.json")[0] == 0
    report = json.loads((scored / "m.json").read_text())
    for key, name in (("annotations_sha256", "tal.jsonl"), ("predictions_sha256", "p.json")):
        assert report[key] == hashlib.sha256((scored / name).read_bytes()).hexdigest()
    assert set(report["versions"]) >= {"unloc", "python", "numpy", "pandas"}
    by_class = report["per_class"]
    assert by_class["Run"] == dict.fromkeys(by_class["Run"], 50.0) and by_class["Jump"]["AP@0.80"] == 100.0
    for name, value in report["metrics"].items():
        assert value == pytest.approx(sum(row[name[1:]] for row in by_class.values()) / len(by_class))
    assert unloc(*MR.split(), "--predictions", "mr.json", "--out", "n.json")[0] == 0
    assert json.loads((scored / "n.json").read_text())["per_class"] == {}


@pytest.mark.parametrize("option", ["--out", "--export"])
@pytest.mark.parametrize("target", ["tal.jsonl", "lists.txt", "notes.json", "linked.json"])
def test_inputs_and_foreign_files_are_not_overwritten(fails, scored, option, target):
    (scored / "lists.txt").write_text("v3\n")
    (scored / "notes.json").write_text('{"task": "tal", "metrics": {}}')
    (scored / "linked.json").symlink_to("tal.json")
    before = {path.name: path.read_bytes() for path in scored.iterdir() if path.is_file()}
    if option == "--export" and not target.endswith(".json"):
        (scored / f"{target}.json").hardlink_to(scored / target)
        target = f"{target}.json"
    elif option == "--out" and not target.endswith(".json"):
        (scored / "taken").mkdir()
        (scored / "taken" / "metrics.json").symlink_to(scored / target)
        target = "taken"
    words = ("--predictions", "tal.json", "--without", "lists.txt", option, target)
    fails(*TAL.split(), *words, saying="name another file")
    assert before == {name: (scored / name).read_bytes() for name in before}


def test_an_evaluation_replaces_files_of_earlier_evaluations_unless_they_were_changed(unloc, scored):
    words = (*TAL.split(), "--predictions", "tal.json", "--out", "found", "--export", "again.json")
    assert [unloc(*words)[0] for _ in range(2)] == [0, 0]
    assert "is another output" in unloc(*words[:-1], "found/metrics.json")[2]
    assert "is an input" in unloc(*TAL.split(), "--predictions", "again.json", "--export", "again.json")[2]
    assert "is a record of eval" in unloc(*words[:-1], ".unloc-eval.json")[2]
    changed = (scored / "again.json").read_text() + " "
    (scored / "again.json").write_text(changed)
    code, _, err = unloc(*words)
    assert code == 2 and "did not write it" in err and (scored / "again.json").read_text() == changed


def test_zero_shot_states_labels_format_and_hash_as_any_evaluation(unloc, scored):
    content = json.loads((scored / "tal.json").read_text()) | {"external_data": {"used": True}}
    (scored / "used.json").write_text(json.dumps(content))
    words = (*TAL.split(), "--predictions", "used.json", "--out", "m.json")
    stated = []
    for more in ((), ("--zero-shot", "lists")):
        code, out, _ = unloc(*words, *more)
        report = json.loads((scored / "m.json").read_text())
        assert code == 0 and report["external_labels"] is True and "external labels: used, stated by the file" in out
        stated.append({key: report[key] for key in ("predictions_sha256", "predictions_format")})
    assert stated[0] == stated[1]
    for number, video in enumerate(("v2", "v1")):
        write_tal(scored / f"preds/split_{number}.json", {video: TRUTH[video]})
    assert unloc(*words[:-3], "preds", "--zero-shot", "lists", "--out", "m.json")[0] == 0
    report = json.loads((scored / "m.json").read_text())
    assert report["external_labels_stated"] == "by the file" and len(report["predictions_sha256"]) == 2


@pytest.mark.parametrize(
    "content", ["v_v3\n", '["v3"]', '{"v3": {"reason": "gone"}}', '{"testing": ["v3"], "none": []}']
)
def test_listed_videos_leave_annotations_and_predictions(unloc, scored, content):
    (scored / ("l.txt" if content[0] == "v" else "l.json")).write_text(content)
    write_tal(scored / "p.json", TRUTH | {"v3": ("Run", 0, 1)})
    scores = {}
    for option in ("--without", "--only"):
        code, out, _ = unloc(*TAL.split(), "--predictions", "p.json", option, *scored.glob("l.*"), "--out", "m.json")
        report = json.loads((scored / "m.json").read_text()) if code == 0 else {}
        scores[option] = report.get("metrics", {}).get("mAP@0.50")
        if code == 0:
            assert report["num_videos"] == 2 and "unknown video" not in out and report["video_lists"]
    assert scores == {"--without": 100.0, "--only": None}  # nothing is found in v3


@pytest.mark.parametrize(
    ("lists", "num_videos", "expected"),
    [
        (lambda real: ([], [real / "video_info_new.csv"]), 4728, 35.15413690660169),
        pytest.param(
            lambda real: ([real / "blocked_api_a2net.json"], []), 4680, 35.17429277060223, marks=pytest.mark.slow
        ),
    ],
)
def test_blocked_videos_leave_both_sides_as_in_the_official_code(shared, tmp_path, lists, num_videos, expected):
    from unloc.annotations.converters import convert
    from unloc.annotations.schema import save_manifest
    from unloc.evaluation.job import Evaluation, evaluate_file

    real, manifest = shared / "annotations" / "activitynet_1.3", tmp_path / "activitynet.jsonl"
    save_manifest(convert("activitynet", [real / "activity_net.v1-3.rebuilt.json"], "validation"), manifest)
    without, only = lists(real)
    evaluation = Evaluation(manifest_path=manifest, split="validation", task="tal", without=without, only=only)
    perf = shared / "golden" / "metrics" / "perf" / "activitynet13_val_4926x100_predictions.json.gz"
    report = evaluate_file(evaluation, perf)
    assert report["num_videos"] == num_videos and report["metrics"]["mAP@avg"] == pytest.approx(expected, abs=1e-9)
