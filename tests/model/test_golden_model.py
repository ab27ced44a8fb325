"""Our modules with given weights give the official tensors, and our own: 1e-5 absolute in float32."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIP

from unloc.config import ModelConfig
from unloc.model.heads import ConvBlocks, PointHead
from unloc.model.towers import ImageTower, TextTower, TowerChoice
from unloc.model.unloc import UnLoc

spec = importlib.util.spec_from_file_location("flax_weights", Path(__file__).with_name("flax_weights.py"))
flax_weights = importlib.util.module_from_spec(spec)
spec.loader.exec_module(flax_weights)
LEVEL_SIZES = (16, 8, 4)
OWN = Path(__file__).parents[1] / "golden" / "model.npz"


@pytest.fixture(scope="session", params=["official", "own"])
def golden(request):
    """The official implementation's tensors, and ours of the same names, which are always there (tests/golden)."""
    if request.param == "own":
        return np.load(OWN)
    return np.load(request.getfixturevalue("shared") / "golden" / "scenic" / "unloc_golden.npz")


def case(golden, name):
    params = {key.split("/params/")[1]: golden[key] for key in golden if key.startswith(f"{name}/params/")}
    arrays = {
        key.split("/", 1)[1]: torch.from_numpy(np.array(golden[key]))
        for key in golden
        if key.startswith(f"{name}/") and "/params/" not in key
    }
    return params, arrays


def tiny(pyramid, text_tokens):
    return ModelConfig(
        width=16,
        num_heads=2,
        mlp_width=32,
        num_layers=3,
        num_levels=3,
        pyramid=pyramid,
        text_tokens=text_tokens,
        num_head_convs=1,
    )


def features_of(model, *arguments):
    """What stands between fusion and heads: (B, C, P, W) points, and (B, C, K, W) text tokens of the last layer."""
    seen = {}
    model.encoder.register_forward_hook(lambda module, given, levels: seen.update(levels=levels))
    model.encoder.layers[-1].register_forward_hook(lambda module, given, tokens: seen.update(tokens=tokens))
    with torch.no_grad():
        model(*arguments)
    videos, num_tokens = len(arguments[0]), 1 if model.config.text_tokens == "eos" else arguments[2].shape[1]
    points = torch.cat(seen["levels"], dim=1).unflatten(0, (videos, -1))
    return points, seen["tokens"][:, -num_tokens:].unflatten(0, (videos, -1))


@pytest.mark.parametrize("pyramid", ["simple", "fpn"])
@pytest.mark.parametrize("text_tokens", ["eos", "all"])
def test_fusion_and_pyramid_equal_the_official_ones(golden, pyramid, text_tokens):
    name = {"simple": "simple_pyramid", "fpn": "fpn"}[pyramid]
    params, arrays = case(golden, f"fusion_{name}_{text_tokens}")
    model = UnLoc(tiny(pyramid, text_tokens), 16, 16, 16)
    model.encoder.load_state_dict(flax_weights.encoder(params, "video_text_encoder"))
    mask, text_mask = torch.ones(2, 16, dtype=torch.bool), arrays["text_mask"].bool()
    points, texts = features_of(model, arrays["video"], mask, arrays["text"], text_mask)
    torch.testing.assert_close(points, arrays["out_video"], atol=1e-5, rtol=0)
    eos = arrays["ids"].argmax(dim=1) if text_tokens == "all" else torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(texts[:, torch.arange(3), eos], arrays["out_text"], atol=1e-5, rtol=0)


def test_the_plain_encoder_with_masked_frames_equals_the_official_one(golden):
    params, arrays = case(golden, "fusion_transformer_as")
    model = UnLoc(tiny("none", "eos"), 16, 16, 16, localizes=False)
    model.encoder.load_state_dict(flax_weights.encoder(params, "video_text_encoder"))
    text_mask, frame_mask = torch.ones(3, 1, dtype=torch.bool), arrays["frame_mask"].bool()
    points, texts = features_of(model, arrays["video"], frame_mask, arrays["text_emb"][:, None], text_mask)
    torch.testing.assert_close(points.transpose(1, 2), arrays["out_video"], atol=1e-5, rtol=0)
    normed = model.encoder.norm(texts[:, :, 0])
    torch.testing.assert_close(normed, arrays["out_text"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["temporal_localization", "moment_retrieval"])
@pytest.mark.parametrize("shared_weights", [True, False])
def test_heads_equal_the_official_ones(golden, task, shared_weights):
    params, arrays = case(golden, f"head_{'shared' if shared_weights else 'separate'}_{task}")
    relevance = PointHead(16, 2, 3, shared=shared_weights, num_outputs=1, bias=-5.0)
    displacement = PointHead(16, 2, 3, shared=shared_weights, num_outputs=2, bias=2.0, displacements=True)
    relevance.load_state_dict(flax_weights.head(params, "ClassificationHead", shared=shared_weights, num_levels=3))
    displacement.load_state_dict(flax_weights.head(params, "RegressionHead", shared=shared_weights, num_levels=3))
    levels = arrays["x"].flatten(0, 1).split(LEVEL_SIZES, dim=1)
    with torch.no_grad():
        logits = relevance(levels).unflatten(0, (2, 3))
        boxes = displacement(levels).unflatten(0, (2, 3))
    if task == "moment_retrieval":
        expected_logits, expected_boxes = arrays["out"][..., :1], arrays["out"][..., 1:]
    else:  # (B, P, 3K): logit, start, end of each class
        per_class = arrays["out"].unflatten(-1, (3, 3)).transpose(1, 2)
        expected_logits, expected_boxes = per_class[..., :1], per_class[..., 1:]
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, expected_boxes, atol=1e-5, rtol=0)


def test_the_linear_head_equals_the_official_one(golden):
    params, arrays = case(golden, "head_linear")
    head = ConvBlocks(16, 0, 1, 0.0)
    head.load_state_dict(flax_weights.named("linear", flax_weights.linear(params, "output_projection")))
    with torch.no_grad():
        out = head([arrays["x"].transpose(1, 2).flatten(0, 1)]).unflatten(0, (2, 3)).squeeze(-1)
    torch.testing.assert_close(out.transpose(1, 2), arrays["out"], atol=1e-5, rtol=0)


def tiny_clip():
    vision = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 2, "head_width": 8}
    text = {"context_length": 5, "vocab_size": 100, "width": 16, "heads": 2, "layers": 2}
    return CLIP(16, vision, text, quick_gelu=True)


@pytest.mark.parametrize("frame_token", ["cls", "gap"])
def test_the_image_tower_equals_the_official_one(golden, frame_token):
    params, arrays = case(golden, f"clip_video_{'token' if frame_token == 'cls' else 'gap'}")
    tower = ImageTower(tiny_clip().visual, TowerChoice(frame_token=frame_token, projected=False), 3)
    tower.load_state_dict(flax_weights.image_tower(params, 4))
    with torch.no_grad():
        out = tower(arrays["rgb"].permute(0, 1, 4, 2, 3))
    torch.testing.assert_close(out, arrays["out"], atol=1e-5, rtol=0)


def test_the_text_tower_equals_the_official_one_at_every_valid_token(golden):
    params, arrays = case(golden, "clip_text")
    tower = TextTower(tiny_clip(), 5, projected=False)
    tower.load_state_dict(flax_weights.text_tower(params))
    valid = arrays["ids"] > 0
    with torch.no_grad():
        out = tower(arrays["ids"], valid)
    torch.testing.assert_close(out[valid], arrays["out"][valid], atol=1e-5, rtol=0)
