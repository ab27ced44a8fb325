"""What could only be trained on or scored in vain is refused in one line; what is partly rated trains."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.token_world import NAMES
from tests.training.test_trainer import EXTRA, SHAPE, recipe_for
from unloc.annotations.schema import load_manifest, save_manifest
from unloc.cache.opening import open_cache
from unloc.cache.writing import VideoTokens, token_checksum, write_video_shard
from unloc.examples.sources import CachedTokens
from unloc.inference.load import load_model
from unloc.inference.predict import predict_split
from unloc.training.run import fit_recipe

FEW = ("train.epochs=0.2", "train.eval_every_epochs=0.1")


def fit_words(task, manifest, cache, run, *overrides):
    overrides = (f"task={task}", *SHAPE, *EXTRA[task], *FEW, *overrides)
    where = ("--manifest", manifest, "--cache", cache, "--work-dir", run, "--threads", 1)
    return ("fit", "synth_mr", *overrides, *where)


def refused(result) -> str:
    code, _, err = result
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
    return err.splitlines()[-1]


def hidden(manifest, split):
    """Nothing is annotated in the split."""
    of_split = manifest.queries["split"] == split
    queries = manifest.queries.assign(
        segments=[[] if gone else kept for gone, kept in zip(of_split, manifest.queries["segments"], strict=True)],
        saliency_scores=[
            None if gone else kept for gone, kept in zip(of_split, manifest.queries["saliency_scores"], strict=True)
        ],
    )
    return replace(manifest, queries=queries, instances=manifest.instances[manifest.instances["split"] != split])


def in_unit(manifest, factor):
    """Segments times a factor (of the video's 16 seconds)."""
    scaled = [[[start * factor, end * factor] for start, end in row] for row in manifest.queries["segments"]]
    columns = {key: manifest.instances[key] * factor for key in ("start_seconds", "end_seconds")}
    return replace(
        manifest,
        queries=manifest.queries.assign(segments=scaled),
        instances=manifest.instances.assign(**columns),
        videos=manifest.videos.assign(duration_seconds=float("nan")),
    )


@pytest.fixture(scope="module")
def runs(token_world, tmp_path_factory):
    """A trained run of mr and of tal."""
    from unloc.recipes import load_recipe

    folder = tmp_path_factory.mktemp("runs")
    for task in ("mr", "tal"):
        recipe = load_recipe("synth_mr", [f"task={task}", *SHAPE, *EXTRA[task], *FEW])
        fit_recipe(recipe, *token_world, folder / task, threads=1)
    return folder


@pytest.mark.parametrize("task", ["mr", "tal", "as", "hd"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_supervision_is_no_split_to_train_or_validate_on(unloc, token_world, tmp_path, task, split):
    manifest, cache = token_world
    save_manifest(hidden(load_manifest(manifest), split), tmp_path / "m.jsonl")
    told = refused(unloc(*fit_words(task, tmp_path / "m.jsonl", cache, tmp_path / "run")))
    assert repr(split) in told and f"data.{split}_split=" in told and not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["mr", "tal"])
@pytest.mark.parametrize(
    ("factor", "unit"), [(1000, "milliseconds"), (30, "frames"), (1 / 16, "fractions"), (0, "outside"), (-1, "outside")]
)
def test_segments_in_another_unit_or_outside_their_videos_are_refused(
    unloc, token_world, tmp_path, runs, task, factor, unit
):
    manifest, cache = token_world
    save_manifest(in_unit(load_manifest(manifest), factor), tmp_path / "m.jsonl")
    told = refused(unloc(*fit_words(task, tmp_path / "m.jsonl", cache, tmp_path / "run")))
    assert unit in told and "unloc data check" in told and not (tmp_path / "run").exists()
    words = ("--manifest", tmp_path / "m.jsonl", "--cache", cache, "--split", "test", "--out", tmp_path / "out")
    assert unit in refused(unloc("eval", runs / task, *words))
    assert not (tmp_path / "out").exists()


def test_a_few_segments_outside_their_videos_are_told(unloc, token_world, tmp_path):
    manifest, cache = token_world
    loaded = load_manifest(manifest)
    late = [[[40.0, 50.0]] if n == 7 else row for n, row in enumerate(loaded.queries["segments"])]
    save_manifest(replace(loaded, queries=loaded.queries.assign(segments=late)), tmp_path / "m.jsonl")
    code, _, err = unloc(*fit_words("mr", tmp_path / "m.jsonl", cache, tmp_path / "run"))
    assert code == 0 and "1 of 80 segments" in err and "v3" in err


def test_with_nothing_cached_no_coverage_is_small_enough(unloc, token_world, tmp_path, runs):
    manifest, cache = token_world
    loaded = load_manifest(manifest)
    tables = {
        key: getattr(loaded, key).assign(video_id="x" + getattr(loaded, key)["video_id"])
        for key in ("videos", "queries", "instances")
    }
    save_manifest(replace(loaded, **tables), tmp_path / "m.jsonl")
    assert "unloc extract" in refused(
        unloc(*fit_words("mr", tmp_path / "m.jsonl", cache, tmp_path / "run", "data.coverage=0"))
    )
    words = ("--manifest", tmp_path / "m.jsonl", "--cache", cache, "--split", "test", "--out", tmp_path / "out")
    assert "unloc extract" in refused(unloc("eval", runs / "mr", *words))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_token_that_is_not_finite_names_its_video(unloc, token_world, tmp_path, runs, value):
    manifest, cache = token_world
    shutil.copytree(cache, tmp_path / "cache")
    row = dict(open_cache(cache).row("v55"))
    for video_id in ("v5", "v55"):
        tokens = open_cache(cache).stored_tokens(video_id).copy()
        tokens[17, 0, 3] = value
        meta = row | {"video_id": video_id, "tokens_sha256": token_checksum(tokens)}
        write_video_shard(
            tmp_path / "cache", "00001" if video_id == "v5" else "00002", [VideoTokens(meta, tokens)], [], "float16"
        )
    told = refused(unloc(*fit_words("mr", manifest, tmp_path / "cache", tmp_path / "run", "train.epochs=1")))
    assert "'v5'" in told
    words = ("--manifest", manifest, "--cache", tmp_path / "cache", "--split", "test", "--out", tmp_path / "out")
    assert "'v55'" in refused(unloc("eval", runs / "mr", *words))


def test_weights_that_are_not_finite_score_nothing(unloc, token_world, tmp_path, runs):
    from safetensors.torch import load_file, save_file

    manifest, cache = token_world
    shutil.copytree((runs / "mr" / "checkpoints" / "last").resolve(), tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    save_file({key: value * float("nan") for key, value in weights.items()}, tmp_path / "broken" / "model.safetensors")
    words = ("--manifest", manifest, "--cache", cache, "--split", "test", "--out", tmp_path / "out")
    assert "not finite" in refused(unloc("eval", tmp_path / "broken", *words))


def test_a_partly_rated_manifest_trains_and_what_is_not_rated_counts_for_nothing(unloc, token_world, tmp_path):
    manifest, cache = token_world
    loaded = load_manifest(manifest)
    rated = [scores if n % 3 else None for n, scores in enumerate(loaded.queries["saliency_scores"])]
    save_manifest(replace(loaded, queries=loaded.queries.assign(saliency_scores=rated)), tmp_path / "m.jsonl")
    code, _, err = unloc(*fit_words("hd", tmp_path / "m.jsonl", cache, tmp_path / "run"))
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["saliency"]) and row["saliency"] > 0 for row in rows if row["kind"] == "train")


@pytest.mark.parametrize("task", ["mr", "hd"])
def test_queries_that_hide_their_annotations_do_not_train(unloc, token_world, tmp_path, task):
    manifest, cache = token_world
    loaded = load_manifest(manifest)
    hides = [n % 4 == 0 for n in range(len(loaded.queries))]
    columns = {
        "segments": [[] if hide else kept for hide, kept in zip(hides, loaded.queries["segments"], strict=True)],
        "saliency_scores": [
            None if hide else kept for hide, kept in zip(hides, loaded.queries["saliency_scores"], strict=True)
        ],
    }
    partly = replace(loaded, queries=loaded.queries.assign(**columns))
    kept = replace(loaded, queries=loaded.queries[~np.asarray(hides)])
    for name, rows in (("partly", partly), ("kept", kept)):
        save_manifest(rows, tmp_path / f"{name}.jsonl")
        code, _, err = unloc(*fit_words(task, tmp_path / f"{name}.jsonl", cache, tmp_path / name, "data.val_split=''"))
        assert code == 0 and ("have no annotations" in err) == (name == "partly")
    weights = [
        (tmp_path / name / "checkpoints" / "last").resolve() / "model.safetensors" for name in ("partly", "kept")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("task", ["tal", "as"])
def test_a_label_that_is_no_class_is_named(unloc, token_world, tmp_path, task):
    manifest, cache = token_world
    loaded = load_manifest(manifest)
    save_manifest(replace(loaded, classes=loaded.classes[1:]), tmp_path / "m.jsonl")
    told = refused(unloc(*fit_words(task, tmp_path / "m.jsonl", cache, tmp_path / "run")))
    assert repr(loaded.classes[0]) in told and not (tmp_path / "run").exists()


def with_nulls(manifest):
    """A further query for each video: the one object of three that it does not show."""
    rows = []
    for video_id, own in manifest.queries.groupby("video_id", sort=False):
        (text,) = set(NAMES) - set(own["text"])
        row = {"text": text, "qid": f"{video_id}-null", "segments": [], "saliency_scores": None}
        rows.append(own.iloc[0].to_dict() | row | {"relevant_clip_ids": None})
    return replace(manifest, queries=pd.concat([manifest.queries, pd.DataFrame(rows)], ignore_index=True))


def test_null_queries_train_a_model_to_find_nothing_and_are_no_misses_in_validation(token_world, tmp_path, caplog):
    manifest, cache = token_world
    asked = with_nulls(load_manifest(manifest))
    save_manifest(asked, tmp_path / "m.jsonl")
    recipe = recipe_for("mr", "train.epochs=30", "train.eval_every_epochs=30", "train.batch_size=8", "model.width=32")
    recipe = replace(recipe, data=replace(recipe.data, null_queries=True), optim=replace(recipe.optim, lr=0.01))
    metrics = fit_recipe(recipe, tmp_path / "m.jsonl", cache, tmp_path / "run", threads=1)
    assert metrics["R1@0.3"] > 67.0  # the most, were null queries misses
    assert "no annotations" not in caplog.text
    test = asked.select("test")
    found = predict_split(load_model(tmp_path / "run"), test, CachedTokens(open_cache(cache)))
    best = np.array([item.windows[0, 2] if len(item.windows) else 0.0 for item in found])
    is_null = test.queries["segments"].map(len).to_numpy() == 0
    assert np.mean(best[is_null][:, None] >= best[~is_null]) < 0.05  # 0.16 without null queries


def test_a_task_without_queries_has_no_null_queries(unloc, token_world, tmp_path):
    code, _, err = unloc(*fit_words("tal", *token_world, tmp_path / "run", "data.null_queries=true"))
    assert code == 2 and "data.null_queries: task tal" in err and not (tmp_path / "run").exists()
