"""Our modules with given weights give the official tensors, and our own: 1e-5 absolute in float32."""

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.golden.cases import case
from tests.model import flax_weights
from unloc.config import ModelConfig
from unloc.model.build import build_model
from unloc.model.clip import WeightSettings, clip_model, pretrained_clip
from unloc.model.towers import TowerChoice, load_tower
from unloc.model.unloc import UnLoc
from unloc.recipes import recipe_from_dict

LEVEL_SIZES = (16, 8, 4)


def small(**changes):
    sizes = {"width": 16, "num_heads": 2, "mlp_width": 32, "num_layers": 3, "num_levels": 3, "num_head_convs": 2}
    return ModelConfig(**sizes | changes)


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
def test_fusion_and_pyramid_equal_the_official_ones(scenic, pyramid, text_tokens):
    name = {"simple": "simple_pyramid", "fpn": "fpn"}[pyramid]
    params, arrays = case(scenic, f"fusion_{name}_{text_tokens}")
    model = UnLoc(small(pyramid=pyramid, text_tokens=text_tokens), 16, 16, 16)
    model.encoder.load_state_dict(flax_weights.encoder(params, "video_text_encoder"))
    mask, text_mask = torch.ones(2, 16, dtype=torch.bool), arrays["text_mask"].bool()
    points, texts = features_of(model, arrays["video"], mask, arrays["text"], text_mask)
    torch.testing.assert_close(points, arrays["out_video"], atol=1e-5, rtol=0)
    eos = arrays["ids"].argmax(dim=1) if text_tokens == "all" else torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(texts[:, torch.arange(3), eos], arrays["out_text"], atol=1e-5, rtol=0)


def test_the_plain_encoder_with_masked_frames_equals_the_official_one(scenic):
    params, arrays = case(scenic, "fusion_transformer_as")
    model = UnLoc(small(pyramid="none", text_tokens="eos"), 16, 16, 16, localizes=False)
    model.encoder.load_state_dict(flax_weights.encoder(params, "video_text_encoder"))
    text_mask, frame_mask = torch.ones(3, 1, dtype=torch.bool), arrays["frame_mask"].bool()
    points, texts = features_of(model, arrays["video"], frame_mask, arrays["text_emb"][:, None], text_mask)
    torch.testing.assert_close(points.transpose(1, 2), arrays["out_video"], atol=1e-5, rtol=0)
    normed = model.encoder.norm(texts[:, :, 0])
    torch.testing.assert_close(normed, arrays["out_text"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["temporal_localization", "moment_retrieval"])
@pytest.mark.parametrize("shared_weights", [True, False])
def test_heads_equal_the_official_ones(scenic, task, shared_weights):
    params, arrays = case(scenic, f"head_{'shared' if shared_weights else 'separate'}_{task}")
    model = UnLoc(small(share_heads=shared_weights), 16, 16, 16)
    relevance, displacement = model.relevance_head, model.displacement_head
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


def test_the_linear_head_equals_the_official_one(scenic):
    params, arrays = case(scenic, "head_linear")
    head = UnLoc(small(pyramid="none", head="linear"), 16, 16, 16, localizes=False).relevance_head
    head.load_state_dict(flax_weights.named("linear", flax_weights.linear(params, "output_projection")))
    with torch.no_grad():
        out = head([arrays["x"].transpose(1, 2).flatten(0, 1)]).unflatten(0, (2, 3)).squeeze(-1)
    torch.testing.assert_close(out.transpose(1, 2), arrays["out"], atol=1e-5, rtol=0)


# -- towers -----------------------------------------------------------------------------------------------------------

ARCHITECTURE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 5, "vocab_size": 100, "width": 16, "heads": 2, "layers": 2},
}
NOT_PROJECTED = {"projected": False, "texts_projected": False}


@pytest.fixture
def weights_of(list_model, tmp_path):
    """Writes the weights file of a model that open_clip lists, some of them given, the others random."""
    name, file = list_model("golden", ARCHITECTURE), tmp_path / "golden.safetensors"

    def write(given):
        save_file(clip_model(name, WeightSettings()).state_dict() | given, file)
        return str(file)

    return write


def live_towers(file, frame_token="cls"):
    """The towers of a model that trains, for videos of three frames."""
    recipe = recipe_from_dict(
        {
            "model": {"project_frames": True, "project_texts": True, "pyramid": "none", "width": 16, "num_heads": 2},
            "targets": {"range_edges": [0, float("inf")]},
            "towers": {"name": "golden", "image": "frozen", "text": "frozen", "frame_token": frame_token}
            | {"frame_embeddings": True},
            "data": {"num_steps": 3, "max_text_tokens": 5},
        }
    )
    clip, _, _ = pretrained_clip("golden", file, None)
    return build_model(recipe, num_classes=0, clip=clip, live=("image", "text")).eval()


@pytest.mark.parametrize("frame_token", ["cls", "gap"])
@torch.no_grad()
def test_frame_tokens_of_a_loaded_and_of_a_live_tower_equal_the_official_ones(scenic, weights_of, frame_token):
    params, arrays = case(scenic, f"clip_video_{'token' if frame_token == 'cls' else 'gap'}")
    images, weights = arrays["rgb"].permute(0, 1, 4, 2, 3), flax_weights.image_tower(params, 4)
    if frame_token == "cls":  # officially each frame index has a class embedding of its own
        of_frames = torch.from_numpy(params["class_embedding"])
    else:
        of_frames, positions = torch.zeros(3, 16), "visual.positional_embedding"
        weights[positions] = torch.cat([of_frames[:1], weights[positions]])
    for index, embedding in enumerate(of_frames):
        file = weights_of(weights | {"visual.class_embedding": embedding.clone()})
        tower = load_tower(TowerChoice(tower="golden", pretrained=file, frame_token=frame_token, **NOT_PROJECTED))
        tokens = tower.encode_images(images[:, index])
        torch.testing.assert_close(tokens, arrays["out"][:, index], atol=1e-5, rtol=0)
    live = live_towers(file, frame_token).image_tower
    if frame_token == "cls":
        live.class_embeddings.copy_(of_frames)
    torch.testing.assert_close(live(images), arrays["out"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_text_tokens_of_a_loaded_and_of_a_live_tower_equal_the_official_ones(scenic, weights_of, monkeypatch):
    params, arrays = case(scenic, "clip_text")
    valid = arrays["ids"] > 0
    monkeypatch.setattr(open_clip, "tokenize", lambda texts, context_length: arrays["ids"].long())
    file = weights_of(flax_weights.text_tower(params))
    tower = load_tower(TowerChoice(tower="golden", pretrained=file, **NOT_PROJECTED))
    for row, tokens in enumerate(tower.encode_texts(["one", "two", "three"])):
        torch.testing.assert_close(tokens, arrays["out"][row][valid[row]], atol=1e-5, rtol=0)
    tokens = live_towers(file).text_tower(arrays["ids"], valid)
    torch.testing.assert_close(tokens[valid], arrays["out"][valid], atol=1e-5, rtol=0)
