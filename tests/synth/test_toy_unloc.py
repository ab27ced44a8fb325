"""The shipped checkpoints: what `--init toy` starts from."""

import json

import pytest
import torch

from unloc.annotations.schema import QueryRow, VideoRow, build_manifest, save_manifest
from unloc.cache.writing import VideoTokens, create_or_check, token_checksum, write_texts, write_video_shard
from unloc.errors import FingerprintError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.load import load_model
from unloc.recipes import load_recipe
from unloc.synth import toy_unloc_folder
from unloc.training.run import fit_recipe


@pytest.mark.parametrize("task", ["mr", "tal", "as", "hd"])
def test_each_task_has_a_checkpoint_of_its_recipes_model_on_the_shipped_towers_tokens(task):
    loaded = load_model(toy_unloc_folder(task))
    recipe = load_recipe(f"synth_{task}")
    assert loaded.info.recipe.model.width == recipe.model.width
    assert loaded.info.recipe.data.num_steps == recipe.data.num_steps
    assert (toy_unloc_folder(task) / "model.safetensors").stat().st_size < 1_500_000
    encoder = Encoder(EncodeConfig(fps=4.0))
    assert loaded.info.fingerprint == encoder.fingerprint


def test_the_record_says_how_the_checkpoints_were_made():
    record = json.loads((toy_unloc_folder("mr").parent / "record.json").read_text())
    assert any("data synth" in command for command in record["commands"]) and record["seed"] not in (0, 2024)
    assert set(record["validation"]) == {"tal", "mr", "as"}


def world_of(folder, fingerprint):
    """A manifest of two videos and a cache that states this fingerprint; its tokens are noise."""
    generator = torch.Generator().manual_seed(0)
    create_or_check(folder / "cache", fingerprint, {})
    videos, rows = [], []
    for video_id, split in (("v0", "train"), ("v1", "val")):
        tokens = torch.randn(16, 1, 128, generator=generator).half().numpy()
        meta = {"video_id": video_id, "times_seconds": [i / 2 for i in range(16)], "duration_seconds": 8.0}
        videos.append(VideoTokens(meta | {"decoder": "none", "tokens_sha256": token_checksum(tokens)}, tokens))
        rows += [VideoRow(video_id, split, 8.0), QueryRow(video_id, split, video_id, "a cat", [[1.0, 3.0]])]
    write_video_shard(folder / "cache", "00000", videos, [], "float16")
    write_texts(folder / "cache", [("a cat", torch.randn(4, 128, generator=generator).half().numpy())], "float16")
    save_manifest(build_manifest(name="two", tasks=("mr",), rows=rows), folder / "manifest.jsonl")
    return folder / "manifest.jsonl", folder / "cache"


def test_a_run_starts_from_the_shipped_weights_at_another_frame_rate_but_not_with_another_tower(tmp_path):
    start = toy_unloc_folder("mr")
    recipe = load_recipe("synth_mr", ["optim.lr=0", "train.epochs=1", "train.batch_size=1"])
    shipped = load_model(start)
    made_by = shipped.info.fingerprint
    (tmp_path / "same").mkdir()
    fit_recipe(recipe, *world_of(tmp_path / "same", made_by | {"sampling.fps": 2.0}), tmp_path / "run", init=start)
    trained = load_model(tmp_path / "run").model.state_dict()
    assert all(torch.equal(trained[key], value) for key, value in shipped.model.state_dict().items())
    (tmp_path / "other").mkdir()
    other = world_of(tmp_path / "other", made_by | {"tower.weights_sha256": "another"})
    with pytest.raises(FingerprintError, match="weights_sha256"):
        fit_recipe(recipe, *other, tmp_path / "run2", init=start)
