"""Trained projections start as CLIP's own, from a cache with tokens before them; other caches are refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.extract import ExtractOptions, extract
from pipeline.repair import Repair
from tests.conftest import write_manifest
from unloc.annotations.schema import QueryRow, VideoRow, load_manifest
from unloc.cache.merge import merge
from unloc.cache.opening import Home, open_cache
from unloc.cache.writing import audit_cache, write_projections
from unloc.errors import CacheError, ConfigError, InputError
from unloc.inference.encode import EncodeConfig
from unloc.inference.load import load_model
from unloc.recipes import load_recipe
from unloc.training.inputs import cached_inputs, splits_of
from unloc.training.run import build_trainer, fit_recipe

TEXTS = ["a cat jumps", "a dog runs to the door"]
BEFORE = {"projected": False, "texts_projected": False}
SIZES = ["model.num_heads=2", "model.mlp_width=8", "model.num_layers=4", "data.num_steps=8", "data.val_split="]
SIZES += ["model.width=16", "train.epochs=1", "train.batch_size=2", "towers.image=cached", "towers.text=cached"]
SIZES += ["data.fps=null", "data.num_frames=8"]


@pytest.fixture
def manifest(tmp_path):
    rows = [VideoRow(name, "train", 2.0) for name in ("v0", "v1")]
    rows += [QueryRow(f"v{n}", "train", f"q{n}", text, [[0.5, 1.5]], [0], [[4]]) for n, text in enumerate(TEXTS)]
    return write_manifest(tmp_path / "m.jsonl", *rows)


def cached(path, video_folder, names=("v0", "v1"), **config):
    files = {name: video_folder / f"{name}.mp4" for name in names}
    config = {"tower": "tiny", "pretrained": "openai", "dtype": "float32", "num_frames": 8} | config
    extract(path, EncodeConfig(**config), ExtractOptions(workers=0), files, [], TEXTS)
    return path


def started(recipe, manifest, cache, tmp_path):
    inputs = cached_inputs(recipe, cache)
    train, val = splits_of(recipe, load_manifest(manifest), inputs.source)
    return build_trainer(recipe, {recipe.task: replace(inputs, train=train, val=val)}, tmp_path / "run")


def scenic(*overrides):
    return load_recipe("scenic/charades_b", [*SIZES, "towers.name=tiny", "towers.pretrained=openai", *overrides])


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_trained_projection_starts_as_clips_own_so_that_the_model_begins_as_on_projected_tokens(
    tiny, manifest, video_folder, tmp_path, num_layers
):
    before = cached(tmp_path / "before", video_folder, **BEFORE, num_layers=num_layers)
    behind = cached(tmp_path / "behind", video_folder)
    assert open_cache(before)["v0"].frames.shape[2] == 32 * num_layers
    assert open_cache(before).texts(TEXTS)[0].shape[1] == 24
    trained = started(scenic(), manifest, before, tmp_path)
    plain = started(scenic("model.project_frames=false", "model.project_texts=false"), manifest, behind, tmp_path)
    frames = trained.model.video_projection(torch.tensor(open_cache(before)["v0"].frames))
    torch.testing.assert_close(frames, torch.tensor(open_cache(behind)["v0"].frames), atol=1e-5, rtol=1e-4)
    for one, other in zip(open_cache(before).texts(TEXTS), open_cache(behind).texts(TEXTS), strict=True):
        torch.testing.assert_close(trained.model.text_projection(torch.tensor(one)), torch.tensor(other))
    plain.model.load_state_dict(trained.model.state_dict(), strict=False)
    outputs = [t.model(*inputs(t), pairing="own").relevance for t in (trained, plain)]
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-3)


def inputs(trainer):
    batch = trainer.loader.batch([0, 1], 0)
    return batch.frames, batch.frame_mask, batch.texts, batch.text_mask


def test_a_cache_that_moved_needs_no_weights_and_the_run_trains_and_loads(
    tiny, manifest, video_folder, tmp_path, monkeypatch
):
    made = cached(tmp_path / "made", video_folder, **BEFORE)
    shutil.move(made, tmp_path / "moved")
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda config: pytest.fail("needs weights"))
    fit_recipe(scenic("optim.warmup_epochs=0"), manifest, tmp_path / "moved", tmp_path / "run", threads=1)
    trained, start = load_model(tmp_path / "run").model, open_cache(tmp_path / "moved").projections["frames"]
    moved = (trained.video_projection.weight.detach().numpy() - start.T).std() / start.std()
    assert 0 < moved < 0.2


@pytest.mark.parametrize(
    ("kept", "refused", "option"),
    [
        ({}, "model.project_frames", "--no-projection"),
        ({"projected": False}, "model.project_texts", "--no-text-projection"),
        ({"texts_projected": False}, "model.project_frames", "--no-projection"),
    ],
)
def test_tokens_behind_the_projection_are_refused_with_the_key_and_the_way_out(
    tiny, manifest, video_folder, tmp_path, kept, refused, option
):
    cache = cached(tmp_path / "cache", video_folder, **kept)
    with pytest.raises(ConfigError, match=f"{refused}: .*{option}.*{refused}=false") as told:
        fit_recipe(scenic(), manifest, cache, tmp_path / "run")
    assert "\n" not in str(told.value) and not (tmp_path / "run").exists()


def test_a_residual_network_an_older_cache_and_other_widths_are_refused(tiny, manifest, video_folder, tmp_path):
    of_toy = ("towers.name=toy", "towers.pretrained=shipped", "towers.frame_token=gap")
    toy = {"tower": "toy", "pretrained": None, "frame_token": "gap"}
    cache = cached(tmp_path / "toy", video_folder, **BEFORE, **toy)
    with pytest.raises(ConfigError, match=r"model\.project_frames: .*residual network"):
        fit_recipe(scenic(*of_toy), manifest, cache, tmp_path / "run")
    cache = cached(tmp_path / "cache", video_folder, **BEFORE)
    with pytest.raises(ConfigError, match=r"model\.width: 8.*model\.width=16"):
        fit_recipe(scenic("model.width=8"), manifest, cache, tmp_path / "run")
    (cache / "projections.json").unlink()
    with pytest.raises(ConfigError, match=r"projections\.json"):
        fit_recipe(scenic(), manifest, cache, tmp_path / "run")
    cached(tmp_path / "cache", video_folder, **BEFORE)
    assert started(scenic(), manifest, cache, tmp_path).model.video_projection.weight.std() > 0.1


def test_projections_are_merged_published_audited_and_mended(tiny, video_folder, tmp_path):
    one = cached(tmp_path / "one", video_folder, ("v0",), **BEFORE)
    two = cached(tmp_path / "two", video_folder, ("v1",), **BEFORE)
    merge(tmp_path / "both", [one, two])
    cached("memory://projections/cache", video_folder, **BEFORE)
    stated = open_cache(one).projections
    assert {kind: weight.shape for kind, weight in stated.items()} == {"frames": (32, 16), "texts": (24, 16)}
    for other in (tmp_path / "both", "memory://projections/cache"):
        for kind, weight in open_cache(other).projections.items():
            np.testing.assert_array_equal(weight, stated[kind])
        assert open_cache(other).projections.keys() == stated.keys()
    raw = (one / "projections.json").read_bytes()
    values = json.loads(raw)["values"] | {"frames": {"shape": [1, 1], "float32": "AACAPw=="}}
    write_projections(tmp_path, {})
    (one / "projections.json").write_text(json.dumps({"values": values, "crc32c": "00000000"}))
    with pytest.raises(CacheError, match=r"projections\.json: damaged"):
        _ = open_cache(one).projections
    damages = audit_cache(one)
    assert [damage.place for damage in damages.damages] == ["projections.json"]
    Repair(Home(one), lambda video_id, file: None, ExtractOptions(workers=0)).run()
    assert (one / "projections.json").read_bytes() == raw and not audit_cache(one).damages


def test_a_cache_with_embeddings_has_no_projections_and_the_baseline_wants_just_these(
    tiny, manifest, video_folder, tmp_path, unloc
):
    from unloc.inference.evaluate_run import baseline_predictions

    behind, before = cached(tmp_path / "behind", video_folder), cached(tmp_path / "before", video_folder, **BEFORE)
    assert not (behind / "projections.json").exists() and open_cache(behind).projections == {}
    assert len(baseline_predictions("mr", load_manifest(manifest), open_cache(behind))) == len(TEXTS)
    with pytest.raises(InputError, match=r"tower\.projected.*tower\.texts_projected"):
        baseline_predictions("mr", load_manifest(manifest), open_cache(before))


def test_random_weights_are_told_by_cache_info_fit_and_eval(tiny, manifest, video_folder, tmp_path, unloc):
    words = ("--videos", video_folder, "--cache", tmp_path / "cache", "--frames", 8, "--workers", 0)
    assert unloc("extract", manifest, *words, "--tower", "tiny", "--pretrained", "none")[0] == 0
    assert open_cache(tmp_path / "cache").fingerprint["tower.pretrained"] == "none"
    told = [unloc("cache", "info", tmp_path / "cache")[1]]
    sizes = [*SIZES, "towers.name=tiny", "towers.pretrained=none"]
    fit = ("fit", "charades_b", *sizes, "-m", manifest, "-c", tmp_path / "cache", "--work-dir", tmp_path / "run")
    told.append(unloc(*fit)[2])
    told.append((tmp_path / "run" / "log.txt").read_text())
    scored = ("--manifest", manifest, "--cache", tmp_path / "cache", "--split", "train", "--out", tmp_path / "m.json")
    told += [unloc("eval", tmp_path / "run", *scored)[2], (tmp_path / "m.json").read_text()]
    told += [unloc("eval", "--baseline", *scored)[2]]
    for text in told:
        assert "random weights (--pretrained none)" in text
