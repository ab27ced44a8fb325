"""Pairs, masks and widths of tokens, and how the layers of heads and pyramid start."""

import pytest
import torch

from tests.model.test_variants import TINY, build, inputs
from unloc.config import ModelConfig
from unloc.model.heads import ConvBlocks
from unloc.model.pyramid import DepthwiseConv
from unloc.model.unloc import UnLoc, parameter_counts

VARIANTS = [
    {},
    {"pyramid": "fpn"},
    {"pyramid": "none"},
    {"text_tokens": "eos", "positions": "learned"},
    {"positions": "none", "share_heads": False},
    {"fusion": "late"},
    {"saliency_head": True},
    {"fusion": "late", "saliency_head": True},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_own_pairs_are_the_diagonal_of_all_pairs(changes):
    model = build(**changes)
    frames, frame_mask, texts, text_mask = inputs(texts=2)
    every = model(frames, frame_mask, texts, text_mask, pairing="all")
    own = model(frames, frame_mask, texts, text_mask, pairing="own")
    points = 16 if changes.get("pyramid") == "none" else 28
    assert every.relevance.shape == (2, 2, points) and every.displacements.shape == (2, 2, points, 2)
    for name in ("relevance", "displacements", "saliency"):
        if getattr(every, name) is not None:
            diagonal = torch.stack([getattr(every, name)[b, b] for b in range(2)])[:, None]
            torch.testing.assert_close(getattr(own, name), diagonal, atol=1e-5, rtol=1e-5)
    assert (every.displacements >= 0).all()
    assert (every.saliency is not None) == ("saliency_head" in changes)


def test_masked_text_tokens_and_frames_change_nothing():
    model = build()
    frames, frame_mask, texts, text_mask = inputs()
    frame_mask[:, 12:] = False
    outputs = model(frames, frame_mask, texts, text_mask, pairing="all").relevance
    texts = texts.masked_fill(~text_mask[..., None], 1e3)
    frames = frames.masked_fill(~frame_mask[..., None], -1e3)
    # The pyramid's and heads' convolutions see neighbours, so points next to the masked frames may change.
    again = model(frames, frame_mask, texts, text_mask, pairing="all").relevance
    torch.testing.assert_close(outputs[..., :6], again[..., :6], atol=1e-4, rtol=1e-4)


def test_steps_are_labelled_without_boxes():
    outputs = build(pyramid="none", head="linear", localizes=False)(*inputs(), pairing="all")
    assert outputs.relevance.shape == (2, 3, 16) and outputs.displacements is None


def test_tokens_of_other_widths_are_projected():
    model = UnLoc(ModelConfig(**TINY), 24, 8, 16)
    _, frame_mask, _, text_mask = inputs()
    outputs = model(torch.randn(2, 16, 24), frame_mask, torch.randn(3, 5, 8), text_mask, pairing="all")
    assert outputs.relevance.shape == (2, 3, 28)
    assert parameter_counts(model)["video_projection"] == 24 * 16


# -- initialisation ---------------------------------------------------------------------------------------------------


def initialised(name: str) -> tuple[torch.Tensor, float]:
    """Some weights of one kind of layer, enough to measure, and the standard deviation that flax gives it."""
    torch.manual_seed(0)
    block, level = ConvBlocks(64, 3, 8, 0.0), DepthwiseConv(20000, 2)
    return {
        "head": (torch.cat([conv.weight.detach().flatten() for conv in block.convs]), (1 / (3 * 64)) ** 0.5),
        "last": (ConvBlocks(512, 1, 64, 0.0).linear.weight.detach().flatten(), (2 / (512 + 64)) ** 0.5),
        "pyramid": (level.conv.weight.detach().flatten(), (1 / 3) ** 0.5),
    }[name]


@pytest.mark.parametrize("name", ["head", "last", "pyramid"])
def test_layers_of_head_and_pyramid_start_as_in_flax_cut_at_two_deviations(name):
    weights, std = initialised(name)
    assert weights.std().item() == pytest.approx(std, rel=0.02)
    limit = 2 * std / 0.87962566
    assert 0.98 * limit < weights.abs().max().item() <= limit
