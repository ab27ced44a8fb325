"""The losses of a batch equal the official implementation's, and our own (tests/golden)."""

import math

import pytest
import torch

from tests.golden.cases import case
from unloc.examples.batches import Batch
from unloc.model.unloc import Outputs
from unloc.ops.points import Targets
from unloc.recipes import recipe_from_dict
from unloc.training import objective
from unloc.training.objective import compute_losses

BOX_NAMES = {"iou+center_offset_squared": "iou+center_offset_squared", "l1": "l1_over_union", "iou": "iou"}
BOX_NAMES |= {"l1+iou": "l1_over_union+iou", "0.5*l1+1.0*iou": "0.5*l1_over_union+1.0*iou"}


@pytest.fixture
def total(monkeypatch):
    """The total of `compute_losses` for given outputs, of one pyramid level: the points are the steps.

    The official targets of these cases are drawn at random; no segments have them.
    """

    def compute(recipe, outputs, frame_mask, text_valid, *, targets=None, step_labels=None):
        monkeypatch.setattr(objective, "localization_targets", lambda *_: targets)
        videos, steps = frame_mask.shape
        batch = Batch(
            video_ids=(),
            frames=torch.zeros(videos, steps, 1),
            frame_mask=frame_mask,
            texts=torch.zeros(len(text_valid), 1, 1),
            text_mask=text_valid[:, None],
            segments_steps=torch.zeros(videos, 1, 2),
            segment_text=torch.zeros(videos, 1, dtype=torch.long),
            step_labels=step_labels,
        )
        one_level = {"model": {"pyramid": "none"}, "targets": {"range_edges": [0, math.inf]}}
        losses = compute_losses(lambda *given, pairing: outputs, batch, recipe_from_dict(one_level | recipe))
        assert losses["loss"] == sum(value for key, value in losses.items() if key != "loss")
        return float(losses["loss"])

    return compute


@pytest.mark.parametrize("relevance", ["focal", "sigmoid"])
@pytest.mark.parametrize("box", BOX_NAMES)
def test_tal_losses_are_the_official_ones(scenic, total, relevance, box):
    _, held = case(scenic, "loss_tal")
    out = held["logits"].unflatten(-1, (3, 3)).transpose(1, 2)  # video, class, point: logit, start, end
    targets = Targets(held["label"].bool().transpose(1, 2), held["displacements"].transpose(1, 2))
    recipe = {"task": "tal", "loss": {"relevance": relevance, "box": BOX_NAMES[box]}}
    outputs, classes = Outputs(out[..., 0], out[..., 1:], None), torch.ones(3, dtype=torch.bool)
    found = total(recipe, outputs, held["frame_mask"].bool(), classes, targets=targets)
    # float32 steps are 2e-6 wide at the size of the sigmoid losses: two of them are allowed
    assert found == pytest.approx(float(held[f"{relevance}|{box}"]), abs=1e-6, rel=2e-7)


@pytest.mark.parametrize("gathered", [True, False])
def test_mr_losses_are_the_official_ones(scenic, total, gathered):
    """Two captions of each of two videos, one of them padding; all pairs, or (not gathered) each video's own."""
    _, held = case(scenic, "loss_mr")
    owner, caption = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    label, displacements = held["label"][..., 0].bool().flatten(0, 1), held["displacements"].flatten(0, 1)
    frame_mask, logits, valid = held["frame_mask"].bool(), held["logits"], held["caption_mask"].bool().flatten()
    if gathered:
        own = torch.arange(2)[:, None] == owner
        targets = Targets(own[..., None] & label, displacements.expand(2, -1, -1, -1))
    else:  # a row for each caption, with its video
        frame_mask, logits = frame_mask[owner], logits[owner, caption][:, None]
        targets = Targets(label[:, None], displacements[:, None])
    recipe = {"task": "mr", "loss": {"box": "iou"}, "train": {"negatives": "batch" if gathered else "own"}}
    found = total(recipe, Outputs(logits[..., 0], logits[..., 1:], None), frame_mask, valid, targets=targets)
    assert found == pytest.approx(float(held[f"focal|iou|all_gather={gathered}"]), abs=1e-6)


def test_the_as_loss_is_the_official_one(scenic, total):
    _, held = case(scenic, "loss_as")
    recipe = {"task": "as", "model": {"pyramid": "none", "head": "linear"}, "loss": {"relevance": "sigmoid"}}
    outputs, labels = Outputs(held["logits"].transpose(1, 2), None, None), held["label"].transpose(1, 2)
    found = total(
        recipe, outputs, held["frame_mask"].bool(), torch.ones(3, dtype=torch.bool), step_labels=labels.bool()
    )
    assert found == pytest.approx(float(held["sigmoid"]), abs=1e-6)
