"""A checkpoint with its towers: one loader for it too, and pixels and ids predict what their tokens predict."""

import numpy as np
import pytest
import torch

from unloc.examples.sources import VideoFrames
from unloc.inference.load import CheckpointInfo, LoadedModel, load_model
from unloc.inference.predict import predict_moments
from unloc.model.build import build_model
from unloc.model.clip import pretrained_clip
from unloc.model.towers import TowerChoice, load_tower
from unloc.recipes import recipe_from_dict
from unloc.training.folder import save_checkpoint

TEXTS = ["a red circle moves", "nothing"]


@pytest.fixture(scope="module")
def toy():
    return load_tower(TowerChoice())


def saved(run, toy, live):
    """A run with an untrained model behind the live ones of toy's towers, and that model."""
    sizes = {"num_heads": 2, "mlp_width": 16, "num_layers": 1, "num_levels": 2, "num_head_convs": 1, "width": 16}
    towers = {"name": "toy", "image": "finetune", "text": "frozen"}
    values = {"task": "mr", "model": sizes, "towers": towers, "targets": {"range_edges": [0, 4, float("inf")]}}
    recipe = recipe_from_dict(values | {"data": {"num_steps": 8}})
    clip = pretrained_clip("toy", None, None)[0]
    towers = {"clip": clip, "live": live}
    dims = {"frame_dim": toy.image.dim, "text_dim": toy.text.dim}
    torch.manual_seed(0)
    model = build_model(recipe, num_classes=0, **towers, **dims).eval()
    fingerprint = {f"tower.{key}": value for key, value in toy.fingerprint.items()}
    info = CheckpointInfo(recipe=recipe, classes=(), fingerprint=fingerprint, step=1, live_towers=live, **dims)
    save_checkpoint(run, info, model.state_dict(), {}, is_best=True)
    return model, info


@pytest.mark.parametrize("live", [("image", "text"), ("text",), ("image",)])
def test_a_checkpoint_with_towers_is_loaded_and_gives_what_its_core_gives_on_their_tokens(toy, tmp_path, live):
    model, info = saved(tmp_path / "run", toy, live)
    loaded = load_model(tmp_path / "run")
    assert loaded.info == info
    state = loaded.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [name for name in ("image", "text") if getattr(loaded.model, f"{name}_tower") is not None] == list(live)
    pixels = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    tokens, text_tokens = toy.encode_images(pixels).numpy(), [text.numpy() for text in toy.encode_texts(TEXTS)]
    ids, mask = clip_ids(model, toy)
    given = VideoFrames("v", pixels.numpy() if "image" in live else tokens, np.arange(8.0), 8.0)
    texts = [row[: count.sum()].numpy() for row, count in zip(ids, mask, strict=True)]
    found = predict_moments(loaded, [given] * 2, texts if "text" in live else text_tokens)
    core = LoadedModel(loaded.model.core, info)
    expected = predict_moments(core, [VideoFrames("v", tokens, np.arange(8.0), 8.0)] * 2, text_tokens)
    for (windows, _), (others, _) in zip(found, expected, strict=True):
        np.testing.assert_allclose(windows, others, atol=1e-4)


def clip_ids(model, toy):
    return (model.text_tower or toy.text).tokenize(TEXTS)
