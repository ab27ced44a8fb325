from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.small import small_example
from unloc.examples.batches import class_pairs, collate
from unloc.examples.loader import choose_classes
from unloc.model.unloc import UnLoc
from unloc.recipes import recipe_from_dict
from unloc.training.objective import compute_losses, rated_steps, saliency_loss

MODEL = {"width": 16, "num_heads": 2, "mlp_width": 32, "num_layers": 1, "num_levels": 2, "num_head_convs": 1}


def example(seed, *, steps=False):
    return small_example(
        seed,
        segments_steps=np.array([[1.0, 4.0], [6.0, 13.0]]),
        segment_classes=np.array([seed % 3, (seed + 1) % 3]),
        step_classes=np.repeat([seed % 3, -1], 8) if steps else None,
    )


@pytest.mark.parametrize("task", ["tal", "as", "cls"])
def test_all_classes_as_pairs_give_the_loss_and_gradients_of_all_classes_at_once(task):
    pyramid = {} if task == "tal" else {"pyramid": "none"}
    edges = [0, 4, float("inf")] if task == "tal" else [0, float("inf")]
    values = {"task": task, "model": MODEL | pyramid, "targets": {"range_edges": edges}}
    texts, mask = torch.randn(3, 4, 16), torch.ones(3, 4, dtype=torch.bool)
    examples = [example(n, steps=task == "as") for n in range(2)]
    together = collate(examples, max_text_tokens=8, class_texts=(texts, mask))
    pairs = class_pairs(together, np.array([[0, 1, 2], [2, 0, 1]]))
    torch.manual_seed(0)
    recipe = recipe_from_dict(values)
    model = UnLoc(recipe.model, 16, 16, 16, localizes=task == "tal")
    gradients = []
    for batch, count in ((together, 0), (pairs, 3)):
        recipe = recipe_from_dict(values | {"train": {"classes_per_video": count}})
        model.zero_grad()
        losses = compute_losses(model, batch, recipe)
        losses["loss"].backward()
        gradients.append([losses["loss"].detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [0, 2])
def test_bfloat16_changes_the_loss_by_its_rounding_alone_and_keeps_float32_sums_and_gradients(chunk):
    recipe = recipe_from_dict(
        {
            "task": "tal",
            "model": MODEL | {"max_texts_in_flight": chunk},
            "targets": {"range_edges": [0, 4, float("inf")]},
        }
    )
    torch.manual_seed(0)
    model = UnLoc(recipe.model, 16, 16, 16)
    class_texts = torch.randn(3, 4, 16), torch.ones(3, 4, dtype=torch.bool)
    batch = collate([example(n) for n in range(2)], max_text_tokens=8, class_texts=class_texts)
    exact = compute_losses(model, batch, recipe)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = compute_losses(model, batch, recipe)["loss"]
    rounded.backward()
    assert rounded.dtype == torch.float32 and rounded != exact
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


def test_queries_without_ratings_do_not_count_in_the_saliency_loss():
    rated, other = (replace(example(n), text=np.ones((2, 16), np.float32)) for n in range(2))
    rated = replace(rated, saliency=np.linspace(0, 1, 16).astype(np.float32))
    logits = torch.randn(2, 1, 16)

    def loss(logits, *examples):
        batch = collate(examples, max_text_tokens=8)
        return saliency_loss(logits, batch, rated_steps(batch).sum())

    torch.testing.assert_close(loss(logits, rated, other), loss(logits[:1], rated))
    assert loss(logits[1:], other) == 0


def test_chosen_classes_hold_those_present_and_no_class_twice():
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = choose_classes(np.array([5, 2, 5, -1]), 9, 6, rng)
        assert len(set(chosen.tolist())) == 6 and {2, 5} <= set(chosen.tolist())
    assert set(choose_classes(np.arange(8), 9, 3, rng).tolist()) < set(range(8))


def test_masked_steps_and_padded_segments_do_not_count():
    recipe = recipe_from_dict({"task": "tal", "model": MODEL, "targets": {"range_edges": [0, 4, float("inf")]}})
    torch.manual_seed(0)
    model = UnLoc(recipe.model, 16, 16, 16)
    texts, mask = torch.randn(3, 4, 16), torch.ones(3, 4, dtype=torch.bool)
    one = example(0)
    batch = collate([one], max_text_tokens=8, class_texts=(texts, mask))
    longer = collate(
        [one, example(1)], max_text_tokens=8, class_texts=(texts, mask)
    )  # pads nothing here: both have two segments
    assert longer.segment_text.shape == (2, 2) and batch.segment_text.tolist() == [[0, 1]]
    losses = compute_losses(model, batch, recipe)
    assert set(losses) == {"loss", "relevance", "box"} and all(torch.isfinite(v) for v in losses.values())
