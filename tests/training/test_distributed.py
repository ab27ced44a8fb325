"""Several processes over gloo train on what one process with the whole batch trains on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from tests.processes import START_METHOD
from tests.training import test_end_to_end, test_live_text
from tests.training.small import small_example
from tests.training.test_end_to_end import world  # noqa: F401 (a fixture)
from tests.training.test_live_text import text_world  # noqa: F401 (a fixture)
from tests.training.test_several_tasks import cotrained
from tests.training.test_trainer import recipe_for
from unloc.examples.batches import Batch, Example, collate
from unloc.model.unloc import UnLoc
from unloc.recipes import load_recipe, recipe_from_dict
from unloc.training.distributed import average, gathered_texts, process_count, process_mean
from unloc.training.objective import compute_losses
from unloc.training.run import rebuild_trainer
from unloc.training.trainer import Trainer

MODEL = {"width": 16, "num_heads": 2, "mlp_width": 32, "num_layers": 1, "num_levels": 2, "num_head_convs": 1}
RECIPES = {
    "mr": {"task": "mr", "model": MODEL | {"saliency_head": True}},
    "tal": {"task": "tal", "model": MODEL},
    "as": {"task": "as", "model": MODEL, "loss": {"relevance": "sigmoid"}},
}
SHARES = (slice(0, 3), slice(3, 5))  # uneven, and the second has no text as long as the first's longest


def example(seed: int, task: str) -> Example:
    rng = np.random.default_rng(seed)
    return small_example(
        seed,
        frame_mask=np.arange(16) < 16 - seed,
        text=rng.normal(size=(7 - seed, 16)).astype(np.float32),
        segments_steps=np.array([[1.0, 4.0 + seed]]) if seed != 4 else np.zeros((0, 2)),
        segment_classes=np.array([seed % 3]) if seed != 4 else np.zeros(0, dtype=np.int64),
        step_classes=np.repeat([seed % 3, -1], 8) if task == "as" else None,
        saliency=rng.uniform(size=16).astype(np.float32) if task == "mr" else None,
    )


def batch_of(share: slice, task: str) -> Batch:
    texts = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)), torch.ones(3, 4, dtype=torch.bool)
    examples = [example(seed, task) for seed in range(5)][share]
    return collate(examples, max_text_tokens=8, class_texts=None if task == "mr" else texts)


def step(task: str, share: slice) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    recipe = recipe_from_dict(
        RECIPES[task] | {"targets": {"range_edges": [0, 4, float("inf")]}, "data": {"num_steps": 16}}
    )
    torch.manual_seed(0)
    model = UnLoc(recipe.model, 16, 16, 16, localizes=task != "as")
    model.unused = torch.nn.Parameter(torch.zeros(2))
    losses = compute_losses(model, batch_of(share, task), recipe)
    losses["loss"].backward()
    if share == SHARES[0]:  # without a gradient in one process only
        next(model.parameters()).grad = None
    losses, is_stopping = average(model, losses, share == SHARES[1])
    assert is_stopping == (process_count() > 1)
    return losses["loss"].detach(), [parameter.grad for parameter in model.parameters()]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({task: step(task, SHARES[rank]) for task in RECIPES}, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    start_processes(work, args=(str(folder),), nprocs=2, start_method=START_METHOD)
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("task", RECIPES)
def test_two_processes_have_the_loss_and_gradients_of_the_global_batch(of_two_processes, task):
    total, gradients = step(task, slice(None))
    for result in of_two_processes:
        gathered, averaged = result[task]
        torch.testing.assert_close(gathered, total, atol=1e-6, rtol=1e-6)
        for one, other in list(zip(averaged, gradients, strict=True))[1:]:
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_one_process_has_its_own_texts_and_means():
    batch = batch_of(slice(None), "mr")
    texts = gathered_texts(batch)
    assert texts.tokens is batch.texts and texts.first_own == 0
    assert process_mean(torch.tensor(3.0)) == 3.0


CURVES = {
    "mr": ["data.jitter=true", "data.crop_probability=0.5"],
    "tal": ["train.classes_per_video=2", "data.jitter=true"],
    "as": ["train.classes_per_video=2"],
    "hd": [],
    "text": test_live_text.FINETUNE,
    "frames": test_end_to_end.LIVE,
    "chunks": [*test_end_to_end.LIVE, "towers.frame_chunk=3"],
    "replay": [*test_end_to_end.LIVE, "towers.frame_chunk=3", "towers.replay_share=0.3"],
    "several": ["train.batch_size=6"],
}


@pytest.fixture(scope="module")
def jobs(token_world, text_world, world) -> dict[str, tuple]:  # noqa: F811
    """Name to recipe, manifest, data and kind of data."""
    made = {}
    for name, words in CURVES.items():
        if name in ("mr", "tal", "as", "hd"):
            made[name] = recipe_for(name, *words, "train.batch_size=6"), *token_world, "cache"
        elif name == "several":
            made[name] = cotrained(*words), *token_world, "cache"
        elif name == "text":
            words = [*test_live_text.SMALL, *words, "data.train_split=train", "data.val_split=val"]
            made[name] = load_recipe("synth_mr", [*words, "train.batch_size=6"]), *text_world, "cache"
        else:
            # at the rates of the other tests training multiplies the rounding of float32 by ten at each step
            words = [*test_end_to_end.SMALL, *words, "train.batch_size=4", "optim.lr=0.001", "optim.tower_lr=0.0001"]
            made[name] = load_recipe("synth_mr", words), *world[:2], "frames"
    return made


def fit_steps(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """The metrics of the first steps, and of the validation after them."""
    trainer.run.mkdir(parents=True, exist_ok=True)
    trainer.total_steps = steps
    trainer.fit()
    rows = [json.loads(line) for line in (trainer.run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train" or (row["kind"], row["step"]) == ("val", steps)]


def fit_share(rank: int, count: int, folder: str, jobs: dict[str, tuple], steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    for name, (*job, kind) in jobs.items():
        rows = fit_steps(rebuild_trainer(*job, Path(folder) / name, kind=kind), steps)
        (Path(folder) / f"{name}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


SLOW = [pytest.param(list(CURVES), count, 50, marks=pytest.mark.slow) for count in (2, 4)]


@pytest.mark.parametrize(("names", "count", "steps"), [(["tal", "text", "replay", "several"], 2, 3), *SLOW])
def test_the_loss_curve_of_several_processes_is_that_of_one(jobs, tmp_path, names, count, steps):
    jobs = {name: jobs[name] for name in names}
    arguments = count, str(tmp_path), jobs, steps
    start_processes(fit_share, args=arguments, nprocs=count, start_method=START_METHOD)
    for name, (*job, kind) in jobs.items():
        one = fit_steps(rebuild_trainer(*job, tmp_path / "one" / name, kind=kind), steps)
        several = json.loads((tmp_path / f"{name}.json").read_text())
        assert [row["step"] for row in one] == [*range(1, steps + 1), steps] and one[-1].pop("kind") == "val"
        assert one[-1].keys() < several[-1].keys()
        for row, other in zip(one[:-1], several[:-1], strict=True):
            kinds = row.pop("kind"), other.pop("kind")
            norms = row.pop("grad_norm"), other.pop("grad_norm")  # with a tower, more sensitive to the last bits
            assert kinds == ("train", "train") and other == pytest.approx(row, rel=1e-4, abs=1e-4), (name, row)
            assert norms[1] == pytest.approx(norms[0], rel=1e-2), (name, row)
