"""`unloc eval` without a model: what it prints, writes, refuses, and what it never imports."""

import hashlib
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest, load_manifest, save_manifest
from unloc.annotations.subsets import nonsense_manifest
from unloc.errors import InputError

TAL = "eval --manifest tal.jsonl --task tal --split test"
MR = "eval --manifest mr.jsonl --task mr --split val"
TRUTH = {"v1": ("Run", 10, 20), "v2": ("Jump", 0, 50), "v3": ("Run", 30, 90)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Manifests for three tasks, perfect predictions for each, and class lists."""
    monkeypatch.chdir(tmp_path)
    rows = [VideoRow("t1", "train", 100.0), InstanceRow("t1", "train", "Run", [0, 50])]
    rows += [VideoRow(video, "test", 100.0) for video in TRUTH]
    rows += [InstanceRow(video, "test", label, segment) for video, (label, *segment) in TRUTH.items()]
    classes = ("Run", "Jump")
    save_manifest(build_manifest(name="small", tasks=("tal", "as"), rows=rows, classes=classes), tmp_path / "tal.jsonl")
    write_tal(tmp_path / "tal.json", TRUTH)
    ratings = [[4, 4, 4]] * 5  # a rater without any good clip scores 0 officially
    rows = [row for n in (1, 2) for row in (VideoRow(f"v{n}", "val", 20.0), VideoRow(f"w{n}", "train", 20.0))]
    for n in (1, 2):
        for video, split in ((f"v{n}", "val"), (f"w{n}", "train")):
            rows.append(QueryRow(video, split, f"{n}", f"query {n}", [[0, 10]], [0, 1, 2, 3, 4], ratings))
    save_manifest(build_manifest(name="rated", tasks=("mr", "hd"), rows=rows), tmp_path / "mr.jsonl")
    write_mr(tmp_path / "mr.json", [answer(1), answer(2)])
    frames = [{"video_id": v, "fps": 2, "labels": painted(*item)} for v, item in TRUTH.items()]
    (tmp_path / "as.jsonl").write_text("\n".join(map(json.dumps, frames)))
    for side, names in (("train", ("Run", "Jump")), ("test", ("Jump", "Run"))):
        (tmp_path / "lists" / side).mkdir(parents=True)
        for number, name in enumerate(names):
            (tmp_path / "lists" / side / f"split_{number}.list").write_text(f"{name}\n")
    return tmp_path


def painted(label, start, end):
    return [label if start <= frame / 2 < end else None for frame in range(200)]


def answer(number, **changes):
    windows, saliency = [[0, 10, 0.9], [10, 20, 0.1]], [1.0] * 5 + [0.0] * 5
    row = {"qid": number, "query": f"query {number}", "vid": f"v{number}"}
    return row | {"pred_relevant_windows": windows, "pred_saliency_scores": saliency} | changes


def write_mr(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def write_tal(path, found, extra=()):
    results = {v: [{"label": label, "score": 0.9, "segment": [a, b]}] for v, (label, a, b) in found.items()}
    for video, *rest in extra:
        results.setdefault(video, []).extend(rest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {"used": False}}))


def metrics_of(path):
    return json.loads(path.read_text())["metrics"]


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
        (f"{MR.replace('mr --', 'hd --')} --predictions mr.json", ["HL-min-VeryGood-Hit1", "HL-min-Fair-mAP"]),
        (f"{TAL.replace('tal --', 'as --')} --predictions as.jsonl", ["frame_accuracy", "F1@50", "edit"]),
    ],
)
def test_perfect_predictions_score_100_in_metrics_json(unloc, folder, words, headlines):
    code, out, err = unloc(*words.split(), "--out", "found")
    assert (code, err) == (0, "")
    report = json.loads((folder / "found/metrics.json").read_text())
    assert [report["metrics"][name] for name in headlines] == [100.0] * len(headlines)
    assert all(f"\n{name} " in out for name in headlines if name[:3] != "MR-" or name.endswith("mAP"))
    assert set(report) >= {"task", "split", "protocol", "num_videos", "num_queries", "floors", "intervals", "coverage"}
    assert report["predictions_sha256"] == hashlib.sha256((folder / words.split()[8]).read_bytes()).hexdigest()
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


def test_bad_detections_get_one_line_a_kind_with_count_and_first_place(unloc, folder):
    write_tal(folder / "bad.json", {"v1": TRUTH["v1"], "v2": TRUTH["v2"]}, BAD_TAL)
    code, out, _ = unloc(*TAL.split(), "--predictions", "bad.json", "--out", "m.json")
    lines = [line.strip() for line in out.splitlines() if "bad predictions: " in line]
    assert code == 0 and len(lines) == len(set(lines)) == 7
    for words in (
        "1 × unreadable entry: left out (first: bad.json: results['v2'][3]: expected a label, a score and a segment",
        "2 × NaN or infinite score or time: left out (first: results['v1'][2]: 'Run' [0, 1] score nan)",
        "1 × reversed segment: scored as it stands (first: results['v2'][2]",
        "1 × unknown video: its detections count as wrong (first: results['nowhere'][0]",
        "1 × unknown label: left out (first: results['v1'][1]: 'Swim'",
        "1 × empty list: nothing predicted (first: bad.json: results['v3'])",
        "1 × missing video: counts as missed (first: v3)",
    ):
        assert any(words in line for line in lines), words
    told = json.loads((folder / "m.json").read_text())["bad_predictions"]
    assert {kind.split(":")[0]: count for kind, (count, _) in told.items()}["NaN or infinite score or time"] == 2


def test_bad_moments_get_one_line_a_kind_with_count_and_first_place(unloc, folder):
    windows = [[0, 10, float("nan")], [9, 2, 0.5], [0, 10, 0.4]]
    rows = [answer(1, pred_relevant_windows=[]), answer(1, pred_relevant_windows=windows)]
    rows += [answer(7, vid="v1", query="never asked"), answer(8, vid="v9")]
    write_mr(folder / "bad.jsonl", rows)
    with (folder / "bad.jsonl").open("a") as file:
        file.write('\n{"qid": 2, "vid": "v2", "pred_rel')
    code, out, _ = unloc(*MR.split(), "--predictions", "bad.jsonl")
    lines = [line.strip() for line in out.splitlines() if "bad predictions: " in line]
    assert code == 0 and len(lines) == 7
    for words in (
        "1 × line that is not JSON (cut off?): left out (first: bad.jsonl:5",
        "1 × empty list: nothing predicted (first: bad.jsonl:1",
        "1 × duplicate id: of several predictions the last counts (first: bad.jsonl:2",
        "1 × NaN or infinite score or time: left out (first: bad.jsonl:2",
        "1 × reversed segment: scored as it stands (first: bad.jsonl:2",
        "2 × unknown video or query: left out (first: bad.jsonl:3",
        "1 × missing query: counts as missed (first: v2: 'query 2')",
    ):
        assert any(words in line for line in lines), (words, lines)


def test_strict_makes_bad_predictions_one_error_and_writes_nothing(unloc, folder):
    write_tal(folder / "bad.json", TRUTH, BAD_TAL)
    code, _, err = unloc(*TAL.split(), "--predictions", "bad.json", "--strict", "--out", "m.json")
    assert code == 2 and err.startswith("error: bad.json: bad predictions (--strict): ") and err.count("\n") == 1
    assert "unknown label" in err and "NaN or infinite" in err and not (folder / "m.json").exists()
    assert unloc(*TAL.split(), "--predictions", "tal.json", "--strict")[0] == 0


def test_line_breaks_and_surrogates_in_predictions_are_escaped_in_messages(unloc, folder):
    entry = {"label": "two\nlines \ud800", "score": 0.5, "segment": [0, 1]}
    write_tal(folder / "odd.json", TRUTH, [("v1", entry), ("no\nwhere", entry | {"label": "Run"})])
    code, out, err = unloc(*TAL.split(), "--predictions", "odd.json", "--out", "m.json", "--export", "again.json")
    assert code == 0 and err == "" and sum("bad predictions" in line for line in out.splitlines()) == 2
    assert unloc(*TAL.split(), "--predictions", "again.json", "--out", "n.json")[0] == 0
    assert metrics_of(folder / "m.json") == metrics_of(folder / "n.json")


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (f"{TAL} --predictions gone.json", "gone.json does not exist"),
        (f"{TAL} --predictions .", "is a folder"),
        (f"{TAL} --predictions mr.json", "holds QVHighlights JSON lines; --task tal reads ActivityNet JSON"),
        (f"{MR} --predictions tal.json", "holds ActivityNet JSON; --task mr reads QVHighlights JSON lines"),
        (f"{TAL} --predictions tal.json --protocol coco", "'coco' for tal, expected one of activitynet, thumos14"),
        (f"{TAL} --predictions tal.json --train-split tran", "it has: train, test"),
        (f"{TAL} --predictions tal.json --export x.zip", "predictions of tal are written as .json or .csv"),
        (f"{TAL} --predictions tal.json --export tal.json", "is an input of this evaluation"),
        (f"{TAL} --predictions tal.json --vocabulary k.txt", "belong to --zero-shot"),
        (f"{TAL} --predictions tal.json --zero-shot nowhere", "folder nowhere does not exist"),
        (f"{MR} --predictions mr.json --zero-shot lists", "scores --predictions of --task tal"),
        (f"{TAL} --floors-only --analyse", "--analyse needs"),
        (f"{TAL} --predictions tal.json --floors-only", "give one of"),
        ("eval --manifest tal.jsonl --task mr --split test --predictions mr.json", "no queries with segments"),
        ("eval --manifest mr.jsonl --task as --split val --predictions as.jsonl", "no labelled segments"),
        ("eval --manifest mr.jsonl --split val --predictions mr.json", "--task is needed"),
        ("eval --manifest mr.jsonl --split val --task xy --predictions mr.json", "unknown task 'xy'"),
        (f"{TAL} --predictions tal.json --out tal.jsonl/sub", "cannot be written"),
    ],
)
def test_errors_are_one_line_and_code_2(unloc, folder, words, saying):
    code, _, err = unloc(*words.split())
    assert code == 2 and saying in err and err.startswith("error: ") and err.count("\n") == 1


def test_exported_files_score_the_same(unloc, folder):
    cases = [(TAL, "tal.json", ("a.json", "a.csv")), (MR, "mr.json", ("b.jsonl", "b.zip", "b.csv"))]
    cases += [
        (MR.replace("mr --", "hd --"), "mr.json", ("c.zip",)),
        (TAL.replace("tal --", "as --"), "as.jsonl", ("d.jsonl",)),
    ]
    for words, file, names in cases:
        for name in names:
            assert unloc(*words.split(), "--predictions", file, "--export", name, "--out", "m.json")[0] == 0
            assert unloc(*words.split(), "--predictions", name, "--out", "n.json")[0] == 0
            assert metrics_of(folder / "m.json") == metrics_of(folder / "n.json")
    assert zipfile.ZipFile("c.zip").namelist() == ["hl_val_submission.jsonl"]
    assert (
        "c.zip: QVHighlights JSON lines in a zip (hl_val_submission.jsonl)"
        in unloc(*MR.split(), "--predictions", "c.zip")[1]
    )


def test_missing_videos_are_named_and_the_others_scored_separately(unloc, folder):
    write_tal(folder / "part.json", {"v1": TRUTH["v1"], "v2": TRUTH["v2"]})
    _, out, _ = unloc(*TAL.split(), "--predictions", "part.json", "--out", "m.json")
    report = json.loads((folder / "m.json").read_text())
    covered = report["coverage"]
    assert (covered["videos_annotated"], covered["videos_predicted"], covered["missing"]) == (3, 2, ["v3"])
    assert report["metrics"]["mAP@avg"] == 75.0 and covered["metrics_without_missing"]["mAP@avg"] == 100.0
    assert "2 of 3 annotated videos have predictions" in out and "answered" in out


def test_intervals_hold_the_score_and_are_the_same_with_the_same_seed(unloc, folder):
    write_tal(folder / "part.json", {"v1": TRUTH["v1"], "v2": TRUTH["v2"]})
    runs = []
    for seed in (0, 0, 1):
        unloc(*TAL.split(), "--predictions", "part.json", "--intervals", "--seed", seed, "--out", "m.json")
        report = json.loads((folder / "m.json").read_text())
        low, high = report["intervals"]["mAP@avg"]
        assert low <= report["metrics"]["mAP@avg"] <= high and low < high
        runs.append(report["intervals"])
    assert runs[0] == runs[1]
    code, out, _ = unloc(*MR.split(), "--predictions", "mr.json", "--intervals")
    assert code == 0 and "95 % of draws" in out


def test_external_labels_are_stated_by_the_file_or_the_command_or_nowhere(unloc, folder):
    ours = ["--external-labels"]
    said = [(True, [], True, "by the file"), (True, ours, True, "by the file"), (False, ours, True, "by the command")]
    said += [(False, [], False, "by the file"), (None, ours, True, "by the command"), (None, [], False, "nowhere")]
    for used, options, expected, stated in said:
        content = json.loads((folder / "tal.json").read_text()) | {"external_data": {"used": used}}
        (folder / "ext.json").write_text(json.dumps(content))
        _, out, _ = unloc(*TAL.split(), "--predictions", "ext.json", "--out", "m.json", *options)
        report = json.loads((folder / "m.json").read_text())
        assert report["external_labels"] is expected and report["external_labels_stated"] == stated
        assert f"external labels: {'used' if expected else 'none'}, stated {stated}" in out


def test_floors_alone_need_no_predictions(unloc, folder):
    for words in (TAL, MR, MR.replace("mr --", "hd --"), TAL.replace("tal --", "as --")):
        code, out, _ = unloc(*words.split(), "--floors-only", "--out", "m.json")
        report = json.loads((folder / "m.json").read_text())
        assert code == 0 and report["floors"] and "metrics" not in report
        assert all(name in out for name in report["floors"])


def test_the_analysis_is_in_metrics_json_and_its_plots_are_next_to_it(unloc, folder):
    code, out, _ = unloc(*TAL.split(), "--predictions", "tal.json", "--analyse", "--out", "a")
    analysis = json.loads((folder / "a/metrics.json").read_text())["analysis"]
    assert code == 0 and analysis["counts"]["true"] == 3 and "poor boundary" in out
    assert len(analysis["plots"]) == 3 and all((folder / "a" / name).is_file() for name in analysis["plots"])
    for words, file in ((MR, "mr.json"), (TAL.replace("tal --", "as --"), "as.jsonl")):
        code, out, _ = unloc(*words.split(), "--predictions", file, "--analyse")
        assert code == 0 and "poor boundary" in out and "recall by share of video" in out


def test_zero_shot_scores_one_file_or_a_file_a_split(unloc, folder):
    code, out, _ = unloc(*TAL.split(), "--predictions", "tal.json", "--zero-shot", "lists", "--out", "m.json")
    report = json.loads((folder / "m.json").read_text())
    share = report["zero_shot"]["1_seen_1_unseen"]
    assert code == 0 and share["mean"]["mAP@avg"] == 100.0 and share["std"]["mAP@avg"] == 0.0
    assert report["metrics"]["mAP@avg"] == 100.0 and "standard deviation over 2 splits" in out
    _, jump = nonsense_manifest(load_manifest(folder / "tal.jsonl")).classes
    write_tal(folder / "preds/split_0.json", {"v2": TRUTH["v2"]})
    write_tal(folder / "preds/split_1/predictions.json", {"v1": TRUTH["v1"]})
    write_tal(folder / "control.json", {"v2": (jump, 0, 50)})
    (folder / "k.txt").write_text("jump\nswim\n")
    words = "--predictions preds --zero-shot lists --vocabulary k.txt --control control.json --out m.json"
    code, out, err = unloc(*TAL.split(), *words.split())
    report = json.loads((folder / "m.json").read_text())
    share = report["zero_shot"]["1_seen_1_unseen"]
    assert (code, err) == (0, "") and report["metrics"]["mAP@avg"] == share["mean"]["mAP@avg"] == 75.0
    assert share["nonsense_control"]["mean"]["mAP@avg"] == 50.0 and share["std"]["mAP@avg"] == 25.0
    assert share["unseen_names_in_vocabulary"]["k"]["same"] == {"Jump": ["jump"]}
    assert "in k: 1 unseen names" in out and "leaks: no class" in out
    (folder / "preds/split_0.json").unlink()
    assert "no predictions for class split 'split_0'" in unloc(*TAL.split(), *words.split())[2]


def test_scoring_a_file_imports_no_torch(folder):
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


def test_class_scores_give_map_in_addition_to_accuracy(unloc, folder):
    rows, scores = [], {}
    for line in (folder / "as.jsonl").read_text().splitlines():
        row = json.loads(line)
        scores[row["video_id"]] = np.array(
            [[name == "Run", name == "Jump"] for name in row["labels"]], dtype=np.float32
        )
        rows.append(row | {"scores_file": "s.npz"})
    np.savez(folder / "s.npz", **scores)
    (folder / "scored.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = TAL.replace("tal --", "as --").split()
    code, out, _ = unloc(*words, "--predictions", "scored.jsonl", "--out", "m.json", "--intervals")
    assert code == 0 and metrics_of(folder / "m.json")["mAP"] == 100.0 and "bad predictions" not in out
    report = json.loads((folder / "m.json").read_text())
    assert report["scores_sha256"] == {"s.npz": hashlib.sha256((folder / "s.npz").read_bytes()).hexdigest()}
    assert report["per_class"] == {"Run": {"AP": 100.0}, "Jump": {"AP": 100.0}}
    np.savez(folder / "s.npz", **{video: table[:, :1] for video, table in scores.items()})
    assert "one column per class" in unloc(*words, "--predictions", "scored.jsonl")[2]


def test_a_run_is_asked_for_the_classes_of_the_manifest(folder):
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
    with pytest.raises(InputError, match="2 other classes than the 1 trained on"):
        model_for_classes(trained(fusion="none"), ("Swim", "Row"))
