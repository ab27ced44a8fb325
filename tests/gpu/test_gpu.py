"""Extract, fit and eval on a CUDA device beside the same on the CPU: `python -m pytest -m gpu -s tests/gpu`.

Needs no network and no Ray; minutes on any GPU. UNLOC_GPU_TESTS_ON=cpu runs the same tests without one.
"""

import json
import os
import time

import numpy as np
import pytest
import torch

from tests.training.test_trainer import Killed, at_step, kill, recipe_for, weights_of
from unloc.annotations.schema import load_manifest
from unloc.cache.opening import open_cache
from unloc.examples.batches import collate
from unloc.examples.examples import Examples
from unloc.examples.sources import CachedTokens
from unloc.inference.device import computing, resolve_device, resolve_precision
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.load import load_model
from unloc.inference.predict import forward
from unloc.model.towers import GPU_BATCH
from unloc.model.unloc import UnLoc
from unloc.recipes import recipe_from_dict
from unloc.training.run import fit_recipe
from unloc.training.trainer import Trainer

WANTED = os.environ.get("UNLOC_GPU_TESTS_ON", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WANTED == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
# Largest difference from the CPU's float32, relative to the largest value. TF32 and bfloat16 keep 10 and 7 bits of a
# factor; the losses are those of eight steps, over which the weights drift apart.
TOKENS = {"float32": 5e-3, "bfloat16": 5e-2}
OUTPUTS = {"fp32": 1e-2, "bf16": 6e-2}
LOSSES = {"fp32": 2e-2, "bf16": 1e-1}
EIGHT_STEPS = ("train.epochs=0.8", "train.eval_every_epochs=0.8", "model.dropout=0", "train.log_every=1")


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def finished(device: torch.device) -> float:
    """The time once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@pytest.mark.parametrize("dtype", TOKENS)
def test_tokens_of_videos_are_those_of_the_cpu(video_folder, dtype):
    device, config = resolve_device(WANTED), {"tower": "toy", "fps": 5.0, "dtype": "float32"}
    here = Encoder(EncodeConfig(**config, tower_dtype=dtype, batch=GPU_BATCH), device)
    there = Encoder(EncodeConfig(**config), "cpu")
    for path in sorted(video_folder.glob("*.mp4")):
        tokens = [encoder.encode_video(path, path.stem).tokens for encoder in (here, there)]
        assert deviation(*tokens) < TOKENS[dtype]
    texts = ["a person opens a door", "red circle"]
    for found, expected in zip(here.encode_texts(texts), there.encode_texts(texts), strict=True):
        assert deviation(found, expected) < TOKENS["float32"]
    size = here.preprocess.image_size
    pixels = np.random.default_rng(0).integers(0, 255, (2 * GPU_BATCH, 1, 3, size, size), dtype=np.uint8)
    here.start_encoding(pixels[:GPU_BATCH])()
    started = finished(device)
    here.start_encoding(pixels)()
    print(f"\nextract, toy tower in {dtype} on {device}: {len(pixels) / (finished(device) - started):.0f} frames/s")


def losses_of(run) -> np.ndarray:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if row["kind"] == "train"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task", ["mr", "tal", "as", "hd"])
def test_fit_and_eval_give_the_losses_outputs_and_metrics_of_the_cpu(unloc, token_world, tmp_path, task, precision):
    manifest, cache = token_world
    for name, device, used in (("here", WANTED, precision), ("there", "cpu", "fp32")):
        recipe = recipe_for(task, *EIGHT_STEPS, f"train.precision={used}")
        fit_recipe(recipe, manifest, cache, tmp_path / name, device=device, threads=1)
    assert deviation(losses_of(tmp_path / "here"), losses_of(tmp_path / "there")) < LOSSES[precision]
    reports = []
    for device in (WANTED, "cpu"):
        words = ("--manifest", manifest, "--cache", cache, "--split", "test", "--out", tmp_path / device / "report")
        code, _, err = unloc("eval", tmp_path / "there", *words, "--device", device)
        assert code == 0, err
        reports.append(json.loads((tmp_path / device / "report" / "metrics.json").read_text()))
    for name, value in reports[1]["metrics"].items():  # of 20 queries: two that turn are 10 points
        assert value is None or abs(reports[0]["metrics"][name] - value) <= 10.0, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_outputs_are_those_of_the_cpu(token_world, tmp_path, precision):
    manifest, cache = token_world
    fit_recipe(recipe_for("hd", "train.epochs=1"), manifest, cache, tmp_path / "run", device="cpu", threads=1)
    recipe = recipe_for("hd", f"train.precision={precision}")
    selected = load_manifest(manifest).select("test")
    examples = Examples("mr", selected, CachedTokens(open_cache(cache)), recipe.data)
    batch = collate([examples.example(n) for n in range(8)], max_text_tokens=32)
    with torch.inference_mode():
        expected = forward(
            load_model(tmp_path / "run").model, batch, recipe_for("hd", "train.precision=fp32"), pairing="own"
        )
        found = forward(load_model(tmp_path / "run", resolve_device(WANTED)).model, batch, recipe, pairing="own")
    for name in ("relevance", "displacements", "saliency"):
        one, other = (getattr(outputs, name).cpu().numpy() for outputs in (found, expected))
        assert one.dtype == np.float32 and deviation(one, other) < OUTPUTS[precision]


def test_a_run_goes_on_from_its_checkpoint_on_the_device(token_world, tmp_path):
    recipe = recipe_for("mr", *EIGHT_STEPS, "train.checkpoint_minutes=1e-9", "model.dropout=0.1")
    fit_recipe(recipe, *token_world, tmp_path / "whole", device=WANTED, threads=1)
    with pytest.raises(Killed):
        fit_recipe(recipe, *token_world, tmp_path / "part", device=WANTED, threads=1, on_step=at_step(5, kill))
    fit_recipe(recipe, *token_world, tmp_path / "part", device=WANTED, threads=1, resume=True)
    # Sums on a GPU may differ in their last bits from run to run; dropout draws what it would have drawn.
    assert deviation(losses_of(tmp_path / "part"), losses_of(tmp_path / "whole")) < 1e-2
    assert weights_of(tmp_path / "part").keys() == weights_of(tmp_path / "whole").keys()
    used = json.loads((tmp_path / "part" / "env.json").read_text())
    device = resolve_device(WANTED)
    assert used["precision"] == resolve_precision("auto", device)
    assert used["device"] == (torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")


@pytest.mark.parametrize("words", [[], ["train.accumulate=2", "train.ema_decay=0.9"], ["optim.name=sgd"]], ids=str)
@pytest.mark.parametrize("task", ["mr", "tal", "as", "hd"])
def test_a_step_waits_for_nothing(token_world, tmp_path, monkeypatch, task, words):
    if resolve_device(WANTED).type == "cpu":
        pytest.skip("nothing to wait for on a CPU")

    def checked(name, mode):
        method = getattr(Trainer, name)

        def run(self, *given):
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode(mode)
            try:
                return method(self, *given)
            finally:
                torch.cuda.set_sync_debug_mode(before)

        monkeypatch.setattr(Trainer, name, run)

    for name, mode in (("_gradients", "error"), ("_update", "error"), ("_read", "default")):
        checked(name, mode)
    recipe = recipe_for(task, "train.epochs=1", "data.val_split=''", "train.log_every=100", *words)
    fit_recipe(recipe, *token_world, tmp_path / "run", device=WANTED, threads=1)
    assert len(losses_of(tmp_path / "run")) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_the_paper_s_base_model_runs_and_its_speed_is_told(precision):
    device, recipe = resolve_device(WANTED), recipe_from_dict({"train": {"precision": precision}})
    batch, num_steps = (64, 20) if device.type == "cuda" else (1, 1)
    model = UnLoc(recipe.model, 512, 512, recipe.data.num_steps).to(device)
    frames = torch.randn(batch, recipe.data.num_steps, 512, device=device)
    texts = torch.randn(batch, 16, 512, device=device)
    masks = [torch.ones(values.shape[:2], dtype=torch.bool, device=device) for values in (frames, texts)]
    for step in range(-(num_steps // 4), num_steps):
        if step == 0:
            started = finished(device)
        with computing(device, precision):
            outputs = model(frames, masks[0], texts, masks[1], pairing="own").at_least_float32()
        model.zero_grad(set_to_none=True)
        (outputs.relevance.square().mean() + outputs.displacements.square().mean()).backward()
    rate = num_steps / (finished(device) - started)
    print(f"\nfit, Base model, {batch} pairs a step in {precision} on {device}: {rate:.2f} steps/s")
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
