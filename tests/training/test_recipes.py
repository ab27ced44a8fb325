"""Every shipped recipe: what it says of itself, one step of it, and what a mistaken one leaves behind."""

import itertools
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from tests.training.recipe_headers import ABLATIONS, NAMES, PAPER, header, loaded, numbers, stated
from tests.training.small import small_example
from unloc.annotations.schema import load_manifest, save_manifest
from unloc.cli import app
from unloc.config import Recipe
from unloc.errors import ConfigError, FingerprintError, UnlocError
from unloc.examples.batches import Example, collate
from unloc.inference.load import CheckpointInfo
from unloc.recipes import dump_recipe, load_recipe, recipe_from_dict, shipped_recipes, task_recipes
from unloc.tasks import task_named
from unloc.training.inputs import require_cache_of
from unloc.training.objective import compute_losses
from unloc.training.optim import build_optimizer
from unloc.training.run import fit_recipe

FRAME_DIM, TEXT_DIM, NUM_CLASSES = 12, 10, 3


# -- what a recipe says of itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_header_names_table_row_command_metric_and_whose_values_it_follows(name):
    lines = header(name)
    assert re.match(r"Table [1-7], |Beside Table [23] |Not in the paper: ", lines[0])
    towers = loaded(name).towers
    options = " towers.image=cached" * (towers.image == "finetune")
    command = rf"unloc fit {name}{options} --manifest \S+\.jsonl --cache cache --work-dir RUN$"
    assert re.match(command if towers.text_name == "clip" else "none as yet: ", stated(name, "Command:"))
    metric = {"mr": r"R1@0\.5 \d", "tal": r"mAP@0\.50 \d", "as": r"(frame_accuracy|mAP) \d"}[loaded(name).task]
    assert re.search(metric, stated(name, "Expected:")) or name == "thumos14_b"
    assert any(line.startswith(("From the paper:", "From the code:")) for line in lines)
    assert len(lines) <= 14


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
    base = f"scenic/{shipped_recipes()[name].values['base']}"
    assert f"base={base}" in stated(name, "From the code:")
    cell, rebased = loaded(name), loaded(name, f"base={base}")
    assert cell.name == rebased.name == name and rebased.loss.box == (cell.loss.box if "loss" in name else "iou")


@pytest.mark.parametrize("name", ["kinetics_400_b", "kinetics_600_b", "kinetics_700_b", "kinetics_700_l"])
def test_a_recipe_of_pretraining_says_what_the_paper_states_and_what_it_does_not(name):
    lines, recipe = header(name), loaded(name)
    assert re.match(rf"Kinetics-{name.split('_')[1]}, UnLoc-{name[-1].upper()}: ", lines[0])
    command = rf"unloc pretrain {name} --manifest kinetics\.jsonl --frames frames --work-dir RUN"
    assert re.fullmatch(command, stated(name, "Command:")) and "not run here" in stated(name, "Expected:")
    assert any(line.startswith("The paper does not state") for line in lines)
    assert (recipe.task, recipe.loss.relevance, recipe.train.classes_per_video) == ("cls", "sigmoid", 0)
    assert (recipe.towers.image, recipe.towers.text, recipe.model.num_layers) == ("finetune", "frozen", 6)


def test_the_readme_lists_every_recipe_once_with_its_figures():
    readme = (shipped_recipes()["synth_mr"].file.parent / "README.md").read_text()
    for name in shipped_recipes():
        rows = re.findall(rf"^\| `{name.removeprefix('ablations/')}`.*", readme, re.M)
        if not name.startswith(("synth", "cotrain")):
            assert len(rows) == 1, name
        if (
            name not in ("thumos14_b",)
            and not name.startswith("kinetics")
            and "/" not in name.removeprefix("ablations/")
            and not name.startswith(("synth", "cotrain"))
        ):
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
    return small_example(
        int(rng.integers(1000)),
        steps=steps,
        width=FRAME_DIM,
        saliency=rng.random(steps).astype(np.float32) if recipe.task == "hd" else None,
        text=rng.normal(size=(4, TEXT_DIM)).astype(np.float32) if task.text_kind == "query" else None,
        **(labels if task.labelled == "steps" else instances),
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
    model = info.build().train()
    class_texts = torch.randn(NUM_CLASSES, 4, TEXT_DIM), torch.ones(NUM_CLASSES, 4, dtype=torch.bool)
    batch = collate(
        [tiny_example(recipe, rng) for _ in range(2)],
        max_text_tokens=recipe.data.max_text_tokens,
        class_texts=class_texts if classes else None,
    )
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    losses = compute_losses(model, batch, recipe)
    losses["loss"].backward()
    build_optimizer(model, recipe.optim).step()
    assert torch.isfinite(losses["loss"]) and (set(losses) == {"loss", "relevance", "box"}) == (
        recipe.task in ("mr", "tal")
    )
    unused = {key for key, value in model.named_parameters() if value.grad is None}
    return unused, {key for key, value in model.named_parameters() if not torch.equal(before[key], value)}


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_is_built_and_stepped_once(name):
    for recipe in task_recipes(tiny(name)).values():
        unused, changed = stepped_once(dump_recipe(replace(recipe, name="one of those with the same values")))
        assert not unused, "parameters that no loss reaches"
        assert len(changed) > 20


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=as", "model.pyramid=none"], "mr, tal, not as"),
        (["data.train_split=training"], r"'training'.*train, val"),
        (["data.val_split=vla"], "'vla'"),
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


# -- what a recipe says against what a cache holds --------------------------------------------------------------------

SIZES = ["model.width=8", "model.num_heads=2", "model.mlp_width=8", "model.num_layers=1", "data.num_steps=16"]
SIZES += ["train.epochs=0.1", "train.batch_size=8"]


def said_fingerprint(recipe: Recipe) -> dict:
    """Of the cache that a recipe names."""
    towers, data = recipe.towers, recipe.data
    fingerprint = {"tower.name": towers.name, "tower.pretrained": "openai", "tower.frame_token": towers.frame_token}
    return fingerprint | {"sampling.num_frames": data.num_frames, "sampling.fps": data.fps}


def command_options(name: str) -> list[str]:
    return re.findall(r"\S+=\S+", stated(name, "Command:"))


@pytest.mark.parametrize("name", [name for name in NAMES if "_t5_" not in name])
def test_the_command_of_a_header_runs_on_the_cache_that_the_recipe_names_and_its_name_tells_what_is_cached(name):
    recipe, followed = loaded(name), loaded(name, *command_options(name))
    require_cache_of(followed, said_fingerprint(recipe), "cache")
    cached = ["image"] * (recipe.towers.image == "finetune")  # the text tower trains on a cache too
    assert followed.name == name + "".join(f"+{key}_cached" for key in cached)
    if cached:
        with pytest.raises(ConfigError, match=" ".join(f"towers.{key}=cached" for key in cached)):
            require_cache_of(recipe, said_fingerprint(recipe), "cache")
    assert recipe.data.num_frames or recipe.data.fps


def test_the_commands_of_the_readme_fit_each_other():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    commands = {verb: re.search(rf"^unloc {verb} .*", readme, re.M)[0].split() for verb in ("extract", "fit", "eval")}
    value = {verb: dict(itertools.pairwise(words)) for verb, words in commands.items()}
    recipe = load_recipe(commands["fit"][2], [word for word in commands["fit"] if "=" in word])
    made = {"tower.name": value["extract"]["--tower"], "tower.pretrained": value["extract"]["--pretrained"]}
    made |= {"tower.frame_token": "cls", "sampling.num_frames": int(value["extract"]["--frames"])}
    require_cache_of(recipe, made, "cache")
    assert recipe.data.val_split != value["eval"]["--split"]  # what is reported selected nothing


def test_the_four_rows_of_table_4_stay_four():
    rows = [name for name in ABLATIONS if re.search(r"table4_.*_anet_tal", name)]
    followed = [loaded(name, *command_options(name)) for name in rows]
    assert len({recipe.name for recipe in followed}) == 4
    whole = [recipe for recipe in followed if "cached" not in recipe.name]
    assert [(recipe.towers.image, recipe.towers.text) for recipe in whole] == [
        ("frozen", "frozen"),
        ("frozen", "finetune"),
    ]


@pytest.mark.parametrize(
    ("held", "options"),
    [
        ({"tower.name": "toy"}, ["towers.name=toy"]),
        ({"tower.frame_token": "gap"}, ["towers.frame_token=gap"]),
        ({"sampling.num_frames": 64}, ["data.num_frames=64"]),
        ({"sampling.num_frames": None, "sampling.fps": 4.0}, ["data.num_frames=null", "data.fps=4.0"]),
        (
            {"tower.name": "ViT-L-14", "tower.frame_token": "gap", "sampling.num_frames": 160},
            ["towers.name=ViT-L-14", "towers.frame_token=gap", "data.num_frames=160"],
        ),
    ],
)
def test_a_cache_of_another_tower_or_sampling_is_refused_with_every_key_and_the_options_that_name_it(held, options):
    recipe = loaded("anet_captions_b", "towers.text=cached")
    fingerprint = said_fingerprint(recipe) | held
    with pytest.raises(FingerprintError) as raised:
        require_cache_of(recipe, fingerprint, "cache")
    assert all(key in str(raised.value) for key in held) and str(raised.value).endswith(": " + " ".join(options))
    named = loaded("anet_captions_b", "towers.text=cached", *options)
    require_cache_of(named, fingerprint, "cache")
    assert named != recipe


def test_features_of_others_can_be_named_too():
    recipe = loaded("charades_b")
    with pytest.raises(FingerprintError) as raised:
        require_cache_of(recipe, {"origin": "peer"}, "cache")
    options = str(raised.value).rpartition(": ")[2].split()
    require_cache_of(loaded("charades_b", *options), {"origin": "peer"}, "cache")


def test_weights_are_compared_where_the_recipe_names_them():
    recipe = loaded("charades_b", "towers.text=cached", "towers.pretrained=laion2b")
    with pytest.raises(FingerprintError, match=r"tower\.pretrained.*'laion2b'.*'openai'"):
        require_cache_of(recipe, said_fingerprint(recipe), "cache")


def test_a_tower_that_a_recipe_of_ones_own_leaves_untrained_is_in_the_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: charades_b\ntowers: {text: cached}\n")
    (tmp_path / "child.yaml").write_text("base: mine.yaml\ntowers: {text: finetune}\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).name == "mine+text_cached"
    assert load_recipe(str(tmp_path / "child.yaml")).name == "child"
    assert load_recipe(str(tmp_path / "child.yaml"), ["towers.text=frozen"]).name == "child+text_frozen"
    resolved = load_recipe(str(tmp_path / "mine.yaml"))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(resolved))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == resolved  # once, not twice


def test_a_recipe_that_finetunes_is_refused_on_a_cache_and_leaves_nothing(token_world, tmp_path):
    manifest, cache_path = token_world
    run, options = tmp_path / "run", ["towers.name=made up", "data.num_frames=null"]
    with pytest.raises(ConfigError, match=r"towers\.text=cached$"):
        fit_recipe(load_recipe("charades_b", [*SIZES, *options]), manifest, cache_path, run)
    assert not run.exists()
    recipe = load_recipe("charades_b", [*SIZES, *options, "towers.text=cached"])
    fit_recipe(recipe, manifest, cache_path, run, threads=1)
    kept = load_recipe(str(run / "recipe.yaml"))
    assert kept == recipe and kept.name == "charades_b+text_cached"
    fit_recipe(recipe, manifest, cache_path, run, threads=1, resume=True)


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        (["charades_b"], "'towers.name=made up' data.num_frames=null data.fps=2.0 towers.text=cached"),
        (["charades_b"], "--tower ViT-B-16 --frames 128"),
        (["synth_mr", "train.batch_size=1000"], "train.batch_size=80 or less"),
        (["synth_mr", "optim.schedule=step"], "optim.step_epochs=["),
        (["synth_mr", "optim.lr=fast"], "override: optim.lr"),
        (["synth_mr", "data.num_steps=1000000000000"], "expected 1 to 65536"),
        (["synth_mr", "--init", "toy"], "tower.name: model 'toy', cache 'made up'"),
    ],
)
def test_what_cannot_be_followed_is_one_line_with_the_way_out_and_exit_code_2(
    token_world, tmp_path, unloc, words, way_out
):
    manifest, cache_path = token_world
    code, _, errors = unloc(
        "fit", *words, "--manifest", manifest, "--cache", cache_path, "--work-dir", tmp_path / "run"
    )
    assert code == 2 and way_out in errors and errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_metrics_and_report_of_a_run_say_which_towers_were_cached(token_world, tmp_path):
    manifest, cache_path = token_world
    options = ["towers.name=made up", "data.num_frames=null", "towers.text=cached", "data.val_split=val"]
    fit_recipe(load_recipe("charades_b", [*SIZES, *options]), manifest, cache_path, tmp_path / "run", threads=1)
    shown = {}
    for split in ("val", "test"):
        words = ["--manifest", str(manifest), "--cache", str(cache_path), "--split", split]
        result = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), *words])
        assert result.exit_code == 0, result.output
        shown[split] = result.output
        metrics = json.loads((tmp_path / "run" / "eval" / split / "metrics.json").read_text())
        assert metrics["recipe"]["name"] == "charades_b+text_cached"
        assert metrics["recipe"]["towers"]["image"] == "frozen" and metrics["recipe"]["towers"]["text"] == "cached"
        assert metrics["recipe"]["checkpoint_selected_on"] == "val"
        assert (
            metrics["recipe"]["tokens"] | {"tower.name": "made up", "sampling.fps": 2.0} == metrics["recipe"]["tokens"]
        )
        assert "tokens of made up" in result.output
        assert "charades_b+text_cached" in result.output and "text cached" in result.output
    assert "selected the checkpoint" in shown["val"] and "selected the checkpoint" not in shown["test"]


def test_a_text_tower_that_no_cache_holds_is_refused(token_world, tmp_path):
    recipe = load_recipe("ablations/table2_t5_small_anet_mr", ["data.val_split=val"])
    with pytest.raises(ConfigError, match=r"towers\.text_name.*t5-small"):
        fit_recipe(recipe, *token_world, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_in_batch_negatives_are_said_to_be_the_codes_by_docs_and_headers(shared):
    said = " ".join((shared / "reference" / "paper.txt").read_text().split())
    assert "for MR is the number of captions associated with this video" in said
    root = Path(__file__).resolve().parents[2]
    assert "negatives across the batch" in (root / "docs" / "model.md").read_text()
    for name in NAMES:
        lines = [line for line in header(name) if "every caption against every video of the batch" in line]
        assert all(re.match(r"Where they differ, the code:|Differs from the paper:", line) for line in lines), name
        own_header = "base" not in shipped_recipes()[name].values
        if own_header and loaded(name).task == "mr":
            assert len(lines) == (loaded(name).train.negatives == "batch"), name
