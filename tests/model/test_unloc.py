import dataclasses

import pytest
import torch

from unloc.config import ModelConfig
from unloc.errors import ConfigError
from unloc.model.heads import ConvBlocks
from unloc.model.pyramid import DepthwiseConv
from unloc.model.unloc import UnLoc, parameter_counts
from unloc.recipes import load_recipe, recipe_from_dict

TINY = ModelConfig(width=16, num_heads=2, mlp_width=32, num_layers=3, num_levels=3, num_head_convs=2)


def inputs(videos=2, texts=3, steps=16, dim=16):
    torch.manual_seed(1)
    frame_mask = torch.ones(videos, steps, dtype=torch.bool)
    text_mask = torch.arange(5)[None] < torch.randint(2, 6, (texts, 1))
    return torch.randn(videos, steps, dim), frame_mask, torch.randn(texts, 5, dim), text_mask


def build(config=TINY, **options):
    torch.manual_seed(0)
    return UnLoc(config, options.pop("frame_dim", 16), options.pop("text_dim", 16), 16, **options).eval()


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
    model = build(dataclasses.replace(TINY, **changes))
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


def test_texts_in_chunks_give_the_outputs_and_gradients_of_all_at_once():
    arguments = inputs(texts=5)
    results = []
    for chunk in (0, 2):
        model = build(dataclasses.replace(TINY, max_texts_in_flight=chunk)).train()
        outputs = model(*arguments, pairing="all")
        (outputs.relevance.square().sum() + outputs.displacements.sum()).backward()
        results.append([outputs.relevance.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


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


def test_without_text_there_is_a_logit_and_a_box_per_class():
    model = build(dataclasses.replace(TINY, fusion="none"), num_classes=7)
    outputs = model(*inputs(), pairing="all")
    assert outputs.relevance.shape == (2, 7, 28) and outputs.displacements.shape == (2, 7, 28, 2)


def test_steps_are_labelled_without_boxes():
    config = dataclasses.replace(TINY, pyramid="none", head="linear")
    outputs = build(config, localizes=False)(*inputs(), pairing="all")
    assert outputs.relevance.shape == (2, 3, 16) and outputs.displacements is None


def test_tokens_of_other_widths_are_projected():
    model = build(frame_dim=24, text_dim=8)
    _, frame_mask, _, text_mask = inputs()
    outputs = model(torch.randn(2, 16, 24), frame_mask, torch.randn(3, 5, 8), text_mask, pairing="all")
    assert outputs.relevance.shape == (2, 3, 28)
    assert parameter_counts(model)["video_projection"] == 24 * 16


def test_impossible_shapes_are_clear_errors():
    with pytest.raises(ConfigError, match="as many layers"):
        recipe_from_dict({"model": {"pyramid": "fpn", "num_layers": 2, "num_levels": 3}})
    with pytest.raises(ConfigError, match="1 to 4"):
        ModelConfig(num_head_convs=5)
    with pytest.raises(ConfigError, match=r"not a multiple of model\.num_heads"):
        recipe_from_dict({"model": {"width": 100}})
    with pytest.raises(ConfigError, match="give one per level"):
        recipe_from_dict({"model": {"pyramid": "none"}})
    with pytest.raises(ConfigError, match=r"loss\.box"):
        recipe_from_dict({"loss": {"box": "iou+l3"}})
    assert load_recipe("synth_mr").model.num_levels == 4


def test_the_official_base_fusion_and_heads_have_their_parameter_counts():
    model = UnLoc(ModelConfig(num_head_convs=4, text_tokens="eos"), 512, 512, 128)
    counts = parameter_counts(model)
    assert counts["encoder"] == 18_926_592
    assert counts["relevance_head"] + counts["displacement_head"] == 6_305_291


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
