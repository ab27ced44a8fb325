"""`unloc compare`: which of two runs is better, by a paired bootstrap over videos."""

import json
import shutil

import numpy as np
import pytest

from tests.cli.scored import AS, HD, MR, TAL, TRUTH, answer, write_mr, write_tal
from unloc.annotations.schema import QueryRow, VideoRow, build_manifest, load_manifest, save_manifest


def many(scored, right_of, name):
    """Predictions for 40 videos of one query each, right in those of `right_of`."""
    rows = [VideoRow(f"v{n}", "val", 20.0) for n in range(40)]
    rows += [QueryRow(f"v{n}", "val", str(n), f"query {n}", [[0, 10]]) for n in range(40)]
    save_manifest(build_manifest(name="many", tasks=("mr",), rows=rows), scored / "many.jsonl")
    wrong = [[12, 20, 0.9]]
    write_mr(
        scored / name, [answer(n, **({} if n in right_of else {"pred_relevant_windows": wrong})) for n in range(40)]
    )


def test_a_difference_is_resolved_where_its_interval_excludes_zero(scored, told):
    many(scored, set(range(20)), "a.jsonl")
    many(scored, set(range(1, 40)), "b.jsonl")  # better, though it misses one that A finds
    of = "--manifest many.jsonl --split val"
    out = told(*f"compare a.jsonl b.jsonl {of} --seed 3 --out c.json".split())
    assert "1000 paired resamples of 40 videos, seed 3" in out and "B is better" in out
    found = json.loads((scored / "c.json").read_text())
    one = found["metrics"]["R1@0.5"]
    assert (one["a"], one["b"], one["difference"], one["resolved"]) == (50.0, 97.5, 47.5, True)
    # The interval of the mean of 40 paired differences: 20 × 1, one -1, the rest 0.
    differences = np.array([-1] + [0] * 19 + [1] * 20)
    half = 196 * differences.std() / np.sqrt(40)
    assert one["interval"] == pytest.approx([47.5 - half, 47.5 + half], abs=2.5)
    assert (
        json.loads(told_json(told, scored, f"compare b.jsonl a.jsonl {of} --seed 3"))["R1@0.5"]["difference"] == -47.5
    )


def told_json(told, scored, line):
    told(*line.split(), "--out", scored / "again.json")
    return json.dumps(json.loads((scored / "again.json").read_text())["metrics"])


def test_what_both_find_cancels_out_and_the_same_seed_gives_the_same_interval(scored, told):
    many(scored, set(range(20)), "a.jsonl")
    many(scored, set(range(19)) | {25}, "b.jsonl")
    line = "compare a.jsonl b.jsonl --manifest many.jsonl --split val"
    first, again = told_json(told, scored, line), told_json(told, scored, line)
    assert first == again
    one = json.loads(first)["R1@0.5"]
    assert one["difference"] == 0 and not one["resolved"]
    assert max(map(abs, one["interval"])) < 10  # unpaired, that of each alone is ± 15
    assert "not resolved" in told(*line.split())


@pytest.mark.parametrize("line", [f"{TAL} --predictions tal.json", f"{MR} --predictions mr.json"])
def test_scored_folders_need_no_options_and_every_metric_of_the_score_is_compared(line, scored, told):
    told(*line.split(), "--out", "one")
    shutil.copytree(scored / "one", scored / "other")
    told("compare", "one", "other/metrics.json", "--out", "c.json")
    found, report = (json.loads((scored / name).read_text()) for name in ("c.json", "one/metrics.json"))
    assert set(found["metrics"]) == {name for name, value in report["metrics"].items() if value is not None}
    assert all(one["a"] == report["metrics"][name] for name, one in found["metrics"].items())
    assert not any(one["resolved"] for one in found["metrics"].values())


@pytest.mark.parametrize(
    ("line", "file"), [(AS, "as.jsonl"), (HD, "mr.json"), (MR + " --rejection", "mr.json"), (TAL, "tal.json")]
)
def test_every_task_is_compared(line, file, scored, told):
    told(*f"{line} --predictions {file} --out scores".split())
    assert "not resolved" in told("compare", "scores", "scores")


def test_lists_of_videos_count_as_they_did_in_the_score(scored, told):
    many(scored, {0}, "a.jsonl")
    (scored / "some.txt").write_text("v0\nv1\nv2\nv3\n")
    told(*f"{MR.replace('mr.jsonl', 'many.jsonl')} --predictions a.jsonl --only some.txt --out a".split())
    assert "resamples of 4 videos" in told("compare", "a", "a")


def test_other_splits_manifests_and_tasks_are_refused_in_one_line(scored, told, fails):
    for name, line in {"tal": TAL, "as": AS, "mr": MR, "raw": f"{MR} --protocol raw"}.items():
        file = {"as": "as.jsonl", "raw": "mr.json"}.get(name, f"{name}.json")
        told(*f"{line} --predictions {file} --out {name}".split())
    fails("compare", "tal", "as", saying="the same task (tal and as)")
    fails("compare", "mr", "raw", saying="the same protocol (moment_detr and raw)")
    manifest = load_manifest(scored / "tal.jsonl")
    save_manifest(manifest.filter(lambda table: table["video_id"] != "v3"), scored / "fewer.jsonl")
    write_tal(scored / "fewer.json", {"v1": TRUTH["v1"], "v2": TRUTH["v2"]})
    told(*f"{TAL.replace('tal.jsonl', 'fewer.jsonl')} --predictions fewer.json --out fewer".split())
    fails("compare", "tal", "fewer", saying="the same annotations")
    fails("compare", "tal", "tal.json", saying="--manifest and --split")
    fails("compare", "tal", "nowhere", saying="nowhere does not exist")


def test_what_has_changed_since_it_was_scored_is_refused(scored, told, fails):
    told(*f"{TAL} --predictions tal.json --out scores".split())
    before = (scored / "tal.jsonl").read_text()
    (scored / "tal.jsonl").write_text(before + "\n")
    fails("compare", "scores", "scores", saying="are not those of its score")
    (scored / "tal.jsonl").unlink()
    fails("compare", "scores", "scores", saying="do not exist")
    (scored / "moved.jsonl").write_text(before)
    told("compare", "scores", "scores", "--manifest", "moved.jsonl")
    write_tal(scored / "tal.json", {"v1": TRUTH["v1"]})
    fails("compare", "scores", "scores", "--manifest", "moved.jsonl", saying="has changed since")


def test_one_video_cannot_be_resampled_and_no_input_is_replaced(scored, told, fails):
    (scored / "one.txt").write_text("v1\n")
    told(*f"{TAL} --predictions tal.json --only one.txt --out one".split())
    fails("compare", "one", "one", saying="at least two")
    told(*f"{TAL} --predictions tal.json --out scores".split())
    fails("compare", "scores", "scores", "--out", "tal.json", saying="is an input")


def test_a_run_with_several_evaluations_asks_which(scored, told, fails):
    for split in ("test", "train"):
        shutil.copy(scored / "tal.json", scored / "both.json")
        rows = json.loads((scored / "both.json").read_text())
        rows["results"]["t1"] = [{"label": "Run", "score": 0.5, "segment": [0, 50]}]
        (scored / "both.json").write_text(json.dumps(rows))
        told(*f"{TAL.replace('test', split)} --predictions both.json --out run/eval/{split}".split())
    (scored / "run/recipe.yaml").write_text("name: x\n")
    fails("compare", "run", "run", saying="choose one with --split")
    assert "resamples of 3 videos" in told("compare", "run", "run", "--split", "test")
    fails("compare", "run", "run", "--split", "val", saying="no evaluation of val (has tal on test, tal on train)")
