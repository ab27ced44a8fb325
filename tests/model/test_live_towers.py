"""Towers that can train: what they start as, what is frozen, and that frozen + cached equals frozen + live."""

import copy
import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.small_clip import small_clip
from tests.training.small import small_example
from unloc.errors import TowerError
from unloc.examples.batches import collate
from unloc.model.build import EndToEnd, build_model
from unloc.model.towers import ImageTower, T5TextTower, TextTower, Tower, TowerChoice, t5_text_tower
from unloc.recipes import recipe_from_dict
from unloc.training.objective import compute_losses
from unloc.training.optim import build_optimizer

STEPS = 8
LONG = "a " + "very " * 40 + "small cat jumps"


@pytest.fixture
def clip():
    return small_clip()


@pytest.fixture
def tower(clip):
    """The same behind the interface that makes caches."""
    return Tower(copy.deepcopy(clip), TowerChoice(tower="tiny"))


def images(videos=2):
    return torch.randn(videos, STEPS, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_class_embeddings_start_as_clips_so_that_tokens_are_its_image_embeddings(clip, tower):
    live = ImageTower(clip.visual, TowerChoice(), STEPS)
    assert live.class_embeddings.shape == (STEPS, 32)
    expected = tower.encode_images(images().flatten(0, 1)).unflatten(0, (2, STEPS))
    torch.testing.assert_close(live(images()), expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():  # each frame index has its own
        live.class_embeddings[3] *= -1.0
    changed = (live(images()) - expected).abs().amax(dim=(0, 2)) > 1e-3
    assert changed.nonzero().flatten().tolist() == [3]


def test_gap_is_the_mean_of_patches_that_see_no_class_token(clip):
    visual = copy.deepcopy(clip.visual)
    live = ImageTower(clip.visual, TowerChoice(frame_token="gap", projected=False))
    frame = images()[0, :1]
    patches = visual.conv1(frame).flatten(2).transpose(1, 2) + visual.positional_embedding[1:]
    expected = visual.ln_post(visual.transformer(visual.ln_pre(patches))).mean(dim=1)
    torch.testing.assert_close(live(images())[0, 0], expected[0])
    assert live(images()).shape == (2, STEPS, 32)


def test_text_tokens_are_those_of_the_cache_and_truncation_keeps_eos(clip, tower):
    live = TextTower(clip, 24, projected=True)
    texts = ["a cat jumps", "a small dog runs to the door", LONG]
    ids, mask = live.tokenize(texts)
    tokens = live(ids, mask)
    for row, expected in enumerate(tower.encode_texts(texts)):
        torch.testing.assert_close(tokens[row][mask[row]], expected, atol=1e-5, rtol=1e-4)
    short = TextTower(clip, 6, projected=False)
    ids, mask = short.tokenize(texts)
    assert ids.shape == (3, 6) and ids[2, -1] == 49407 and mask[2].all()
    assert short(ids, mask).shape == (3, 6, 24) and len(short.positions) == 6


RECIPE = {
    "task": "mr",
    "model": {"width": 16, "num_heads": 2, "mlp_width": 32, "num_layers": 2, "num_levels": 2, "num_head_convs": 1},
    "targets": {"range_edges": [0, 4, float("inf")]},
    "data": {"num_steps": STEPS, "max_text_tokens": 24},
}


def recipe_with(towers, **model):
    return recipe_from_dict(
        RECIPE
        | {"model": RECIPE["model"] | model, "towers": {"name": "tiny", "image": "frozen", "text": "frozen"} | towers}
    )


def batch_of(frames, texts, text_mask):
    text, segments = np.zeros((2, 1), dtype=np.float32), np.array([[1.0, 3.0]])
    examples = [small_example(n, steps=STEPS, width=1, text=text, segments_steps=segments + n) for n in range(2)]
    batch = collate(examples, max_text_tokens=8)
    return replace(batch, frames=frames, texts=texts, text_mask=text_mask, all_tokens_valid=False)


def build(clip, recipe):
    torch.manual_seed(1)
    return build_model(recipe, num_classes=0, clip=copy.deepcopy(clip), live=("image", "text"))


def losses_and_gradients(model, batch, recipe):
    model.train().zero_grad()
    losses = compute_losses(model, batch, recipe)
    losses["loss"].backward()
    return losses["loss"].detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("image", "text"), list(itertools.product(["frozen", "finetune"], repeat=2)))
def test_gradients_reach_a_tower_only_where_table_4_finetunes_it(clip, image, text):
    recipe = recipe_with({"image": image, "text": text}, project_frames=True, project_texts=True)
    train_image, train_text = image == "finetune", text == "finetune"
    model = build(clip, recipe)
    batch = batch_of(images(), *model.text_tower.tokenize(["a cat jumps", "a dog runs away"]))
    _, gradients = losses_and_gradients(model, batch, recipe)
    parts = {name.split(".")[0] for name in gradients}
    assert ("image_tower" in parts, "text_tower" in parts) == (train_image, train_text)
    projections = {"core.video_projection.weight", "core.text_projection.weight"}
    assert projections <= gradients.keys() and all(gradients[name].abs().sum() > 0 for name in projections)
    assert model.image_tower.training == train_image and model.text_tower.training == train_text
    trained = [p for p in model.image_tower.parameters() if p.grad is not None]
    assert all(p.grad.abs().sum() > 0 for p in trained) and bool(trained) == train_image
    torch.testing.assert_close(model.core.video_projection.weight, clip.visual.proj.T)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("text_tokens", ["all", "eos"])
@pytest.mark.parametrize("frame_token", ["cls", "gap"])
def test_frozen_and_cached_give_the_loss_and_gradients_of_frozen_and_live(clip, projected, text_tokens, frame_token):
    recipe = recipe_with(
        {"frame_token": frame_token}, project_frames=not projected, project_texts=not projected, text_tokens=text_tokens
    )
    live = build(clip, recipe)
    ids, mask = live.text_tower.tokenize(["a cat jumps", "a small dog runs to the door"])
    total, gradients = losses_and_gradients(live, batch_of(images(), ids, mask), recipe)
    with torch.no_grad():
        frames, texts = live.image_tower(images()), live.text_tower(ids, mask)
    cached = EndToEnd(live.core)
    again, others = losses_and_gradients(cached, batch_of(frames, texts, mask), recipe)
    torch.testing.assert_close(total, again)
    assert gradients.keys() == others.keys() and len(gradients) > 20
    for name in gradients:
        torch.testing.assert_close(gradients[name], others[name])


def test_frozen_and_live_equal_tokens_that_the_extraction_made(clip, tower):
    recipe = recipe_with({})
    live, texts = build(clip, recipe), ["a cat jumps", "a small dog runs to the door"]
    ids, mask = live.text_tower.tokenize(texts)
    total, gradients = losses_and_gradients(live, batch_of(images(), ids, mask), recipe)
    frames = tower.encode_images(images().flatten(0, 1)).unflatten(0, (2, STEPS)).clone()
    tokens = torch.nn.utils.rnn.pad_sequence(tower.encode_texts(texts), batch_first=True)
    cached = EndToEnd(live.core)
    again, others = losses_and_gradients(cached, batch_of(frames, tokens, mask), recipe)
    torch.testing.assert_close(total, again, atol=1e-5, rtol=1e-5)
    for name in gradients:
        torch.testing.assert_close(gradients[name], others[name], atol=1e-5, rtol=1e-3)


def test_gap_tokens_of_an_image_tower_that_pools_in_its_own_way_are_refused():
    with pytest.raises(TowerError, match="pools"):
        ImageTower(torch.nn.Linear(2, 2), TowerChoice(frame_token="gap"))


def test_without_transformers_t5_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TowerError, match=r"t5-small.*unloc\[t5\]"):
        t5_text_tower("t5-small", 16)


def test_t5_gives_one_token_per_piece_and_padding_changes_nothing():
    transformers = pytest.importorskip("transformers", reason="the extra `t5` is not installed")
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    tower = T5TextTower(transformers.T5EncoderModel(config), None, 8).eval()
    ids = torch.tensor([[5, 9, 1, 0, 0], [5, 9, 7, 3, 1]])
    tokens = tower(ids, ids > 0)
    assert tokens.shape == (2, 5, 16) and tower.dim == 16
    torch.testing.assert_close(tokens[:1, :3], tower(ids[:1, :3], ids[:1, :3] > 0), atol=1e-5, rtol=1e-4)


def test_towers_and_the_projections_that_stand_for_theirs_train_at_the_towers_rate(clip):
    recipe = recipe_with({"image": "finetune"}, project_frames=True, project_texts=True)
    model = build(clip, recipe)
    optimizer = build_optimizer(model, recipe.optim)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    slow = {name for name, rate in rates.items() if rate == 0.01}
    assert slow == {name for name in rates if name.startswith(("image_tower.", "core.video_pro", "core.text_pro"))}
    assert {rates[name] for name in rates.keys() - slow} == {0.1}
    plain = build_optimizer(build(clip, recipe_with({})).core, recipe.optim)  # projections that only fit widths
    assert [group["lr"] for group in plain.param_groups] == [0.1, 0.1]
