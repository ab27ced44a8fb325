"""A text tower that trains on cached frames (Table 4): what it starts from, that it learns, that nothing is lost."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_trainer import assert_same_runs
from unloc.annotations.schema import load_manifest
from unloc.cache.opening import open_cache
from unloc.cache.reading import Cache
from unloc.cache.writing import VideoTokens, create_or_check, token_checksum, write_texts, write_video_shard
from unloc.config import TowersConfig
from unloc.errors import ConfigError, FingerprintError, InputError
from unloc.examples.sources import CachedTokens
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.load import load_model
from unloc.inference.predict import predict_split
from unloc.model.towers import TowerChoice, load_tower, weights_sha256
from unloc.recipes import load_recipe
from unloc.training.inputs import cached_inputs, clip_of_cache, splits_of
from unloc.training.objective import compute_losses
from unloc.training.run import build_trainer, fit_recipe

SMALL = ["model.width=16", "model.num_heads=2", "model.mlp_width=32", "model.num_layers=1", "data.num_steps=32"]
SMALL += ["model.num_head_convs=1", "optim.tower_lr=0.001", "train.epochs=1", "train.eval_every_epochs=0.5"]
FINETUNE = ["towers.name=toy", "towers.text=finetune"]


@pytest.fixture(scope="module")
def text_world(token_world, tmp_path_factory) -> tuple[Path, Path]:
    """The world of tokens as if toy had made its cache, in float32: texts are toy's own tokens."""
    manifest, tokens = token_world
    encoder, cache = Encoder(EncodeConfig(fps=2.0, dtype="float32")), tmp_path_factory.mktemp("text") / "cache"
    create_or_check(cache, encoder.fingerprint, {})
    videos = []
    for video_id in (made_up := Cache(tokens)).places:
        cached = made_up[video_id]
        frames = np.pad(cached.frames.astype(np.float32), [(0, 0), (0, 0), (0, encoder.tower.image.dim - 16)])
        frames = np.ascontiguousarray(frames.transpose(1, 0, 2))
        meta = {key: made_up.row(video_id)[key] for key in ("video_id", "duration_seconds", "decoder")}
        meta |= {"times_seconds": cached.times_seconds.tolist(), "tokens_sha256": token_checksum(frames)}
        videos.append(VideoTokens(meta, frames))
    write_video_shard(cache, "00000", videos, [], "float32")
    names = list(load_manifest(manifest).classes)
    texts = zip(names, (tokens.numpy() for tokens in encoder.tower.encode_texts(names)), strict=True)
    write_texts(cache, texts, "float32")
    return manifest, cache


def trainer_of(text_world, run, *words, task="mr"):
    """A trainer of a `synth_` recipe, before its first step."""
    manifest, cache = text_world
    splits = ["data.train_split=train", "data.val_split=val"]
    recipe = load_recipe(f"synth_{task}", [*SMALL, *splits, *words])
    inputs = cached_inputs(recipe, cache)
    train, val = splits_of(recipe, load_manifest(manifest), inputs.source)
    return build_trainer(recipe, {task: replace(inputs, train=train, val=val)}, run)


@pytest.mark.parametrize("task", ["mr", "tal", "as", "hd"])
def test_a_live_tower_starts_with_the_loss_and_gradients_of_its_cached_tokens(text_world, tmp_path, task):
    live, cached = (trainer_of(text_world, tmp_path, *words, task=task) for words in (FINETUNE, []))
    (batch,), (tokens,) = (list(itertools.islice(one.loader.batches(0, 9), 1)) for one in (live, cached))
    assert not batch.texts.is_floating_point() and torch.equal(batch.frames, tokens.frames)
    losses = [compute_losses(one.model, of, one.recipe)["loss"] for one, of in ((live, batch), (cached, tokens))]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    for loss in losses:
        loss.backward()
    for (name, mine), theirs in zip(live.model.core.named_parameters(), cached.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert all(parameter.grad is not None for parameter in live.model.text_tower.parameters())


@pytest.fixture(scope="module")
def trained(text_world, tmp_path_factory) -> Path:
    """A run whose text tower trained."""
    run = tmp_path_factory.mktemp("trained") / "run"
    fit_recipe(load_recipe("synth_mr", [*SMALL, *FINETUNE]), *text_world, run, threads=1)
    return run


def test_the_tower_trains_at_its_own_rate_is_saved_and_predicts(text_world, trained, tmp_path, unloc):
    held = tmp_path / "held"
    fit_recipe(load_recipe("synth_mr", [*SMALL, *FINETUNE, "optim.tower_lr=0"]), *text_world, held, threads=1)
    before = trainer_of(text_world, tmp_path / "new", *FINETUNE).model.text_tower.state_dict()
    for run, moves in ((trained, True), (held, False)):
        own = load_model(run).model.text_tower.state_dict()
        assert any(not torch.equal(own[key], before[key]) for key in before) == moves
    loaded, val = load_model(trained), load_manifest(text_world[0]).select("val")
    source = CachedTokens(open_cache(text_world[1]))
    predicted = predict_split(loaded, val, source)
    loaded.model.text_tower.load_state_dict(before)
    pairs = zip(predicted, predict_split(loaded, val, source), strict=True)
    assert any(not np.array_equal(one.windows, other.windows) for one, other in pairs)
    words = [
        "--manifest",
        text_world[0],
        "--cache",
        text_world[1],
        "--split",
        "val",
        "--out",
        tmp_path / "metrics.json",
    ]
    code, _, stderr = unloc("eval", trained, *words)
    assert code == 0, stderr
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["recipe"]["towers"]["text"] == "finetune" and report["recipe"]["name"] == "synth_mr"
    best = json.loads((trained / "checkpoints" / "best" / "checkpoint.json").read_text())["metrics"]
    assert report["metrics"]["R5@0.3"] == pytest.approx(best["R5@0.3"])


@pytest.mark.parametrize("task", ["tal", "as"])
def test_class_names_pass_the_tower_of_the_model_too(text_world, tmp_path, task):
    words = [*SMALL, *FINETUNE, "data.train_split=train", "data.val_split=val", "data.prompts=true"]
    run = tmp_path / "run"
    fit_recipe(load_recipe(f"synth_{task}", words), *text_world, run, threads=1)  # no prompt is in the cache
    assert load_model(run).info.live_towers == ("text",)


def test_batches_in_parts_meet_all_captions_of_the_batch(text_world, trained, tmp_path):
    run = tmp_path / "run"
    fit_recipe(load_recipe("synth_mr", [*SMALL, *FINETUNE, "train.accumulate=3"]), *text_world, run, threads=1)
    rows = [[json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()] for one in (trained, run)]
    for one, other in zip(*rows, strict=True):
        if one["kind"] == "train":
            assert {**other, "kind": 0} == pytest.approx({**one, "kind": 0}, rel=1e-3)


def test_an_interrupted_run_resumes_to_the_same_weights(text_world, trained, tmp_path):
    def stop(step, total, values):
        if step == 2:
            raise KeyboardInterrupt

    run, recipe = tmp_path / "run", load_recipe("synth_mr", [*SMALL, *FINETUNE])
    with pytest.raises(KeyboardInterrupt):
        fit_recipe(recipe, *text_world, run, threads=1, on_step=stop)
    fit_recipe(recipe, *text_world, run, threads=1, resume=True)
    assert_same_runs(trained, run)


def test_a_run_above_cached_texts_starts_one_with_a_live_tower_but_not_the_other_way_round(
    text_world, trained, tmp_path
):
    cached = tmp_path / "cached"
    fit_recipe(load_recipe("synth_mr", SMALL), *text_world, cached, threads=1)
    recipe = load_recipe("synth_mr", [*SMALL, *FINETUNE, "optim.lr=0", "optim.tower_lr=0"])
    fit_recipe(recipe, *text_world, tmp_path / "live", threads=1, init=cached)
    theirs, mine = load_model(cached).model.state_dict(), load_model(tmp_path / "live").model.core.state_dict()
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    fit_recipe(recipe, *text_world, tmp_path / "further", threads=1, init=trained)
    states = (load_model(run).model.state_dict().values() for run in (tmp_path / "further", trained))
    assert all(map(torch.equal, *states))
    with pytest.raises(InputError, match=r"towers\.text=finetune"):
        fit_recipe(load_recipe("synth_mr", SMALL), *text_world, tmp_path / "no", threads=1, init=trained)


def test_the_weights_are_those_that_made_the_cache(text_world, token_world, weights_file, tiny, tmp_path):
    fingerprint = open_cache(text_world[1]).fingerprint
    towers = TowersConfig(name="toy", text="finetune")
    with pytest.raises(FingerprintError, match="weights_sha256"):
        clip_of_cache(towers, fingerprint | {"tower.weights_sha256": "0"}, "cache")
    recipe = load_recipe("synth_mr", [*SMALL, *FINETUNE, "towers.name=made up"])
    with pytest.raises(ConfigError, match=r"towers\.text=cached"):
        fit_recipe(recipe, *token_world, tmp_path / "run")
    own = load_tower(TowerChoice(tower=tiny, pretrained=str(weights_file), like="openai"))
    fingerprint = {f"tower.{key}": value for key, value in own.fingerprint.items()}
    with pytest.raises(ConfigError, match=r"towers\.pretrained=PATH"):
        clip_of_cache(TowersConfig(name=tiny, pretrained=weights_file.name), fingerprint, "cache")
    clip = clip_of_cache(TowersConfig(name=tiny, pretrained=str(weights_file)), fingerprint, "cache")
    assert weights_sha256(clip) == own.fingerprint["weights_sha256"]
