import json
import math
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unloc.annotations.schema import VideoRow
from unloc.cache.opening import open_cache
from unloc.errors import ConfigError, CoverageError, FingerprintError, InputError, MissingError
from unloc.examples.loader import epoch_batches
from unloc.inference.load import load_model, require_same_cache
from unloc.recipes import load_recipe, recipe_from_dict
from unloc.training import folder
from unloc.training.optim import lr_factor
from unloc.training.run import fit_recipe

SHAPE = ["model.width=16", "model.num_heads=2", "model.mlp_width=32", "model.num_layers=2", "model.num_levels=3"]
SHAPE += ["targets.range_edges=[0,4,8,inf]", "data.num_steps=32", "optim.lr=0.003", "optim.name=adamw"]
SHAPE += ["optim.warmup_epochs=0", "train.batch_size=4", "data.val_split=val", "model.num_head_convs=1"]
EXTRA = {
    "mr": [],
    "tal": ["model.class_bias=-3"],
    "as": ["model.pyramid=none", "model.head=linear", "data.num_steps=20", "loss.relevance=sigmoid"],
    "hd": ["model.saliency_head=true"],
    "cls": ["model.pyramid=none", "model.head=linear", "data.num_steps=20", "loss.relevance=sigmoid"],
}


def recipe_for(task, *overrides):
    return load_recipe("synth_mr", [f"task={task}", *SHAPE, *EXTRA[task], *overrides])


@pytest.mark.parametrize("task", ["mr", "tal", "as", "hd"])
def test_every_task_learns_the_world_of_tokens(token_world, tmp_path, task):
    manifest, cache = token_world
    recipe = recipe_for(task, "train.epochs=25", "train.eval_every_epochs=25", "train.batch_size=8", "model.width=32")
    metrics = fit_recipe(recipe, manifest, cache, tmp_path / "run", threads=1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    headline = {"mr": "R1@0.5", "tal": "mAP@0.50", "as": "frame_accuracy", "hd": "HL-min-VeryGood-Hit1"}[task]
    assert metrics[headline] > 75.0  # of 10 to 20 validation cases, one more or less turns on rounding


class Killed(Exception):
    """Ends a run at once."""


def kill():
    raise Killed


def at_step(number, action):
    return lambda step, total, values: action() if step == number else None


def weights_of(run):
    return {key: value.clone() for key, value in load_model(run).model.state_dict().items()}


@pytest.mark.parametrize("extra", [[], ["train.ema_decay=0.9", "model.dropout=0.1"]])
def test_a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one(token_world, tmp_path, extra):
    manifest, cache = token_world
    recipe = recipe_for("mr", "train.epochs=3", "train.eval_every_epochs=0.4", *extra)
    whole = fit_recipe(recipe, manifest, cache, tmp_path / "whole", threads=1)
    with pytest.raises(Killed):
        fit_recipe(recipe, manifest, cache, tmp_path / "part", threads=1, on_step=at_step(19, kill))
    resumed = fit_recipe(recipe, manifest, cache, tmp_path / "part", threads=1, resume=True)
    assert resumed == whole
    assert_same_runs(tmp_path / "whole", tmp_path / "part")


def assert_same_runs(one: Path, other: Path) -> None:
    """The same weights under both links, and the same rows, each once."""
    for name in ("best", "last"):
        first, second = (load_file(run / "checkpoints" / name / "model.safetensors") for run in (one, other))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert metrics_of(one) == metrics_of(other)


def metrics_of(run: Path) -> list[str]:
    """The rows of a run that do not depend on time."""
    return [row for row in (run / "metrics.jsonl").read_text().splitlines() if json.loads(row)["kind"] != "speed"]


@pytest.mark.parametrize("link", ["best", "last"])
def test_a_kill_between_the_links_of_a_checkpoint_changes_nothing(token_world, tmp_path, monkeypatch, link):
    manifest, cache = token_world
    recipe = recipe_for("mr", "train.epochs=0.3", "train.eval_every_epochs=0.1")
    fit_recipe(recipe, manifest, cache, tmp_path / "whole", threads=1)
    done, point = [], folder._point

    def killed(path: Path, target: str) -> None:
        done.append(path.name)
        if done.count(link) == 2:
            raise KeyboardInterrupt
        point(path, target)

    monkeypatch.setattr(folder, "_point", killed)
    with suppress(KeyboardInterrupt):  # the second best may never come
        fit_recipe(recipe, manifest, cache, tmp_path / "part", threads=1)
    monkeypatch.undo()
    with (tmp_path / "part" / "metrics.jsonl").open("a") as rows:
        rows.write('{"kind": "train", "st')
    fit_recipe(recipe, manifest, cache, tmp_path / "part", threads=1, resume=True)
    assert_same_runs(tmp_path / "whole", tmp_path / "part")


def test_a_run_killed_before_its_first_checkpoint_is_resumed_from_where_it_began(token_world, tmp_path):
    manifest, cache = token_world
    recipe = recipe_for("mr", "train.epochs=0.3")
    fit_recipe(recipe, manifest, cache, tmp_path / "start", threads=1)
    fit_recipe(recipe, manifest, cache, tmp_path / "whole", threads=1, init=tmp_path / "start")
    shutil.copytree(tmp_path / "whole", tmp_path / "part", ignore=shutil.ignore_patterns("checkpoints"))
    fit_recipe(recipe, manifest, cache, tmp_path / "part", threads=1, resume=True)
    assert_same_runs(tmp_path / "whole", tmp_path / "part")


def test_nothing_is_written_or_deleted_before_all_was_found(token_world, tmp_path):
    manifest, cache = token_world
    recipe = recipe_for("mr", "train.epochs=0.3")
    run = tmp_path / "run"
    fit_recipe(recipe, manifest, cache, run, threads=1)
    before = weights_of(run)
    with pytest.raises(MissingError, match="no checkpoint"):
        fit_recipe(recipe, manifest, cache, run, threads=1, overwrite=True, init=tmp_path / "nowhere")
    assert weights_of(run).keys() == before.keys()
    fit_recipe(recipe, manifest, cache, run, threads=1, overwrite=True, init=run)
    text = Path(manifest).read_text() + json.dumps({"kind": "video"} | vars(VideoRow("absent", "val", 9.0))) + "\n"
    (tmp_path / "more.jsonl").write_text(text)
    with pytest.raises(CoverageError, match="missing: absent"):
        fit_recipe(recipe, tmp_path / "more.jsonl", cache, tmp_path / "other", threads=1)
    assert not (tmp_path / "other").exists()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(token_world, tmp_path):
    manifest, cache = token_world
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit_recipe(
            recipe_for("tal", "train.epochs=1", f"train.seed={seed}"), manifest, cache, tmp_path / name, threads=1
        )
        runs[name] = weights_of(tmp_path / name)["relevance_head.blocks.0.linear.weight"]
    assert torch.equal(runs["a"], runs["b"]) and not torch.equal(runs["a"], runs["c"])


def test_a_run_folder_is_never_overwritten_by_accident(token_world, tmp_path):
    manifest, cache = token_world
    recipe = recipe_for("mr", "train.epochs=0.3")
    fit_recipe(recipe, manifest, cache, tmp_path / "run", threads=1)
    with pytest.raises(InputError, match="a run already"):
        fit_recipe(recipe, manifest, cache, tmp_path / "run", threads=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("precious")
    for overwrite in (True, False):
        with pytest.raises(InputError, match="not a run folder"):
            fit_recipe(recipe, manifest, cache, tmp_path / "photos", threads=1, overwrite=overwrite)
    assert [item.name for item in (tmp_path / "photos").iterdir()] == ["me.jpg"]


def test_a_device_that_is_none_and_a_run_that_is_none_are_named(token_world, tmp_path):
    manifest, cache = token_world
    with pytest.raises(InputError, match="--device"):
        fit_recipe(recipe_for("mr"), manifest, cache, tmp_path / "b", device="quantum")
    with pytest.raises(InputError, match="nothing to resume"):
        fit_recipe(recipe_for("mr"), manifest, cache, tmp_path / "c", resume=True)


def test_a_training_split_that_does_not_fill_a_batch_is_refused(token_world, tmp_path):
    manifest, cache = token_world
    with pytest.raises(ConfigError, match=r"'train' has 40.*train\.batch_size=40"):
        fit_recipe(recipe_for("tal", "train.batch_size=64"), manifest, cache, tmp_path / "run", threads=1)
    assert not (tmp_path / "run").exists()
    fit_recipe(recipe_for("tal", "train.batch_size=40", "train.epochs=1"), manifest, cache, tmp_path / "run", threads=1)


@pytest.mark.parametrize("overrides", [["model.width=32"], ["model.num_layers=1"], ["model.num_layers=3"]])
def test_a_start_of_another_shape_is_refused_with_what_does_not_fit(token_world, tmp_path, overrides):
    manifest, cache = token_world
    fit_recipe(recipe_for("mr", "train.epochs=0.1"), manifest, cache, tmp_path / "start", threads=1)
    for task in ("mr", "tal"):
        recipe = recipe_for(task, "train.epochs=0.1", *overrides)
        with pytest.raises(InputError, match=r"do not fit.*encoder\.layers\.\d\.\w+\.weight") as raised:
            fit_recipe(recipe, manifest, cache, tmp_path / "run", threads=1, init=tmp_path / "start")
        assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_heads_may_differ_from_those_of_another_task_and_what_was_taken_is_told(token_world, tmp_path, caplog):
    manifest, cache = token_world
    fit_recipe(recipe_for("mr", "train.epochs=0.1"), manifest, cache, tmp_path / "start", threads=1)
    deeper = ["model.num_head_convs=2", "train.epochs=0.1"]
    with pytest.raises(InputError, match=r"relevance_head\.blocks\.0\.convs\.1\.weight \(16x16x3, none\)"):
        fit_recipe(recipe_for("mr", *deeper), manifest, cache, tmp_path / "a", threads=1, init=tmp_path / "start")
    fit_recipe(recipe_for("hd", *deeper), manifest, cache, tmp_path / "b", threads=1, init=tmp_path / "start")
    (told,) = [record.getMessage() for record in caplog.records if "tensors taken" in record.getMessage()]
    assert "saliency_head.linear.weight (1x16, none)" in told and "encoder.layers" not in told
    own = len(load_model(tmp_path / "b").model.state_dict())
    assert f"of {own} tensors taken" in told


def test_a_model_refuses_a_cache_of_another_tower(token_world, tmp_path):
    manifest, cache = token_world
    fit_recipe(recipe_for("mr", "train.epochs=0.3"), manifest, cache, tmp_path / "run", threads=1)
    info = load_model(tmp_path / "run").info
    require_same_cache(info.fingerprint, open_cache(cache).fingerprint, cache)
    with pytest.raises(FingerprintError, match=r"tower\.name.*'made up'.*'ViT-B-16'"):
        require_same_cache(info.fingerprint, open_cache(cache).fingerprint | {"tower.name": "ViT-B-16"}, cache)


def test_a_damaged_checkpoint_is_said_in_one_line(token_world, tmp_path):
    manifest, cache = token_world
    recipe = recipe_for("mr", "train.epochs=0.1")
    fit_recipe(recipe, manifest, cache, tmp_path / "run", threads=1)
    folder = (tmp_path / "run" / "checkpoints" / "last").resolve()
    assert load_model(folder / "model.safetensors").info.step == 2
    for name in ("model.safetensors", "checkpoint.json", "state.pt"):
        whole = (folder / name).read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"{}"):
            (folder / name).write_bytes(damaged)
            with pytest.raises(InputError, match=r"damaged|cannot be read|version") as raised:
                load_model(tmp_path / "run")
                fit_recipe(recipe, manifest, cache, tmp_path / "run", threads=1, resume=True)
            assert "\n" not in str(raised.value)
        (folder / name).write_bytes(whole)


def test_batches_hold_every_example_once_and_no_video_twice():
    videos = [f"v{n // 5}" for n in range(50)]
    for epoch in range(3):
        batches = epoch_batches(videos, 8, 0, epoch)
        assert sorted(index for batch in batches for index in batch) == list(range(50))
        assert len(batches) == 7 and max(map(len, batches)) <= 8
        assert all(len({videos[index] for index in batch}) == len(batch) for batch in batches)
    assert epoch_batches(videos, 8, 0, 0) != epoch_batches(videos, 8, 0, 1)


def test_schedules_warm_up_from_zero_and_end_where_they_should():
    def factors(**values):
        config = recipe_from_dict({"optim": {"warmup_epochs": 2.0, **values}}).optim
        return lambda step: lr_factor(config, 10, 100, step)

    assert factors()(0) == 0.0 and factors()(10) == 0.5 and factors()(20) == factors()(99) == 1.0
    cosine = factors(schedule="cosine")
    assert cosine(20) == 1.0 and math.isclose(cosine(60), 0.5) and cosine(100) < 1e-9
    uneven = factors(warmup_epochs=2.75)  # 27.5 steps: officially the length of the warm-up is not rounded
    assert (uneven(27), uneven(28)) == (27 / 27.5, 1.0)
    late_cosine = factors(warmup_epochs=2.75, schedule="cosine")
    assert late_cosine(28) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5 / 73)), abs=1e-12)
    steps = factors(schedule="step", step_epochs=[5.0, 8.0])
    assert [steps(50), steps(51), math.isclose(steps(81), 0.01)] == [1.0, 0.1, True]
