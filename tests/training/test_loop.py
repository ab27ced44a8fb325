"""The loop: parts of a batch add up to the batch, a step waits for nothing, and what is logged is right."""

import json

import numpy as np
import pytest
import torch

from tests.model.test_compile import Recorder
from tests.training.small import small_example
from tests.training.test_trainer import Killed, at_step, kill, metrics_of, recipe_for, weights_of
from unloc.errors import ConfigError, DivergedError
from unloc.examples.batches import class_pairs, collate
from unloc.model.unloc import UnLoc
from unloc.recipes import recipe_from_dict
from unloc.tasks import task_named
from unloc.training import trainer as trainer_module
from unloc.training.objective import part_losses, split_batch
from unloc.training.run import fit_recipe

MODEL = {"width": 16, "num_heads": 2, "mlp_width": 32, "num_layers": 1, "num_levels": 2, "num_head_convs": 1}
CASES = {
    "mr": {"task": "mr", "model": MODEL | {"saliency_head": True}},
    "own": {"task": "mr", "model": MODEL, "train": {"negatives": "own"}},
    "hd": {"task": "hd", "model": MODEL | {"saliency_head": True}},
    "tal": {"task": "tal", "model": MODEL},
    "shared": {"task": "tal", "model": MODEL | {"displacements": "shared"}},
    "pairs": {"task": "tal", "model": MODEL, "train": {"classes_per_video": 2}},
    "as": {"task": "as", "model": MODEL, "loss": {"relevance": "sigmoid"}},
    "as pairs": {"task": "as", "model": MODEL, "train": {"classes_per_video": 1}},
    "cls": {"task": "cls", "model": MODEL, "loss": {"relevance": "sigmoid"}},
    "cls pairs": {"task": "cls", "model": MODEL, "train": {"classes_per_video": 2}},
}


def recipe_of(case):
    edges = {"targets": {"range_edges": [0, 4, float("inf")]}, "data": {"num_steps": 16}}
    return recipe_from_dict(CASES[case] | edges)


def batch_of(recipe, count=5):
    """Videos of different lengths and texts, one without segments, one without ratings."""
    examples = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        fields = {"text": rng.normal(size=(7 - seed, 16)).astype(np.float32), "frame_mask": np.arange(16) < 16 - seed}
        fields |= {"segments_steps": np.array([[1.0, 4.0 + seed]]), "segment_classes": np.array([seed % 3])}
        if seed == 3:
            fields |= {"segments_steps": np.zeros((0, 2)), "segment_classes": np.zeros(0, dtype=np.int64)}
        if recipe.task == "as":
            fields["step_classes"] = np.repeat([seed % 3, -1], 8)
        if recipe.task in ("mr", "hd") and seed != 1:
            fields["saliency"] = rng.uniform(size=16).astype(np.float32)
        examples.append(small_example(seed, **fields))
    if recipe.task in ("mr", "hd"):
        return collate(examples, max_text_tokens=8)
    texts = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)), torch.ones(3, 4, dtype=torch.bool)
    batch = collate(examples, max_text_tokens=8, class_texts=texts)
    chosen = recipe.train.classes_per_video
    return class_pairs(batch, np.array([[2, 0], [1, 2], [0, 1], [2, 1], [0, 2]])[:, :chosen]) if chosen else batch


@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_to_the_losses_gradients_and_positives_of_the_whole_batch(case):
    recipe, found = recipe_of(case), []
    for count in (1, 2, 5, 9):
        torch.manual_seed(0)
        model = UnLoc(recipe.model, 16, 16, 16, localizes=task_named(recipe.task).localizes)
        parts, sums = split_batch(batch_of(recipe), recipe, count), {}
        assert len(parts) == min(count, 5)
        for part in parts:
            losses = part_losses(model, part, recipe)
            losses["loss"].backward()
            for key, value in losses.items():
                sums[key] = sums.get(key, 0) + value.detach()
        sums["positives"] = sum(part.positives for part in parts)
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        found.append(sums | gradients)
    assert found[0]["positives"].sum() > 0 and len(found[0]) > 20
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, value in found[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_more_parts_than_videos_are_refused():
    with pytest.raises(ConfigError, match=r"train\.accumulate: 5 parts"):
        recipe_for("mr", "train.batch_size=4", "train.accumulate=5")


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_read_nothing_back(case):
    recipe = recipe_of(case)
    model, batch = UnLoc(recipe.model, 16, 16, 16, localizes=task_named(recipe.task).localizes), batch_of(recipe)
    with Recorder() as recorder:
        for part in split_batch(batch, recipe, 2):
            part_losses(model, part, recipe)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert not recorder.names & {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select"}


@pytest.fixture(scope="module")
def whole(token_world, tmp_path_factory):
    """A run of 8 steps, validated at 3, 6 and 8."""
    run = tmp_path_factory.mktemp("whole") / "run"
    fit_recipe(recipe_for("mr", *EIGHT), *token_world, run, threads=1)
    return run


EIGHT = ["train.epochs=0.4", "train.eval_every_epochs=0.15"]


def rows_of(run, kind="train"):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


@pytest.mark.parametrize("task", ["mr", "tal", "as", "hd"])
def test_a_run_in_parts_has_the_losses_and_weights_of_a_run_with_whole_batches(token_world, tmp_path, task):
    for name, words in (("one", []), ("parts", ["train.accumulate=3"])):
        recipe = recipe_for(task, "train.epochs=0.3", "data.val_split=''", "optim.name=sgd", *words)
        fit_recipe(recipe, *token_world, tmp_path / name, threads=1)
    for one, other in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "parts"), strict=True):
        assert {**other, "kind": 0} == pytest.approx({**one, "kind": 0}, rel=1e-4, abs=1e-6)
    one, other = weights_of(tmp_path / "one"), weights_of(tmp_path / "parts")
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-6)


def test_a_row_has_what_was_asked_for_and_speed_is_apart(whole):
    row, speed = rows_of(whole)[0], rows_of(whole, "speed")
    parts = {"relevance", "box", "grad_norm", "positives_0", "positives_1", "positives_2"}
    assert set(row) == {"kind", "step", "epoch", "loss", "lr"} | parts
    assert sum(row[f"positives_{level}"] for level in range(3)) > 0 and row["grad_norm"] > 0
    assert len(speed) == len(rows_of(whole)) == 8
    assert all(0 <= each["data_wait"] <= 1 and each["samples_per_second"] > 0 < each["memory_gib"] for each in speed)


def test_rows_every_n_steps_are_those_of_every_step_and_the_last_is_there(token_world, tmp_path, whole):
    run = tmp_path / "run"
    recipe = recipe_for("mr", *EIGHT, "train.log_every=3")
    with pytest.raises(Killed):
        fit_recipe(recipe, *token_world, run, threads=1, on_step=at_step(5, kill))
    fit_recipe(recipe, *token_world, run, threads=1, resume=True)
    assert rows_of(run) == [row for row in rows_of(whole) if row["step"] in (3, 6, 8)]
    assert weights_of(run).keys() == weights_of(whole).keys()
    fit_recipe(recipe_for("mr", *EIGHT), *token_world, run, threads=1, resume=True)  # how often is no other recipe


def as_on_a_gpu(monkeypatch):
    """The loop reads losses only when it must."""
    monkeypatch.setattr(trainer_module.Trainer, "reads_at_once", False)


def test_a_loop_that_reads_late_ends_in_the_same_bits(token_world, tmp_path, whole, monkeypatch):
    as_on_a_gpu(monkeypatch)
    run, seen = tmp_path / "run", []
    recipe = recipe_for("mr", *EIGHT, "train.log_every=4")
    fit_recipe(recipe, *token_world, run, threads=1, on_step=lambda step, total, now: seen.append(now["loss"]))
    assert rows_of(run) == [row for row in rows_of(whole) if row["step"] in (4, 8)]
    assert metrics_of(run)[-1] == metrics_of(whole)[-1] and rows_of(run, "val") == rows_of(whole, "val")
    expected = [row["loss"] for row in rows_of(whole)]  # also read: before a checkpoint, with the next batch
    assert seen == [expected[step] for step in (0, 0, 0, 3, 3, 3, 6, 7)]


@pytest.mark.parametrize("broken_at", [2, 5])
def test_weights_after_a_loss_that_is_not_finite_are_never_saved(token_world, tmp_path, monkeypatch, broken_at):
    as_on_a_gpu(monkeypatch)
    calls, losses_of = [], trainer_module.part_losses

    def broken(model, part, recipe):
        losses = losses_of(model, part, recipe)
        calls.append(part.batch.video_ids)
        return losses | {"loss": losses["loss"] * (float("nan") if len(calls) == broken_at else 1.0)}

    monkeypatch.setattr(trainer_module, "part_losses", broken)
    recipe = recipe_for("mr", *EIGHT, "train.log_every=100", "train.checkpoint_minutes=1e-9")
    with pytest.raises(DivergedError, match=f"after step {broken_at - 1}") as raised:
        fit_recipe(recipe, *token_world, tmp_path / "run", threads=1)
    assert all(video_id in str(raised.value) for video_id in calls[broken_at - 1])
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "run").values())
    monkeypatch.undo()
    fit_recipe(recipe, *token_world, tmp_path / "run", threads=1, resume=True)


@pytest.mark.parametrize("decay", [0.9])
def test_the_moving_average_is_that_of_torch(token_world, tmp_path, decay):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    recipe = recipe_for("mr", "train.epochs=0.2", f"train.ema_decay={decay}", "data.val_split=''")
    seen = []
    fit = trainer_module.Trainer._update

    def spied(self, write):
        fit(self, write)
        if not seen:
            seen.append(AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)))
        seen[0].update_parameters(self.model)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer_module.Trainer, "_update", spied)
        fit_recipe(recipe, *token_world, tmp_path / "run", threads=1)
    for key, value in weights_of(tmp_path / "run").items():
        torch.testing.assert_close(seen[0].module.state_dict()[key], value)
