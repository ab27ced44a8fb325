"""Gradient replay equals plain training of the image tower."""

import copy

import pytest
import torch
from open_clip.model import CLIP

from tests.model.test_live_towers import STEPS, batch_of, recipe_with
from unloc.model.build import build_model
from unloc.training.objective import compute_losses
from unloc.training.replay import replay

VIT = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}


def model_and_batch(vision: dict):
    torch.manual_seed(0)
    clip = CLIP(16, vision, {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2})
    for name, parameter in clip.named_parameters():
        if "bn" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    recipe = recipe_with({"image": "finetune", "text": "finetune"})
    model = build_model(recipe, num_classes=0, clip=copy.deepcopy(clip), live=("image", "text")).train()
    size = vision["image_size"]
    pixels = torch.randint(0, 256, (2, STEPS, 3, size, size), dtype=torch.uint8)
    return model, batch_of(pixels, *model.text_tower.tokenize(["a cat jumps", "a dog runs away"])), recipe


def gradients_of(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("chunk", [1, 3, STEPS, 100])
def test_replayed_gradients_are_those_of_plain_training(vision, chunk):
    model, batch, recipe = model_and_batch(vision)
    plain = compute_losses(model, batch, recipe)["loss"]
    plain.backward()
    expected = gradients_of(model)
    model.zero_grad()
    tokens = model.encode_in_chunks(batch.frames, chunk).requires_grad_()
    assert not tokens.grad_fn
    losses = compute_losses(model, type(batch)(**vars(batch) | {"frames": tokens}), recipe)["loss"]
    losses.backward()
    replay(model, batch.frames, tokens.grad, chunk)
    torch.testing.assert_close(losses, plain, rtol=1e-6, atol=1e-7)
    found = gradients_of(model)
    assert found.keys() == expected.keys() and any("image_tower" in name for name in found)
    largest = max(value.norm() for value in expected.values())
    for name, value in expected.items():  # a key's bias has no gradient but rounding errors
        assert (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-8 * largest, name


def test_a_share_of_the_chunks_gives_the_gradient_on_average():
    model, batch, _ = model_and_batch(VIT)
    gradients = torch.randn(*batch.frames.shape[:2], 16, generator=torch.Generator().manual_seed(5))
    replay(model, batch.frames, gradients, 2)
    whole = model.image_tower.visual.conv1.weight.grad.clone()
    generator, total = torch.Generator().manual_seed(0), torch.zeros_like(whole)
    for _ in range(100):
        model.zero_grad()
        replay(model, batch.frames, gradients, 2, share=0.25, generator=generator)
        total += model.image_tower.visual.conv1.weight.grad / 100
    assert (total - whole).norm() / whole.norm() < 0.2


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_token_does_not_depend_on_the_frames_next_to_it(vision):
    model, batch, _ = model_and_batch(vision)
    with torch.no_grad():
        together, alone = model.image_tower(batch.frames), model.image_tower(batch.frames[:1, 2:3], 2)
    torch.testing.assert_close(together[:1, 2:3], alone, rtol=1e-5, atol=1e-6)
