"""Training the image tower on packed frames: it learns, resumes, equals replayed training, and makes caches."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import render_video
from tests.training.test_trainer import Killed, assert_same_runs, at_step, kill
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest, save_manifest
from unloc.errors import ConfigError, CoverageError, InputError, MissingError
from unloc.inference.load import load_model
from unloc.model.towers import TextTower
from unloc.recipes import load_recipe
from unloc.training.run import fit_recipe
from unloc.video.frame_shards import FrameSpec, pack_frames
from unloc.video.reading import FrameSampling

LABELS = ("moves left", "jumps")
SMALL = ["model.width=16", "model.num_heads=2", "model.mlp_width=32", "model.num_layers=1", "data.num_steps=8"]
SMALL += ["model.num_head_convs=1", "train.batch_size=2", "train.epochs=2", "train.eval_every_epochs=1"]
SMALL += ["optim.name=sgd", "optim.lr=0.01", "optim.tower_lr=0.01", "optim.warmup_epochs=0", "optim.schedule=constant"]
SMALL += ["targets.range_edges=[0,2,4,8,inf]", "data.train_split=train", "data.val_split=val"]
LIVE = ["towers.name=toy", "towers.image=finetune", "towers.text=finetune"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(manifest, packed frames, videos) of six videos."""
    folder, rows = tmp_path_factory.mktemp("world"), []
    (folder / "videos").mkdir()
    files = {}
    for number in range(6):
        video_id, split = f"v{number}", "val" if number > 3 else "train"
        files[video_id] = render_video(folder / "videos" / f"{video_id}.mp4", num_frames=30 + number, seed=number)
        rows += [VideoRow(video_id, split, None), InstanceRow(video_id, split, LABELS[number % 2], [0.3, 2.0])]
        rows.append(QueryRow(video_id, split, f"q{number}", f"the square moves {number}", [[0.3, 2.0]]))
    manifest = build_manifest(name="m", tasks=("mr", "tal", "as"), rows=rows, classes=LABELS)
    save_manifest(manifest, folder / "m.jsonl")
    pack_frames(list(files), files, folder / "frames", FrameSpec(sampling=FrameSampling(num_frames=12), size=112))
    return folder / "m.jsonl", folder / "frames", folder / "videos"


def fitted(world, run, *words, task="mr", kind="frames", **options):
    recipe = load_recipe(f"synth_{task}", [*SMALL, *LIVE, *words])
    fit_recipe(recipe, world[0], world[1 if kind == "frames" else 2], run, kind=kind, threads=1, **options)
    return load_model(run)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    fitted(world, run)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run / "checkpoints" / "last").model.state_dict()


def moved(one: dict, other: dict, part: str) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one if part in key and key in other)


def test_both_towers_train_and_a_frozen_one_stays(world, trained, tmp_path):
    fitted(world, tmp_path / "frozen", "towers.image=frozen")
    before = weights(tmp_path / "frozen")
    assert moved(weights(trained), before, "image_tower") > 1e-4
    fitted(world, tmp_path / "still", "towers.image=frozen", "towers.text=frozen", "optim.lr=0")
    assert moved(before, weights(tmp_path / "still"), "image_tower") == 0
    assert moved(before, weights(tmp_path / "still"), "text_tower") > 1e-4


@pytest.mark.parametrize("task", ["tal", "as"])
def test_classes_are_fused_with_the_frames_of_each_video_once(world, tmp_path, task):
    loaded = fitted(world, tmp_path / "run", "train.classes_per_video=1", task=task)
    assert loaded.info.live_towers == ("image", "text")


def test_class_names_pass_a_frozen_text_tower_once(world, tmp_path, monkeypatch):
    calls, forward = [], TextTower.forward

    def counted(tower, ids, mask=None):
        calls.append(len(ids))
        return forward(tower, ids, mask)

    monkeypatch.setattr(TextTower, "forward", counted)
    fitted(world, tmp_path / "run", "towers.text=frozen", "data.val_split=", task="tal")
    assert calls == [len(LABELS)]


@pytest.mark.parametrize("parts", [1, 2])
def test_replayed_training_ends_in_the_weights_of_plain_training(world, trained, tmp_path, parts):
    fitted(world, tmp_path / "replayed", "towers.frame_chunk=3", f"train.accumulate={parts}")
    plain, replayed, still = weights(trained), weights(tmp_path / "replayed"), load_model(trained).info
    assert still.step > 0 and moved(plain, replayed, "") < 1e-4


def test_only_the_last_blocks_train_where_the_recipe_says_so(world, trained, tmp_path):
    fitted(world, tmp_path / "run", "towers.train_last_blocks=1")
    fitted(world, tmp_path / "frozen", "towers.image=frozen", "optim.lr=0", "optim.tower_lr=0")
    one, still = weights(tmp_path / "run"), weights(tmp_path / "frozen")
    assert moved(one, still, "visual.layer3") == 0 and moved(one, still, "visual.layer4") > 1e-5


def test_an_interrupted_run_resumes_to_the_same_weights(world, trained, tmp_path):
    with pytest.raises(Killed):
        fitted(world, tmp_path / "run", on_step=at_step(3, kill))
    fitted(world, tmp_path / "run", resume=True)
    assert_same_runs(trained, tmp_path / "run")


def test_video_files_train_without_packing_and_say_what_it_costs(world, trained, tmp_path, unloc):
    manifest, _, videos = world
    words = ["fit", "synth_mr", *SMALL, *LIVE, "data.num_frames=12", "--manifest", manifest, "--videos", videos]
    code, _, stderr = unloc(*words, "--work-dir", tmp_path / "run", "--threads", 1)
    assert code == 0, stderr
    assert "6 video files" in stderr and "unloc data pack --frames" in stderr
    direct, packed = load_model(tmp_path / "run").info, load_model(trained).info
    assert direct.fingerprint == packed.fingerprint and direct.live_towers == packed.live_towers

    options = {"kind": "videos"}
    with pytest.raises(Killed):
        fitted(world, tmp_path / "resumed", "data.num_frames=12", on_step=at_step(3, kill), **options)
    fitted(world, tmp_path / "resumed", "data.num_frames=12", resume=True, **options)
    assert_same_runs(tmp_path / "run", tmp_path / "resumed")


def test_video_files_need_a_sampling_and_the_manifests_videos(world, tmp_path):
    with pytest.raises(ConfigError, match="videos needs it"):
        fitted(world, tmp_path / "run", kind="videos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="none of the manifest's videos"):
        fitted((world[0], None, tmp_path / "empty"), tmp_path / "run", "data.num_frames=12", kind="videos")
    (tmp_path / "v0.mp4").write_bytes((world[2] / "v0.mp4").read_bytes())
    with pytest.raises(CoverageError, match="v1"):
        fitted((world[0], None, tmp_path), tmp_path / "run", "data.num_frames=12", kind="videos")
    assert not (tmp_path / "run").exists()


def test_a_trained_tower_makes_a_cache_on_which_its_run_is_evaluated(world, trained, tmp_path, unloc):
    manifest, _, videos = world
    words = ["--videos", videos, "--frames", 12, "--workers", 0, "--token-dtype", "float32"]
    code, _, stderr = unloc("extract", manifest, "--cache", tmp_path / "cache", "--tower", trained, *words)
    assert code == 0, stderr
    eval_words = ["--manifest", manifest, "--cache", tmp_path / "cache", "--split", "val"]
    code, _, stderr = unloc("eval", trained, *eval_words, "--out", tmp_path / "metrics.json")
    assert code == 0, stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["recipe"]["towers"]["image"] == "finetune"
    code, _, stderr = unloc("extract", manifest, "--cache", tmp_path / "stock", *words)
    assert code == 0, stderr
    eval_words[3] = tmp_path / "stock"
    code, _, stderr = unloc("eval", trained, *eval_words, "--out", tmp_path / "other.json")
    assert code == 2 and "weights_sha256" in stderr


def test_a_run_above_cached_tokens_starts_one_from_frames_but_not_the_other_way_round(world, trained, tmp_path, unloc):
    manifest, _, videos = world
    words = ["--videos", videos, "--frames", 12, "--workers", 0]
    code, _, stderr = unloc("extract", manifest, "--cache", tmp_path / "cache", *words)
    assert code == 0, stderr
    recipe = load_recipe("synth_mr", SMALL)
    fit_recipe(recipe, manifest, tmp_path / "cache", tmp_path / "cached", threads=1)
    still = ["optim.lr=0", "optim.tower_lr=0"]
    live = fitted(world, tmp_path / "live", *still, init=tmp_path / "cached").model.core.state_dict()
    cached = load_model(tmp_path / "cached").model.state_dict()
    assert all(torch.equal(live[key], value) for key, value in cached.items())
    further = fitted(world, tmp_path / "further", *still, init=trained).model.state_dict()
    assert all(torch.equal(further[key], value) for key, value in load_model(trained).model.state_dict().items())
    with pytest.raises(InputError, match="--frames"):
        fit_recipe(recipe, manifest, tmp_path / "cache", tmp_path / "no", threads=1, init=trained)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["towers.image=cached"], "towers.image"),
        (["towers.text=cached"], "towers.text"),
        (["towers.image=frozen", "towers.text=frozen", "towers.name="], "towers.name"),
        (["data.num_frames=16"], "packed 12"),
        (["towers.frame_embeddings=true", "data.num_steps=8"], "8 frames"),
    ],
)
def test_what_the_frames_do_not_serve_is_refused(world, tmp_path, words, named):
    with pytest.raises(ConfigError, match=named):
        fitted(world, tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()
