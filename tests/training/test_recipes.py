"""Every shipped recipe: what it says of itself, one step of it, and what a mistaken one leaves behind."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.training.recipe_headers import ABLATIONS, NAMES, PAPER, header, loaded, numbers, stated
from unloc.config import Recipe, dump_recipe, load_recipe, recipe_from_dict
from unloc.data.collate import Example, collate
from unloc.data.schema import load_manifest, save_manifest
from unloc.data.steps import TimeGrid
from unloc.errors import ConfigError, UnlocError
from unloc.inference.load import CheckpointInfo, build_model
from unloc.recipe_files import shipped_recipes
from unloc.tasks import task_named
from unloc.training.objective import compute_losses
from unloc.training.optim import build_optimizer
from unloc.training.run import fit_recipe

FRAME_DIM, TEXT_DIM, NUM_CLASSES = 12, 10, 3


# -- what a recipe says of itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_header_names_table_row_command_metric_and_whose_values_it_follows(name):
    lines = header(name)
    assert re.match(r"Table [1-7], |Beside Table [23] |Not in the paper: ", lines[0])
    assert re.match(rf"unloc fit {name} --manifest \S+\.jsonl --cache cache --work-dir RUN$", stated(name, "Command:"))
    metric = {"mr": r"R1@0\.5 \d", "tal": r"mAP@0\.50 \d", "as": r"(frame_accuracy|mAP) \d"}[loaded(name).task]
    assert re.search(metric, stated(name, "Expected:")) or name == "thumos14_b"
    assert any(line.startswith(("From the paper:", "From the code:")) for line in lines)
    assert len(shipped_recipes()[name].read_text().splitlines()) <= 40


@pytest.mark.parametrize("name", [name for name in PAPER if name != "thumos14_b"])
def test_every_row_has_a_paper_and_a_scenic_preset(name):
    paper = loaded(name)
    if name.endswith("_ensemble"):  # evaluation alone differs: the row stands on the preset of its first prompt
        scenic = loaded(name, f"base=scenic/{name.removesuffix('_ensemble')}")
    else:
        scenic = loaded(f"scenic/{name}")
    assert (paper.loss.box, paper.model.text_tokens) == ("iou" if paper.task == "as" else "l1", "all")
    assert (scenic.loss.box, scenic.model.text_tokens) == ("iou", "eos")
    assert paper.task == scenic.task and paper.model.width == scenic.model.width


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_cell_can_be_put_on_the_values_of_the_code(name):
    base = re.search(r"base=(\S+)", stated(name, "From the code:"))[1]
    cell, rebased = loaded(name), loaded(name, f"base={base}")
    assert cell.name == rebased.name == name and rebased.loss.box == (cell.loss.box if "loss" in name else "iou")


def test_the_readme_lists_every_recipe_once_with_its_figures():
    readme = (shipped_recipes()["synth_mr"].parent / "README.md").read_text()
    for name in shipped_recipes():
        rows = re.findall(rf"^\| `{name.removeprefix('ablations/')}`.*", readme, re.M)
        if not name.startswith("synth"):
            assert len(rows) == 1, name
        if name not in ("thumos14_b",) and "/" not in name.removeprefix("ablations/") and not name.startswith("synth"):
            assert numbers(rows[0].split("|")[-2]) == numbers(stated(name, "Expected:")), name


# -- one step ---------------------------------------------------------------------------------------------------------


def tiny(name: str) -> Recipe:
    """The recipe with its structure kept and its sizes shrunk."""
    recipe = loaded(name)
    layers = recipe.model.num_levels if recipe.model.pyramid == "fpn" else 2
    sizes = ["model.width=8", "model.num_heads=2", "model.mlp_width=8", f"model.num_layers={layers}"]
    sizes += [f"data.num_steps={2 * 2**recipe.model.num_levels}", "optim.warmup_epochs=0", "train.classes_per_video=0"]
    if recipe.model.max_texts_in_flight:
        sizes.append("model.max_texts_in_flight=2")
    return loaded(name, *sizes)


def tiny_example(recipe: Recipe, rng: np.random.Generator) -> Example:
    steps, task = recipe.data.num_steps, task_named(recipe.task)
    starts = rng.integers(0, steps // 2, size=(2, 1)).astype(float)
    instances = {
        "segments_steps": np.hstack([starts, starts + steps / 4]),
        "segment_classes": rng.integers(NUM_CLASSES, size=2) if task.text_kind == "class" else np.zeros(0, np.int64),
    }
    labels = {"step_classes": rng.integers(-1, NUM_CLASSES, size=steps)}
    return Example(
        video_id=f"v{rng.integers(1000)}",
        frames=rng.normal(size=(steps, FRAME_DIM)).astype(np.float32),
        frame_mask=np.ones(steps, dtype=bool),
        grid=TimeGrid(0.0, 1.0),
        duration_seconds=float(steps),
        saliency=rng.random(steps).astype(np.float32) if task.saliency else None,
        text=rng.normal(size=(4, TEXT_DIM)).astype(np.float32) if task.text_kind == "query" else None,
        **(instances if task.localizes else labels),
    )


@cache
def stepped_once(resolved: str) -> tuple[set[str], set[str]]:
    """Parameters that got no gradient, and those that a step changed, of a tiny model; the loss must be finite."""
    recipe = recipe_from_dict(OmegaConf.to_container(OmegaConf.create(resolved)))
    rng, classes = np.random.default_rng(0), tuple("abc") if task_named(recipe.task).text_kind == "class" else ()
    torch.manual_seed(0)
    info = CheckpointInfo(
        recipe=recipe, classes=classes, frame_dim=FRAME_DIM, text_dim=TEXT_DIM, fingerprint={}, step=0
    )
    model = build_model(info).train()
    class_texts = torch.randn(NUM_CLASSES, 4, TEXT_DIM), torch.ones(NUM_CLASSES, 4, dtype=torch.bool)
    batch = collate(
        [tiny_example(recipe, rng) for _ in range(2)],
        max_text_tokens=recipe.data.max_text_tokens,
        class_texts=class_texts if classes else None,
    )
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    losses = compute_losses(model, batch, recipe)
    losses.total.backward()
    build_optimizer(model, recipe.optim).step()
    assert torch.isfinite(losses.total) and (set(losses.parts) == {"relevance", "box"}) == (
        recipe.task in ("mr", "tal")
    )
    unused = {key for key, value in model.named_parameters() if value.grad is None}
    return unused, {key for key, value in model.named_parameters() if not torch.equal(before[key], value)}


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_is_built_and_stepped_once(name):
    recipe = tiny(name)
    unused, changed = stepped_once(dump_recipe(replace(recipe, name="one of those with the same values")))
    assert not unused, "parameters that no loss reaches"
    assert len(changed) > 20


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=as", "model.pyramid=none"], "serves mr, tal, not as"),
        (["data.train_split=training"], r"data\.train_split: split 'training' is not in .* it has: train, val"),
        (["data.val_split=vla"], r"data\.val_split: split 'vla' is not in"),
    ],
)
def test_a_mistaken_manifest_or_split_neither_leaves_nor_deletes_a_run(token_world, tmp_path, overrides, words):
    path, cache_path = token_world
    manifest = replace(load_manifest(path), tasks=("mr", "tal"))
    save_manifest(manifest, tmp_path / "manifest.jsonl")
    run = tmp_path / "run"
    recipe = load_recipe("synth_mr", overrides)
    with pytest.raises(UnlocError, match=words):
        fit_recipe(recipe, tmp_path / "manifest.jsonl", cache_path, run)
    assert not run.exists()
    run.mkdir()
    (run / "recipe.yaml").write_text("task: mr")
    (run / "metrics.jsonl").write_text("{}")
    with pytest.raises(UnlocError, match=words):
        fit_recipe(recipe, tmp_path / "manifest.jsonl", cache_path, run, overwrite=True)
    assert (run / "metrics.jsonl").is_file()


def test_a_run_on_a_cache_says_that_its_towers_are_frozen_and_keeps_the_recipe_it_followed(token_world, tmp_path):
    manifest, cache_path = token_world
    sizes = ["model.width=8", "model.num_heads=2", "model.mlp_width=8", "model.num_layers=1", "data.num_steps=16"]
    recipe = load_recipe("charades_b", [*sizes, "train.epochs=0.1", "train.batch_size=8"])
    assert recipe.towers.train_text
    fit_recipe(recipe, manifest, cache_path, tmp_path / "run", threads=1)
    towers = load_recipe(str(tmp_path / "run" / "recipe.yaml")).towers
    assert (towers.train_image, towers.train_text, towers.image) == (False, False, "made up")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert (
        "tokens of a cache: towers.train_text False (recipe: True), towers.image 'made up' (recipe: 'ViT-B-16')" in log
    )
    fit_recipe(recipe, manifest, cache_path, tmp_path / "run", threads=1, resume=True)


def test_a_text_tower_that_no_cache_holds_is_refused(token_world, tmp_path):
    recipe = load_recipe("ablations/table2_t5_small_anet_mr", ["data.val_split=val"])
    with pytest.raises(ConfigError, match=r"towers\.text: got t5-small, a cache holds CLIP's text tokens only"):
        fit_recipe(recipe, *token_world, tmp_path / "run")
    assert not (tmp_path / "run").exists()
