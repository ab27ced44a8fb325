"""`unloc eval` without a model: what it prints, writes, refuses, and what it never imports."""

import hashlib
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tests.cli.scored import AS, HD, MR, TAL, TRUTH, answer, metrics_of, write_mr, write_tal
from unloc.annotations.schema import load_manifest
from unloc.errors import InputError
from unloc.evaluation.zero_shot import nonsense_manifest


@pytest.mark.parametrize(
    ("words", "headlines"),
    [
        (f"{TAL} --predictions tal.json", ["mAP@0.50", "mAP@avg"]),
        (f"{TAL} --predictions tal.json --protocol thumos14", ["mAP@0.30", "recall@1x@0.50"]),
        (f"{TAL} --predictions tal.json --protocol opentad", ["mAP@0.95"]),
        (f"{TAL} --predictions tal.json --protocol unloc", ["mAP@0.05", "mAP_present_classes@avg"]),
        (f"{MR} --predictions mr.json", ["R1@0.5", "mIoU", "MR-full-mAP", "MR-full-R1@0.7"]),
        (f"{MR} --predictions mr.json --protocol default", ["R5@0.7"]),
        (f"{MR} --predictions mr.json --protocol 2d-tan", ["R1@0.7"]),
        (f"{HD} --predictions mr.json", ["HL-min-VeryGood-Hit1", "HL-min-Fair-mAP"]),
        (f"{AS} --predictions as.jsonl", ["frame_accuracy", "F1@50", "edit"]),
    ],
)
def test_perfect_predictions_score_100_in_metrics_json(unloc, scored, words, headlines):
    code, out, err = unloc(*words.split(), "--out", "found")
    assert (code, err) == (0, "")
    report = json.loads((scored / "found/metrics.json").read_text())
    assert [report["metrics"][name] for name in headlines] == [100.0] * len(headlines)
    assert all(f"\n{name} " in out for name in headlines if name[:3] != "MR-" or name.endswith("mAP"))
    assert set(report) >= {"task", "split", "protocol", "num_videos", "num_queries", "floors", "intervals", "coverage"}
    assert report["predictions_sha256"] == hashlib.sha256((scored / words.split()[8]).read_bytes()).hexdigest()
    assert report["external_labels"] is False and "ties: " in out and report["tie_rule"] in out
    assert all(set(floor) == set(report["metrics"]) - {"mAP", "mAP_all_classes"} for floor in report["floors"].values())


BAD_TAL = [
    ("nowhere", {"label": "Run", "score": 0.5, "segment": [0, 1]}),
    ("v1", {"label": "Swim", "score": 0.5, "segment": [0, 1]}),
    ("v1", {"label": "Run", "score": float("nan"), "segment": [0, 1]}),
    ("v2", {"label": "Run", "score": float("inf"), "segment": [0, 1]}),
    ("v2", {"label": "Run", "score": 0.1, "segment": [5, 1]}),
    ("v2", {"label": "Run", "score": 0.1}),
    ("v3",),
]


def test_bad_detections_get_one_line_a_kind_with_count_and_first_place(unloc, scored):
    write_tal(scored / "bad.json", {"v1": TRUTH["v1"], "v2": TRUTH["v2"]}, BAD_TAL)
    code, out, _ = unloc(*TAL.split(), "--predictions", "bad.json", "--out", "m.json")
    lines = [line.strip() for line in out.splitlines() if "bad predictions: " in line]
    assert code == 0 and len(lines) == len(set(lines)) == 7
    for kind, first in (
        ("1 × unreadable entry: ", "bad.json: results['v2'][3]: "),
        ("2 × NaN or infinite", "results['v1'][2]: 'Run' [0, 1] score nan)"),
        ("1 × reversed segment: ", "results['v2'][2]"),
        ("1 × unknown video: ", "results['nowhere'][0]"),
        ("1 × unknown label: ", "results['v1'][1]: 'Swim'"),
        ("1 × empty list: ", "bad.json: results['v3'])"),
        ("1 × missing video: ", "v3)"),
    ):
        assert any(kind in line and f"(first: {first}" in line for line in lines), kind
    told = json.loads((scored / "m.json").read_text())["bad_predictions"]
    assert {kind.split(":")[0]: count for kind, (count, _) in told.items()}["NaN or infinite score or time"] == 2


def test_bad_moments_get_one_line_a_kind_with_count_and_first_place(unloc, scored):
    windows = [[0, 10, float("nan")], [9, 2, 0.5], [0, 10, 0.4]]
    rows = [answer(1, pred_relevant_windows=[]), answer(1, pred_relevant_windows=windows)]
    rows += [answer(7, vid="v1", query="never asked"), answer(8, vid="v9")]
    write_mr(scored / "bad.jsonl", rows)
    with (scored / "bad.jsonl").open("a") as file:
        file.write('\n{"qid": 2, "vid": "v2", "pred_rel')
    code, out, _ = unloc(*MR.split(), "--predictions", "bad.jsonl")
    lines = [line.strip() for line in out.splitlines() if "bad predictions: " in line]
    assert code == 0 and len(lines) == 7
    for kind, first in (
        ("1 × line that is not JSON", "bad.jsonl:5"),
        ("1 × empty list: ", "bad.jsonl:1"),
        ("1 × duplicate id: ", "bad.jsonl:2"),
        ("1 × NaN or infinite", "bad.jsonl:2"),
        ("1 × reversed segment: ", "bad.jsonl:2"),
        ("2 × unknown video or query: ", "bad.jsonl:3"),
        ("1 × missing query: ", "v2: 'query 2')"),
    ):
        assert any(kind in line and f"(first: {first}" in line for line in lines), (kind, lines)


def test_strict_makes_bad_predictions_one_error_and_writes_nothing(unloc, fails, scored):
    write_tal(scored / "bad.json", TRUTH, BAD_TAL)
    line = fails(*TAL.split(), "--predictions", "bad.json", "--strict", "--out", "m.json", saying="--strict")
    assert "bad.json: " in line and "unknown label" in line and "NaN or infinite" in line
    assert not (scored / "m.json").exists()
    assert unloc(*TAL.split(), "--predictions", "tal.json", "--strict")[0] == 0


def test_line_breaks_and_surrogates_in_predictions_are_escaped_in_messages(unloc, scored):
    entry = {"label": "two\nlines \ud800", "score": 0.5, "segment": [0, 1]}
    write_tal(scored / "odd.json", TRUTH, [("v1", entry), ("no\nwhere", entry | {"label": "Run"})])
    code, out, err = unloc(*TAL.split(), "--predictions", "odd.json", "--out", "m.json", "--export", "again.json")
    assert code == 0 and err == "" and sum("bad predictions" in line for line in out.splitlines()) == 2
    assert unloc(*TAL.split(), "--predictions", "again.json", "--out", "n.json")[0] == 0
    assert metrics_of(scored / "m.json") == metrics_of(scored / "n.json")


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (f"{TAL} --predictions gone.json", "gone.json does not exist"),
        (f"{TAL} --predictions .", "is a folder"),
        (f"{TAL} --predictions mr.json", "--task tal reads ActivityNet"),
        (f"{MR} --predictions tal.json", "--task mr reads QVHighlights"),
        (f"{TAL} --predictions tal.json --protocol coco", "'coco' for tal"),
        (f"{TAL} --predictions tal.json --train-split tran", "it has: train, test"),
        (f"{TAL} --predictions tal.json --export x.zip", ".json or .csv"),
        (f"{TAL} --predictions tal.json --export tal.json", "is an input"),
        (f"{TAL} --predictions tal.json --vocabulary k.txt", "belong to --zero-shot"),
        (f"{TAL} --predictions tal.json --zero-shot nowhere", "folder nowhere"),
        (f"{MR} --predictions mr.json --zero-shot lists", "--predictions of --task tal"),
        (f"{TAL} --floors-only --analyse", "--analyse needs"),
        (f"{TAL} --predictions tal.json --floors-only", "give one of"),
        ("eval --manifest tal.jsonl --task mr --split test --predictions mr.json", "no queries"),
        ("eval --manifest mr.jsonl --task as --split val --predictions as.jsonl", "no labelled segments"),
        ("eval --manifest mr.jsonl --split val --predictions mr.json", "--task is needed"),
        ("eval --manifest mr.jsonl --split val --task xy --predictions mr.json", "unknown task 'xy'"),
        (f"{TAL} --predictions tal.json --out tal.jsonl/sub", "check the path"),
    ],
)
def test_errors_are_one_line_and_code_2(fails, scored, words, saying):
    fails(*words.split(), saying=saying)


def test_exported_files_score_the_same(unloc, scored):
    cases = [(TAL, "tal.json", ("a.json", "a.csv")), (MR, "mr.json", ("b.jsonl", "b.zip", "b.csv"))]
    cases += [
        (HD, "mr.json", ("c.zip",)),
        (AS, "as.jsonl", ("d.jsonl",)),
    ]
    for words, file, names in cases:
        for name in names:
            assert unloc(*words.split(), "--predictions", file, "--export", name, "--out", "m.json")[0] == 0
            assert unloc(*words.split(), "--predictions", name, "--out", "n.json")[0] == 0
            assert metrics_of(scored / "m.json") == metrics_of(scored / "n.json")
    assert zipfile.ZipFile("c.zip").namelist() == ["hl_val_submission.jsonl"]
    assert "in a zip (hl_val_submission.jsonl)" in unloc(*MR.split(), "--predictions", "c.zip")[1]


def test_missing_videos_are_named_and_the_others_scored_separately(unloc, scored):
    write_tal(scored / "part.json", {"v1": TRUTH["v1"], "v2": TRUTH["v2"]})
    _, out, _ = unloc(*TAL.split(), "--predictions", "part.json", "--out", "m.json")
    report = json.loads((scored / "m.json").read_text())
    covered = report["coverage"]
    assert (covered["videos_annotated"], covered["videos_predicted"], covered["missing"]) == (3, 2, ["v3"])
    assert report["metrics"]["mAP@avg"] == 75.0 and covered["metrics_without_missing"]["mAP@avg"] == 100.0
    assert "2 of 3 annotated videos" in out and "answered" in out


def test_intervals_hold_the_score_and_are_the_same_with_the_same_seed(unloc, scored):
    write_tal(scored / "part.json", {"v1": TRUTH["v1"], "v2": TRUTH["v2"]})
    runs = []
    for seed in (0, 0, 1):
        unloc(*TAL.split(), "--predictions", "part.json", "--intervals", "--seed", seed, "--out", "m.json")
        report = json.loads((scored / "m.json").read_text())
        low, high = report["intervals"]["mAP@avg"]
        assert low <= report["metrics"]["mAP@avg"] <= high and low < high
        runs.append(report["intervals"])
    assert runs[0] == runs[1]
    code, out, _ = unloc(*MR.split(), "--predictions", "mr.json", "--intervals")
    assert code == 0 and "95 % of draws" in out


def test_external_labels_are_stated_by_the_file_or_the_command_or_nowhere(unloc, scored):
    ours = ["--external-labels"]
    said = [(True, [], True, "by the file"), (True, ours, True, "by the file"), (False, ours, True, "by the command")]
    said += [(False, [], False, "by the file"), (None, ours, True, "by the command"), (None, [], False, "nowhere")]
    for used, options, expected, stated in said:
        content = json.loads((scored / "tal.json").read_text()) | {"external_data": {"used": used}}
        (scored / "ext.json").write_text(json.dumps(content))
        _, out, _ = unloc(*TAL.split(), "--predictions", "ext.json", "--out", "m.json", *options)
        report = json.loads((scored / "m.json").read_text())
        assert report["external_labels"] is expected and report["external_labels_stated"] == stated
        assert f"external labels: {'used' if expected else 'none'}, stated {stated}" in out


def test_floors_alone_need_no_predictions(unloc, scored):
    for words in (TAL, MR, HD, AS):
        code, out, _ = unloc(*words.split(), "--floors-only", "--out", "m.json")
        report = json.loads((scored / "m.json").read_text())
        assert code == 0 and report["floors"] and "metrics" not in report
        assert all(name in out for name in report["floors"])


def test_the_analysis_is_in_metrics_json_and_its_plots_are_next_to_it(unloc, scored):
    code, out, _ = unloc(*TAL.split(), "--predictions", "tal.json", "--analyse", "--out", "a")
    analysis = json.loads((scored / "a/metrics.json").read_text())["analysis"]
    assert code == 0 and analysis["counts"]["true"] == 3 and "poor boundary" in out
    assert len(analysis["plots"]) == 3 and all((scored / "a" / name).is_file() for name in analysis["plots"])
    for words, file in ((MR, "mr.json"), (AS, "as.jsonl")):
        code, out, _ = unloc(*words.split(), "--predictions", file, "--analyse")
        assert code == 0 and "poor boundary" in out and "share of video" in out


def test_zero_shot_scores_one_file_or_a_file_a_split(unloc, scored):
    code, out, _ = unloc(*TAL.split(), "--predictions", "tal.json", "--zero-shot", "lists", "--out", "m.json")
    report = json.loads((scored / "m.json").read_text())
    share = report["zero_shot"]["1_seen_1_unseen"]
    assert code == 0 and share["mean"]["mAP@avg"] == 100.0 and share["std"]["mAP@avg"] == 0.0
    assert report["metrics"]["mAP@avg"] == 100.0 and "over 2 splits" in out
    _, jump = nonsense_manifest(load_manifest(scored / "tal.jsonl")).classes
    write_tal(scored / "preds/split_0.json", {"v2": TRUTH["v2"]})
    write_tal(scored / "preds/split_1/predictions.json", {"v1": TRUTH["v1"]})
    write_tal(scored / "control.json", {"v2": (jump, 0, 50)})
    (scored / "k.txt").write_text("jump\nswim\n")
    words = "--predictions preds --zero-shot lists --vocabulary k.txt --control control.json --out m.json"
    code, out, err = unloc(*TAL.split(), *words.split())
    report = json.loads((scored / "m.json").read_text())
    share = report["zero_shot"]["1_seen_1_unseen"]
    assert (code, err) == (0, "") and report["metrics"]["mAP@avg"] == share["mean"]["mAP@avg"] == 75.0
    assert share["nonsense_control"]["mean"]["mAP@avg"] == 50.0 and share["std"]["mAP@avg"] == 25.0
    assert share["unseen_names_in_vocabulary"]["k"]["same"] == {"Jump": ["jump"]}
    assert "in k: 1 unseen names" in out and "leaks: no class" in out
    (scored / "preds/split_0.json").unlink()
    assert "class split 'split_0'" in unloc(*TAL.split(), *words.split())[2]


def test_scoring_a_file_imports_no_torch(scored):
    words = [*TAL.split(), "--predictions", "tal.json", "--analyse", "--intervals", "--out", "a"]
    code = (
        f"import sys; sys.argv = ['unloc', *{words!r}]\n"
        "from unloc.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "import unloc.evaluation\n"
        "print(sorted({'torch', 'ray', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout


def test_class_scores_give_map_in_addition_to_accuracy(unloc, scored):
    rows, scores = [], {}
    for line in (scored / "as.jsonl").read_text().splitlines():
        row = json.loads(line)
        scores[row["video_id"]] = np.array(
            [[name == "Run", name == "Jump"] for name in row["labels"]], dtype=np.float32
        )
        rows.append(row | {"scores_file": "s.npz"})
    np.savez(scored / "s.npz", **scores)
    (scored / "scored.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = AS.split()
    code, out, _ = unloc(*words, "--predictions", "scored.jsonl", "--out", "m.json", "--intervals")
    assert code == 0 and metrics_of(scored / "m.json")["mAP"] == 100.0 and "bad predictions" not in out
    report = json.loads((scored / "m.json").read_text())
    assert report["scores_sha256"] == {"s.npz": hashlib.sha256((scored / "s.npz").read_bytes()).hexdigest()}
    assert report["per_class"] == {"Run": {"AP": 100.0}, "Jump": {"AP": 100.0}}
    np.savez(scored / "s.npz", **{video: table[:, :1] for video, table in scores.items()})
    assert "one column per class" in unloc(*words, "--predictions", "scored.jsonl")[2]


def test_a_run_is_asked_for_the_classes_of_the_manifest(scored):
    from unloc.config import ModelConfig, Recipe
    from unloc.inference.evaluate_run import model_for_classes
    from unloc.inference.load import CheckpointInfo, LoadedModel

    def trained(**model):
        recipe = Recipe(task="tal", model=ModelConfig(**model))
        info = CheckpointInfo(recipe=recipe, classes=("Run",), frame_dim=4, text_dim=4, fingerprint={}, step=1)
        return LoadedModel(None, info)

    asked = model_for_classes(trained(), ("Swim", "Row"))
    assert asked.info.classes == ("Swim", "Row") and asked.info.recipe is not None
    assert model_for_classes(trained(), ("Run",)).info.classes == ("Run",)
    with pytest.raises(InputError, match="2 other classes"):
        model_for_classes(trained(fusion="none"), ("Swim", "Row"))
