"""Pretraining by classification of clips: its loss, `unloc pretrain` on frames and a cache, and what starts from it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import render_video
from tests.training.small import small_example
from tests.training.test_end_to_end import moved, weights
from tests.training.test_trainer import Killed, assert_same_runs, at_step, kill, recipe_for
from unloc.annotations.schema import InstanceRow, VideoRow, build_manifest, load_manifest, save_manifest
from unloc.errors import ConfigError, InputError
from unloc.examples.batches import collate
from unloc.inference.load import load_model
from unloc.model.unloc import UnLoc
from unloc.recipes import load_recipe, recipe_from_dict
from unloc.training.objective import compute_losses
from unloc.training.run import fit_recipe
from unloc.video.frame_shards import FrameSpec, pack_frames
from unloc.video.reading import FrameSampling

LABELS = ("moves left", "jumps")
SIZES = ["model.width=16", "model.num_heads=2", "model.mlp_width=32", "model.num_layers=1", "data.num_steps=8"]
SIZES += ["train.batch_size=2", "train.epochs=2", "train.eval_every_epochs=1"]
SIZES += ["optim.name=sgd", "optim.lr=0.01", "optim.tower_lr=0.01", "optim.warmup_epochs=0", "optim.schedule=constant"]
TAL = [
    *SIZES,
    "model.num_head_convs=1",
    "targets.range_edges=[0,2,4,8,inf]",
    "data.train_split=train",
    "data.val_split=",
]


# -- the loss ---------------------------------------------------------------------------------------------------------


def clip_batch(*, num_valid=6):
    """Two videos of 8 steps, with classes 0 and 2, and 1; of the first only some steps are valid."""
    short = np.arange(8) < num_valid
    first = small_example(
        0, steps=8, frame_mask=short, segments_steps=np.zeros((2, 2)), segment_classes=np.array([0, 2])
    )
    other = small_example(1, steps=8, segments_steps=np.zeros((1, 2)), segment_classes=np.array([1]))
    texts = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)), torch.ones(3, 4, dtype=torch.bool)
    return collate([first, other], max_text_tokens=8, class_texts=texts)


def clip_model():
    model = {"width": 16, "num_heads": 2, "mlp_width": 32, "num_layers": 1, "pyramid": "none", "head": "linear"}
    recipe = recipe_from_dict({"task": "cls", "model": model, "loss": {"relevance": "sigmoid"}})
    torch.manual_seed(0)
    return UnLoc(recipe.model, 16, 16, 8, localizes=False), recipe


def test_the_loss_is_a_sigmoid_for_each_class_of_the_linear_head_on_the_mean_valid_token():
    (model, recipe), seen = clip_model(), []
    model.relevance_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].detach()))
    batch = clip_batch()
    losses = compute_losses(model, batch, recipe)
    tokens, total = seen[0].unflatten(0, (2, 3)), 0.0
    for video, (valid, labels) in enumerate([(6, {0, 2}), (8, {1})]):
        for label in range(3):
            logit = model.relevance_head.linear(tokens[video, label, :valid].mean(0)).item()
            total += math.log1p(math.exp(-logit if label in labels else logit))
    assert losses["loss"].item() == pytest.approx(total / 2, rel=1e-5) and set(losses) == {"loss", "relevance"}


def test_masked_steps_do_not_count():
    (model, recipe), batch = clip_model(), clip_batch()
    other = batch.frames.clone()
    other[0, 6:] = 99.0
    losses = [
        compute_losses(model, one, recipe)["loss"]
        for one in (batch, replace(batch, frames=other), clip_batch(num_valid=5))
    ]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_a_step_lowers_the_loss():
    (model, recipe), batch = clip_model(), clip_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = compute_losses(model, batch, recipe)["loss"]
    before.backward()
    optimizer.step()
    assert compute_losses(model, batch, recipe)["loss"] < before


# -- on frames --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Folder of six labelled clips: their manifest, one of localization, packed frames, and videos."""
    folder, rows, files = tmp_path_factory.mktemp("clips"), [], {}
    (folder / "videos").mkdir()
    for number in range(6):
        video_id, split = f"v{number}", "val" if number > 3 else "train"
        files[video_id] = render_video(folder / "videos" / f"{video_id}.mp4", num_frames=30 + number, seed=number)
        rows += [VideoRow(video_id, split, 10.0), InstanceRow(video_id, split, LABELS[number % 2], [0.0, 10.0])]
    save_manifest(build_manifest(name="m", tasks=("cls",), rows=rows, classes=LABELS), folder / "m.jsonl")
    rows = [
        replace(row, segment=[0.3, 2.0]) if isinstance(row, InstanceRow) else replace(row, duration_seconds=None)
        for row in rows
    ]
    save_manifest(build_manifest(name="m", tasks=("tal",), rows=rows, classes=LABELS), folder / "tal.jsonl")
    pack_frames(list(files), files, folder / "frames", FrameSpec(sampling=FrameSampling(num_frames=12), size=112))
    return folder


def pretrained(clips, run, *words, **options):
    recipe = load_recipe("synth_cls", [*SIZES, *words])
    return fit_recipe(recipe, clips / "m.jsonl", clips / "frames", run, kind="frames", threads=1, **options)


@pytest.fixture(scope="module")
def trained(clips, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    metrics = pretrained(clips, run)
    assert (
        list(metrics) == ["top1_accuracy", "top5_accuracy", "mean_class_accuracy"] and metrics["top5_accuracy"] == 100
    )
    return run


@pytest.fixture(scope="module")
def cache(clips, trained, tmp_path_factory) -> Path:
    """The cache that the trained image tower makes of the clips."""
    from typer.testing import CliRunner

    from unloc.cli import app

    folder = tmp_path_factory.mktemp("cache") / "cache"
    words = ["--cache", folder, "--tower", trained, "--videos", clips / "videos", "--frames", 12, "--workers", 0]
    done = CliRunner().invoke(app, ["extract", *map(str, [clips / "m.jsonl", *words])], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder


def test_the_command_trains_the_image_tower_and_the_fusion_and_leaves_the_text_tower(clips, tmp_path, unloc):
    words = ("--manifest", clips / "m.jsonl", "--frames", clips / "frames", "--threads", 1)
    for name, more in {"still": ["optim.lr=0", "optim.tower_lr=0"], "run": []}.items():
        code, out, errors = unloc("pretrain", "synth_cls", *SIZES, *more, *words, "--work-dir", tmp_path / name)
        assert code == 0 and "mean_class_accuracy" in out, errors
    one, still = weights(tmp_path / "run"), weights(tmp_path / "still")
    assert moved(one, still, "text_tower") == 0
    assert moved(one, still, "image_tower") > 1e-5 and moved(one, still, "encoder") > 1e-5
    code, _, errors = unloc("pretrain", "synth_tal", *words, "--work-dir", tmp_path / "no")
    assert code == 2 and "task tal, not cls" in errors and not (tmp_path / "no").exists()


def test_an_interrupted_run_resumes_to_the_same_weights(clips, trained, tmp_path):
    with pytest.raises(Killed):
        pretrained(clips, tmp_path / "run", on_step=at_step(3, kill))
    pretrained(clips, tmp_path / "run", resume=True)
    assert_same_runs(trained, tmp_path / "run")


def test_replayed_training_ends_in_the_weights_of_plain_training(clips, trained, tmp_path):
    pretrained(clips, tmp_path / "run", "towers.frame_chunk=3")
    assert moved(weights(trained), weights(tmp_path / "run"), "") < 1e-4


def test_its_tower_makes_a_cache_on_which_it_is_evaluated_and_whose_runs_start_from_it(
    clips, trained, cache, tmp_path, unloc, caplog
):
    words = ("--cache", cache, "--split", "val")
    code, _, errors = unloc("eval", trained, "--manifest", clips / "m.jsonl", *words, "--out", tmp_path / "out")
    assert code == 0, errors
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["task"] == "cls" and report["recipe"]["towers"]["image"] == "finetune"
    scored = ("--predictions", tmp_path / "out" / "predictions.json", "--task", "cls", "--split", "val", "--strict")
    assert unloc("eval", *scored, "--manifest", clips / "m.jsonl", "--out", tmp_path / "again")[0] == 0
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["metrics"] == report["metrics"]
    recipe = load_recipe("synth_tal", [*TAL, "optim.lr=0"])
    fit_recipe(recipe, clips / "tal.jsonl", cache, tmp_path / "tal", threads=1, init=trained)
    (said,) = [record.message for record in caplog.records if record.message.startswith("init from")]
    assert "fresh or left out" in said and "relevance_head" in said and "encoder.levels.0" in said
    core, own = load_model(trained).model.core.state_dict(), load_model(tmp_path / "tal").model.state_dict()
    taken = [key for key in core if key.startswith("encoder.layers")]
    assert taken and all(torch.equal(core[key], own[key]) for key in taken)
    assert load_model(tmp_path / "tal").info.live_towers == ()


def test_a_run_of_moments_on_its_cache_continues_with_its_text_tower(clips, trained, cache, tmp_path):
    words = ["towers.name=toy", "towers.text=finetune", "data.max_text_tokens=20", "optim.lr=0", "optim.tower_lr=0"]
    run, given = tmp_path / "run", (clips / "tal.jsonl", cache)
    with pytest.raises(ConfigError, match=r"'shipped\+run'"):
        fit_recipe(load_recipe("synth_tal", [*TAL, *words]), *given, run, threads=1, init=trained)
    words.append(f"towers.pretrained={trained}")
    fit_recipe(load_recipe("synth_tal", [*TAL, *words]), *given, run, threads=1, init=trained)
    one, other = load_model(trained).model.state_dict(), weights(run)
    assert load_model(run).info.live_towers == ("text",) and not any(key.startswith("image") for key in other)
    assert moved(one, other, "text_tower.transformer") == 0 and moved(one, other, "encoder.layers") == 0


def test_a_cache_of_another_tower_is_refused_for_its_runs(clips, trained, tmp_path, unloc):
    words = ("--videos", clips / "videos", "--frames", 12, "--workers", 0)
    code, _, errors = unloc("extract", clips / "tal.jsonl", "--cache", tmp_path / "stock", *words)
    assert code == 0, errors
    with pytest.raises(InputError, match=r"unloc extract --tower RUN"):
        fit_recipe(
            load_recipe("synth_tal", TAL), clips / "tal.jsonl", tmp_path / "stock", tmp_path / "run", init=trained
        )
    assert not (tmp_path / "run").exists()


def test_runs_on_frames_start_with_its_towers_also_at_another_number_of_text_tokens(clips, trained, tmp_path):
    live = [
        *TAL,
        "towers.name=toy",
        "towers.image=frozen",
        "towers.text=frozen",
        "optim.lr=0",
        "data.max_text_tokens=20",
    ]
    recipe, run = load_recipe("synth_tal", live), tmp_path / "run"
    fit_recipe(recipe, clips / "tal.jsonl", clips / "frames", run, kind="frames", threads=1, init=trained)
    one, other = load_model(trained).model.state_dict(), weights(run)
    assert moved(one, other, "image_tower") == 0 and moved(one, other, "encoder.layers") == 0
    assert len(other["text_tower.positions"]) == 20 < len(one["text_tower.positions"])


def test_a_frozen_text_tower_that_another_run_trained_gives_its_own_tokens(clips, tmp_path):
    pretrained(clips, tmp_path / "texts", "towers.text=finetune", "optim.tower_lr=0.1", "train.epochs=1")
    losses = {}
    for text in ("frozen", "finetune"):
        words, losses[text] = ["optim.lr=0", "optim.tower_lr=0", "train.epochs=1", f"towers.text={text}"], []
        report = {"on_step": lambda step, total, now, text=text: losses[text].append(now["loss"])}
        pretrained(clips, tmp_path / text, *words, init=tmp_path / "texts", **report)
    assert losses["frozen"] == pytest.approx(losses["finetune"], rel=1e-5) and len(losses["frozen"]) == 2


# -- on a cache, and mistakes -----------------------------------------------------------------------------------------


def video_labels(token_world, folder) -> Path:
    """The manifest of the token world for classification: the segments' labels are the videos'."""
    manifest = replace(load_manifest(token_world[0]), tasks=("cls",))
    save_manifest(manifest, folder / "cls.jsonl")
    return folder / "cls.jsonl"


def test_it_learns_on_a_cache_and_a_video_without_label_or_tokens_is_counted(token_world, tmp_path, caplog):
    path = video_labels(token_world, tmp_path)
    manifest = load_manifest(path)
    first = manifest.instances["video_id"][manifest.instances["split"] == "train"].iloc[0]
    kept = manifest.instances[manifest.instances["video_id"] != first]
    tables = {"videos": manifest.videos, "instances": kept}
    lost = {key: table[table["split"] == "train"].iloc[:1].assign(video_id="lost") for key, table in tables.items()}
    tables = {key: pd.concat([table, lost[key]], ignore_index=True) for key, table in tables.items()}
    save_manifest(replace(manifest, **tables), path)
    words = [
        "train.epochs=15",
        "train.eval_every_epochs=15",
        "train.batch_size=8",
        "model.width=32",
        "data.coverage=0.9",
    ]
    fit_recipe(recipe_for("cls", *words), path, token_world[1], tmp_path / "run", threads=1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert "have no label" in caplog.text and "videos are not in the cache: lost" in caplog.text


@pytest.mark.parametrize(
    ("change", "named"), [("labels", "has no labels for cls"), ("split", "'training'"), ("task", "not cls")]
)
def test_what_cannot_be_trained_on_is_one_line(token_world, tmp_path, unloc, change, named):
    path, words = video_labels(token_world, tmp_path), []
    manifest = load_manifest(path)
    if change == "labels":
        save_manifest(replace(manifest, instances=manifest.instances.iloc[:0]), path)
    if change == "task":
        save_manifest(replace(manifest, tasks=("tal",)), path)
    if change == "split":
        words = ["data.train_split=training"]
    words += ["towers.image=cached", "towers.name=", "--manifest", path, "--cache", token_world[1]]
    code, _, errors = unloc("pretrain", "synth_cls", *words, "--work-dir", tmp_path / "run")
    assert code == 2 and named in errors and errors.count("\n") == 1 and not (tmp_path / "run").exists()
