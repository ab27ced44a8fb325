"""Evaluations from Python: what the command line and a report page call."""

import json
import subprocess
import sys

import pytest

from tests.cli.scored import TRUTH, write_tal
from unloc.annotations.schema import load_manifest
from unloc.evaluation import evaluator
from unloc.evaluation.evaluator import evaluate
from unloc.evaluation.job import Evaluation, evaluate_file, evaluate_floors
from unloc.predictions.reading import read_predictions


def test_a_file_is_evaluated_from_python_as_by_the_command(unloc, scored):
    write_tal(scored / "part.json", {"v1": TRUTH["v1"], "nowhere": ("Run", 0, 5)})
    evaluation = Evaluation(manifest_path=scored / "tal.jsonl", split="test", task="tal", analyse=True)
    report = evaluate_file(evaluation, scored / "part.json")
    words = "eval --manifest tal.jsonl --task tal --split test --predictions part.json --analyse --out a"
    assert unloc(*words.split())[0] == 0
    written = json.loads((scored / "a/metrics.json").read_text())
    assert written["metrics"] == report["metrics"] and written["floors"] == report["floors"]
    assert written["analysis"]["counts"] == report["analysis"]["counts"]
    assert sum("bad predictions" in message for message in evaluation.messages) == 2
    floors = evaluate_floors(Evaluation(manifest_path=scored / "tal.jsonl", split="test", task="tal"))
    assert floors["floors"] == report["floors"] and "metrics" not in floors


def test_predictions_are_aligned_with_the_queries_once(scored, monkeypatch):
    calls = []
    align = evaluator.align
    monkeypatch.setitem(evaluator.ALIGN, "hd", lambda *given: calls.append(given) or align(*given))
    manifest, predictions = (
        load_manifest(scored / "mr.jsonl"),
        read_predictions(scored / "mr.json", "mr").predictions[:1],
    )
    report = evaluate("hd", predictions, manifest, "val", train_split="train", interval_seed=0)
    assert len(calls) == 1
    assert set(report["coverage"]["metrics_without_missing"]) == set(report["metrics"]) >= set(report["intervals"])


@pytest.mark.parametrize("module", ["unloc.evaluation.job", "unloc.evaluation.analysis", "unloc.evaluation.zero_shot"])
def test_evaluation_without_a_model_imports_no_torch(module):
    heavy = {"torch", "ray", "open_clip", "typer", "matplotlib"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
