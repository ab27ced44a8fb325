"""Several tasks in one model: one fusion and pyramid, heads of each, batches by weight, one checkpoint for all."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.token_world import make_token_world
from tests.training import test_end_to_end
from tests.training.test_end_to_end import world  # noqa: F401
from tests.training.test_live_text import FINETUNE, SMALL, text_world  # noqa: F401
from tests.training.test_trainer import SHAPE, Killed, assert_same_runs, at_step, kill, recipe_for
from unloc.annotations.schema import load_manifest, save_manifest
from unloc.cache.writing import create_or_check
from unloc.errors import ConfigError, FingerprintError, UnlocError
from unloc.examples.loader import MixedLoader
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.load import load_model
from unloc.recipes import dump_recipe, load_recipe, recipe_from_dict, task_recipes
from unloc.training.folder import draw_curves
from unloc.training.run import fit_recipe

ALL = ("mr", "tal", "as", "hd")
OWN = [
    "tasks.mr.weight=2",
    "tasks.tal.model.class_bias=-3",
    "tasks.tal.weight=1",
    "tasks.as.model.num_levels=1",
    "tasks.as.data.num_steps=20",
    "tasks.as.loss.relevance=sigmoid",
    "tasks.as.weight=1",
    "tasks.hd.model.saliency_head=true",
    "tasks.hd.weight=1",
]
SPLITS = [f"tasks.{task}.data.{split}" for task in ("tal", "as") for split in ("train_split=train", "val_split=val")]
SHORT = ["train.epochs=0.3", "train.eval_every_epochs=0.15", "train.log_every=1"]


def cotrained(*words, tasks=ALL):
    """`cotrain_synth` at the sizes of the world of tokens."""
    left_out = [f"tasks.{task}=null" for task in ALL if task not in tasks]
    own = [word for word in [*OWN, *SPLITS] if word.split(".")[1] in tasks]
    return load_recipe("cotrain_synth", [*left_out, *SHAPE, *own, *words])


def rows_of(run: Path, kind: str) -> list[dict]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


class Steps(list):
    """A loader of so many batches."""

    workers, pin_memory = 0, False


@pytest.mark.parametrize(
    ("weights", "shares"),
    [({}, {"a": 30, "b": 9, "c": 1}), ({"a": 1, "b": 1, "c": 2}, {"a": 10, "b": 10, "c": 20})],
)
def test_each_epoch_has_the_stated_share_of_each_task_and_each_task_goes_through_its_batches_in_order(weights, shares):
    loaders = {"a": Steps(range(30)), "b": Steps(range(9)), "c": Steps(range(1))}
    loader = MixedLoader(loaders, weights, seed=3)
    places = [loader.place(step) for step in range(2 * len(loader))]
    assert len(loader) == 40 and Counter(task for task, _ in places[:40]) == shares
    for task in shares:
        assert [number for name, number in places if name == task] == list(range(2 * shares[task]))
    assert [name for name, _ in places[:40]] != [name for name, _ in places[40:]]
    again = MixedLoader(loaders, weights, seed=3)
    assert all(again.place(step) == places[step] for step in np.random.default_rng(0).permutation(80))
    assert [MixedLoader(loaders, weights, seed=4).place(step) for step in range(80)] != places


def test_a_task_of_a_tiny_weight_still_gets_a_step():
    loader = MixedLoader({"a": Steps(range(5)), "b": Steps(range(5))}, {"a": 1000, "b": 1}, seed=0)
    assert loader.counts == {"a": 10, "b": 1} and len(loader) == 11


def test_a_list_of_one_task_trains_as_its_recipe_alone_to_the_bit(token_world, tmp_path):
    words = [*SHORT, "train.ema_decay=0.9", "model.dropout=0.1"]
    fit_recipe(recipe_for("mr", *words), *token_world, tmp_path / "alone", threads=1)
    (tmp_path / "one.yaml").write_text("base: synth_mr\ntasks: {mr: {}}\n")
    recipe = load_recipe(str(tmp_path / "one.yaml"), [*SHAPE, *words])
    assert recipe.task == "several"
    fit_recipe(recipe, *token_world, tmp_path / "listed", threads=1)
    alone, listed = (load_model(tmp_path / name) for name in ("alone", "listed"))
    assert alone.info.recipe == recipe_from_dict(asdict(listed.info.recipe) | {"name": "synth_mr"})
    one, other = alone.model.state_dict(), listed.model.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    for kind in ("train", "val"):
        for row, prefixed in zip(*(rows_of(tmp_path / name, kind) for name in ("alone", "listed")), strict=True):
            same = {key: prefixed.get(f"mr/{key}", prefixed.get(key)) for key in row}
            assert str(same) == str(row)  # which has NaN


@pytest.fixture(scope="module")
def whole(token_world, tmp_path_factory) -> Path:
    """A run of all tasks that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    fit_recipe(cotrained(*SHORT, "model.dropout=0.1"), *token_world, run, threads=1)
    return run


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_amid_an_epoch_ends_in_the_same_bits(token_world, tmp_path, whole, workers):
    recipe, run = cotrained(*SHORT, "model.dropout=0.1"), tmp_path / "run"
    with pytest.raises(Killed):
        fit_recipe(recipe, *token_world, run, threads=1, on_step=at_step(13, kill))
    fit_recipe(recipe, *token_world, run, threads=1, loader_workers=workers, resume=True)
    assert_same_runs(whole, run)
    draw_curves(run)
    assert (run / "curves.png").stat().st_size > 10_000


def test_weights_of_heads_are_kept_by_task_and_all_others_once(whole, token_world):
    state = load_file(whole / "checkpoints" / "last" / "model.safetensors")
    heads = Counter(".".join(name.split(".")[1:3]) for name in state if name.startswith("heads."))
    assert set(heads) == {
        *(f"{task}.relevance_head" for task in ALL),
        *(f"{task}.displacement_head" for task in ("mr", "tal", "hd")),
        "hd.saliency_head",
    }
    assert sum(name.startswith("encoder.levels.2.") for name in state) == 4
    recipes = task_recipes(cotrained(*SHORT, "model.dropout=0.1"))
    for task in ALL:
        loaded = load_model(whole / "checkpoints" / "last", tasks=[task])
        assert loaded.info.recipe == recipes[task] and loaded.info.recipe.task == task
        assert bool(loaded.info.classes) == (task in ("tal", "as"))
        own = loaded.model.state_dict()
        shared = {name: own[name] for name in own if "head" not in name}
        assert all(torch.equal(value, state[name]) for name, value in shared.items()) and len(shared) > 20
        assert all(torch.equal(own[name], state[f"heads.{task}.{name}"]) for name in own.keys() - shared)
    assert load_model(whole).info.recipe.task == "mr"


def test_every_task_learns_and_the_one_checkpoint_is_evaluated_on_each(unloc, token_world, tmp_path):
    manifest, cache = token_world
    words = ["train.epochs=4", "train.eval_every_epochs=4", "train.batch_size=8", "model.width=32"]
    (tmp_path / "mine.yaml").write_text(dump_recipe(cotrained(*words)))
    run = tmp_path / "run"
    given = [word for task in ALL for word in ("--manifest", f"{task}={manifest}")]
    code, out, err = unloc("fit", tmp_path / "mine.yaml", *given, "--cache", cache, "--work-dir", run, "--threads", 1)
    assert (code, err) == (0, "") and "mean_headline" in out
    losses, metrics = rows_of(run, "train"), rows_of(run, "val")[-1]
    headlines = {"mr": "R1@0.5", "tal": "mAP@0.50", "as": "frame_accuracy", "hd": "HL-min-VeryGood-Hit1"}
    assert metrics["mean_headline"] == np.mean([metrics[f"{task}/{name}"] for task, name in headlines.items()])
    for task, headline in headlines.items():
        own = [row[f"{task}/loss"] for row in losses if f"{task}/loss" in row]
        assert np.mean(own[-5:]) < 0.85 * np.mean(own[:5]), task
        words = ("--manifest", manifest, "--cache", cache, "--split", "val", "--task", task)
        assert unloc("eval", run, *words)[0] == 0
        report = json.loads((run / "eval" / task / "val" / "metrics.json").read_text())
        assert report["task"] == task and report["metrics"][headline] == pytest.approx(metrics[f"{task}/{headline}"])
    code, _, err = unloc("eval", run, "--manifest", manifest, "--cache", cache, "--split", "val")
    assert code == 2 and "mr, tal, as, hd" in err and "--task" in err


def test_eval_takes_the_task_that_the_manifest_serves_and_refuses_others(unloc, token_world, tmp_path, whole):
    manifest, cache = token_world
    for task in ("tal", "cls"):
        save_manifest(replace(load_manifest(manifest), tasks=(task,)), tmp_path / f"{task}.jsonl")
    words = ("--cache", cache, "--split", "test", "--out", tmp_path / "out")
    code, out, err = unloc("eval", whole, "--manifest", tmp_path / "tal.jsonl", *words)
    assert (code, err) == (0, "") and "tal by protocol" in out
    for other in (["--manifest", tmp_path / "cls.jsonl"], ["--manifest", manifest, "--task", "cls"]):
        code, _, err = unloc("eval", whole, *other, *words)
        assert code == 2 and "mr, tal, as, hd" in err and "cls" in err and err.count("\n") == 1


def test_a_live_text_tower_is_shared_and_heads_start_from_those_of_their_task(text_world, tmp_path):  # noqa: F811
    words = [*SMALL, *FINETUNE, "train.epochs=0.05", "data.val_split="]
    several = ["tasks.as=null", "tasks.hd=null", "tasks.tal.data.train_split=train"]
    fit_recipe(load_recipe("cotrain_synth", [*words, *several]), *text_world, tmp_path / "a", threads=1)
    mr, tal = (load_model(tmp_path / "a", tasks=[task]).model.state_dict() for task in ("mr", "tal"))
    different = {name for name in mr if not torch.equal(mr[name], tal[name])}
    assert different and all("_head." in name for name in different) and any("text_tower" in name for name in mr)
    words += ["optim.lr=0", "optim.tower_lr=0"]
    alone = load_recipe("synth_tal", [*words, "data.train_split=train"])
    fit_recipe(alone, *text_world, tmp_path / "b", threads=1, init=tmp_path / "a")
    fit_recipe(
        load_recipe("cotrain_synth", [*words, *several]), *text_world, tmp_path / "c", threads=1, init=tmp_path / "b"
    )
    for name in ("b", "c"):
        state = load_model(tmp_path / name, tasks=["tal"]).model.state_dict()
        assert all(torch.equal(state[key], tal[key]) for key in tal), name


def test_one_image_tower_trains_on_the_frames_of_all_tasks_and_makes_caches(world, tmp_path):  # noqa: F811
    words = [*test_end_to_end.SMALL, *test_end_to_end.LIVE, "towers.text=frozen", "towers.frame_chunk=3"]
    recipe = load_recipe("cotrain_synth", [*words, "tasks.hd=null", "train.epochs=1", "data.val_split=", *SPLITS[::2]])
    options = {"kind": "frames", "threads": 1}
    fit_recipe(recipe, *world[:2], tmp_path / "whole", **options)
    with pytest.raises(Killed):
        fit_recipe(recipe, *world[:2], tmp_path / "run", **options, on_step=at_step(3, kill))
    fit_recipe(recipe, *world[:2], tmp_path / "run", **options, resume=True)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")
    trained, stock = (Encoder(EncodeConfig(tower=name, fps=2.0)) for name in (str(tmp_path / "run"), "toy"))
    assert trained.fingerprint["tower.weights_sha256"] != stock.fingerprint["tower.weights_sha256"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["tasks.mr.model.width=8"], "model.width"),
        (["tasks.mr.optim.lr=8"], "optim"),
        (["tasks.mr.weight=0"], "weights"),
        (["tasks.mr.weight=null"], "weights"),
        (["tasks.xy.weight=1"], "tasks.xy"),
        (["tasks.mr=3"], "tasks.mr"),
        (["tasks.mr.base=nowhere"], "nowhere"),
        (["tasks.mr.modle.x=1"], "did you mean model"),
        (["task=mr"], "task: got mr"),
        ([f"tasks.{task}=null" for task in ALL], "tasks none"),
        (["tasks.hd.model.saliency_head=false"], "task hd: model.saliency_head"),
        (["model.pyramid=fpn"], "num_levels"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_line(words, named):
    with pytest.raises(UnlocError, match=named) as raised:
        load_recipe("cotrain_synth", words)
    assert "\n" not in str(raised.value)


def test_a_recipe_states_what_is_shared_once_and_is_read_back_as_it_was_written(tmp_path, unloc):
    recipe = load_recipe("cotrain_synth", ["train.batch_size=8", "tasks.mr.train.batch_size=16"])
    by_task = task_recipes(recipe)
    assert [one.train.batch_size for one in by_task.values()] == [16, 8, 8, 8]
    assert by_task["tal"].data == load_recipe("synth_tal").data and by_task["tal"].optim == recipe.optim
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert again == recipe and task_recipes(again) == by_task
    code, out, _ = unloc("fit", "cotrain_synth", "--print-config")
    (tmp_path / "printed.yaml").write_text(out)
    assert code == 0 and load_recipe(str(tmp_path / "printed.yaml")) == load_recipe("cotrain_synth")
    assert "hd.saliency_head" in out and out.count("encoder") == 1


def test_a_mistake_in_the_command_is_one_line(unloc, token_world, tmp_path, whole):
    manifest, cache = token_world
    (tmp_path / "mine.yaml").write_text(dump_recipe(cotrained(*SHORT)))
    (tmp_path / "one.yaml").write_text(dump_recipe(recipe_for("mr", *SHORT)))
    for recipe, given, named in (
        ("mine", [f"mr={manifest}"], "mr, tal, as, hd"),
        ("mine", [f"cls={manifest}", manifest], "mr, tal, as, hd"),
        ("mine", [manifest, manifest], "or one --manifest"),
        ("one", [manifest, manifest], "expected one --manifest"),
        ("one", [f"mr={manifest}"], "mr="),
    ):
        words = [word for one in given for word in ("--manifest", one)]
        code, _, err = unloc(
            "fit", tmp_path / f"{recipe}.yaml", *words, "--cache", cache, "--work-dir", tmp_path / "run"
        )
        assert code == 2 and named in err and err.count("\n") == 1, (given, err)
    words = ["--manifest", manifest, "--cache", cache, "--work-dir", whole, "--resume"]
    code, _, err = unloc("fit", tmp_path / "mine.yaml", *words, "tasks.tal.decode.nms_sigma=0.5", "tasks.as=null")
    assert code == 2 and "tasks.tal.decode.nms_sigma" in err and "tasks.as" in err


def test_tasks_may_have_caches_of_other_sampling_but_not_of_other_towers(unloc, token_world, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.token_world.FPS", 4.0)
    caches = {"mr": token_world[1], "as": make_token_world(tmp_path)[1]}
    recipe, run = cotrained("train.epochs=0.1", tasks=("mr", "as")), tmp_path / "run"
    fit_recipe(recipe, token_world[0], caches, run, threads=1)
    for task, other in (("mr", "as"), ("as", "mr")):
        assert load_model(run, tasks=[task]).info.fingerprint["sampling.fps"] == {"mr": 2.0, "as": 4.0}[task]
        words = ["eval", run, "--task", task, "--manifest", token_world[0], "--split", "test"]
        assert unloc(*words, "--cache", caches[task])[0] == 0
        code, _, err = unloc(*words, "--cache", caches[other])
        assert code == 2 and "sampling.fps" in err
    fingerprint = {"tower.name": "another", "sampling.fps": 4.0}
    create_or_check(tmp_path / "other", fingerprint, {})
    with pytest.raises(FingerprintError, match=r"tower\.name.*mr.*as"):
        fit_recipe(recipe, token_world[0], caches | {"as": tmp_path / "other"}, tmp_path / "no", threads=1)
    with pytest.raises(FingerprintError, match=r"sampling\.fps"):
        fit_recipe(recipe, token_world[0], token_world[1], run, threads=1, resume=True)


def test_sizes_that_tasks_cannot_share_are_refused(token_world, tmp_path):
    with pytest.raises(ConfigError, match=r"positions\.table.*mr.*as.*data\.num_steps"):
        fit_recipe(cotrained(*SHORT, "model.positions=learned"), *token_world, tmp_path / "run", threads=1)
    assert not (tmp_path / "run").exists()
