"""Two processes over gloo train on what one process with the whole batch trains on (spec §3.4)."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.training.small import small_example
from unloc.examples.batches import Batch, Example, collate
from unloc.model.unloc import UnLoc
from unloc.recipes import recipe_from_dict
from unloc.training.distributed import gathered_texts, process_mean
from unloc.training.objective import compute_losses

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


def step(task: str, share: slice, wrap: type | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    recipe = recipe_from_dict(
        RECIPES[task] | {"targets": {"range_edges": [0, 4, float("inf")]}, "data": {"num_steps": 16}}
    )
    torch.manual_seed(0)
    model = UnLoc(recipe.model, 16, 16, 16, localizes=task != "as")
    wrapped = wrap(model) if wrap else model
    losses = compute_losses(wrapped, batch_of(share, task), recipe)
    losses["loss"].backward()
    return losses["loss"].detach(), [parameter.grad for parameter in model.parameters()]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {task: step(task, SHARES[rank], DistributedDataParallel) for task in RECIPES}
    torch.save(
        {task: (process_mean(total), gradients) for task, (total, gradients) in results.items()}, f"{folder}/{rank}"
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("task", RECIPES)
def test_two_processes_have_the_loss_and_gradients_of_the_global_batch(of_two_processes, task):
    total, gradients = step(task, slice(None))
    for result in of_two_processes:
        gathered, averaged = result[task]
        torch.testing.assert_close(gathered, total, atol=1e-6, rtol=1e-6)
        for one, other in zip(averaged, gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_one_process_has_its_own_texts_and_means():
    batch = batch_of(slice(None), "mr")
    texts = gathered_texts(batch)
    assert texts.tokens is batch.texts and texts.first_own == 0
    assert process_mean(torch.tensor(3.0)) == 3.0
