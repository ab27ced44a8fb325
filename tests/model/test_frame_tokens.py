"""Kinds of frame tokens that a cache may hold: against the towers that train, and against open_clip's own layers."""

import copy

import open_clip
import pytest
import torch

from tests.small_clip import small_clip
from unloc.errors import TowerError
from unloc.model.towers import ImageTower, Tower, TowerChoice, load_tower


@pytest.fixture(scope="module")
def clip():
    return small_clip(layers=3, std=0.1)


def images(count=3):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tower_of(clip, **choice):
    return Tower(copy.deepcopy(clip), TowerChoice(tower="tiny", **choice))


@pytest.mark.parametrize("kind", ["cls", "gap"])
@pytest.mark.parametrize("projected", [True, False])
def test_a_cached_kind_is_the_token_of_the_tower_that_trains(clip, kind, projected):
    choice = {"frame_token": kind, "projected": projected}
    tower = tower_of(clip, **choice)
    live = ImageTower(copy.deepcopy(clip.visual), TowerChoice(**choice), 3)
    torch.testing.assert_close(tower.encode_images(images()), live(images()[None])[0].detach(), atol=1e-5, rtol=1e-4)
    assert tower.fingerprint | choice | {"frame_dim": live.dim} == tower.fingerprint


@pytest.mark.parametrize("kind", ["cls", "gap"])
def test_the_last_layers_stand_side_by_side_the_last_one_last(clip, kind):
    every = tower_of(clip, frame_token=kind, num_layers=3, projected=False).encode_images(images())
    last = tower_of(clip, frame_token=kind, projected=False).encode_images(images())
    assert every.shape == (3, 96)
    torch.testing.assert_close(every[:, 64:], last, atol=1e-5, rtol=1e-4)
    assert (every[:, :32] - every[:, 32:64]).abs().max() > 0.01
    shorter = copy.deepcopy(clip)
    shorter.visual.transformer.resblocks = shorter.visual.transformer.resblocks[:2]
    before = tower_of(shorter, frame_token=kind, projected=False).encode_images(images())
    torch.testing.assert_close(every[:, 32:64], before, atol=1e-5, rtol=1e-4)


def test_the_plain_kind_is_clips_image_embedding_to_the_bit(clip):
    tokens = ImageTower(copy.deepcopy(clip.visual), TowerChoice())(images())
    torch.testing.assert_close(tokens, clip.encode_image(images()), atol=0, rtol=0)


def test_bfloat16_keeps_direction_and_names_itself_and_the_weights_as_they_came(clip):
    exact, rounded = tower_of(clip), tower_of(clip, tower_dtype="bfloat16")
    tokens = [tower.encode_images(images(20)) for tower in (exact, rounded)]
    assert tokens[1].dtype == torch.float32 and not torch.equal(*tokens)
    assert torch.nn.functional.cosine_similarity(*tokens).min() > 0.999
    assert rounded.fingerprint == exact.fingerprint | {"dtype": "bfloat16"}
    torch.testing.assert_close(exact.encode_texts(["a cat"])[0], rounded.encode_texts(["a cat"])[0], atol=0, rtol=0)


@pytest.mark.slow
def test_bfloat16_embeddings_of_vit_b_32_have_a_cosine_above_0_9999():
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-32", pretrained=None)
    frames = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    exact = tower_of(clip).encode_images(frames)
    rounded = tower_of(clip, tower_dtype="bfloat16").encode_images(frames)
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.9999


@pytest.mark.parametrize(("flag", "expected"), [("amx_bf16", "bfloat16"), ("avx512_bf16", "bfloat16"), ("", "float32")])
def test_auto_follows_the_instructions_of_the_cpu(monkeypatch, flag, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False, flag: True})
    assert TowerChoice(tower_dtype="auto").resolved().tower_dtype == expected
    for stated in ("float32", "bfloat16"):
        assert TowerChoice(tower_dtype=stated).resolved().tower_dtype == stated


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float32")])
def test_of_a_machine_with_a_gpu_the_gpu_counts(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert TowerChoice(tower_dtype="auto").resolved().tower_dtype == expected


def test_the_toy_tower_has_the_means_of_its_stages_and_says_what_it_has_not():
    tower = load_tower(TowerChoice(frame_token="gap", projected=False, num_layers=2))
    tokens = tower.encode_images(torch.rand(2, 3, 96, 96))
    assert tokens.shape == (2, tower.fingerprint["frame_dim"]) == (2, 256 + 512)
    for choice in ({"frame_token": "gap"}, {"num_layers": 2}, {"projected": False}):
        with pytest.raises(TowerError, match=r"--tower toy.*residual"):
            load_tower(TowerChoice(**choice))


def test_more_layers_than_the_tower_has_are_refused(clip):
    with pytest.raises(TowerError, match=r"--last-k.*3 layers"):
        tower_of(clip, num_layers=4)
