"""What recipes say against what the paper and the released configurations say."""

import math
import re
from functools import cache

import pandas as pd
import pytest
import torch

from tests.training.recipe_headers import ABLATIONS, PAPER, header, loaded, numbers, stated
from unloc.config import Recipe
from unloc.model.unloc import UnLoc, parameter_counts

# -- what the paper says ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper(shared) -> str:
    return (shared / "reference" / "paper.txt").read_text()


@cache
def rows_of(paper: str) -> dict[tuple[str, str], list[float]]:
    """(group, row) to figures of the paper's tables; the group is the last first cell that opened one."""
    groups = ("Charades-STA", "ANet MR", "QVHighlights", "Finetuned", "Zero-shot 50%", "Zero-shot 75%", "Baseline")
    found, group = {}, ""
    for line in paper.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 2:
            group = next((word for word in groups if cells[0].startswith(word)), group)
            found[group if "UnLoc" in cells[0] else "", cells[0]] = numbers(" ".join(cells[1:]))
    return found


MAIN_ROWS = {
    "charades": "Charades-STA",
    "anet_captions": "ANet MR",
    "qvhighlights": "QVHighlights",
    "anet_tal": "Finetuned",
    "anet_zs50": "Zero-shot 50%",
    "anet_zs75": "Zero-shot 75%",
    "coin": "Baseline",
}


@pytest.mark.parametrize("name", [name for name in PAPER if name != "thumos14_b"])
def test_the_expected_metric_of_a_row_is_the_papers(paper, name):
    benchmark, size, *ensemble = re.fullmatch(r"(\w+?)_([bl])(_ensemble)?", name).groups()
    row = f"UnLoc-{size.upper()}"
    if stated(name, "Table")[0] != "5":
        row += " (prompt ensembling)" if ensemble[0] else " (1st prompt)"
    assert numbers(stated(name, "Expected:")) == rows_of(paper)[MAIN_ROWS[benchmark], row]
    if not ensemble[0]:
        short = numbers(stated(f"scenic/{name}", "Expected:"))
        assert short == rows_of(paper)[MAIN_ROWS[benchmark], row][: len(short)]


TABLE_1 = (
    "loss_l1 loss_iou loss_l1_iou loss_diou pyramid_none pyramid_fpn pyramid_vitdet convs_1 convs_2 convs_3 convs_4"
)
ROWS = {
    "table2_t5_small": "T5-S",
    "table2_t5_base": "T5-B",
    "table2_clip": "CLIP-B",
    "table3_all": "All",
    "table3_one": "One",
    "table4_frozen_frozen": "frozen/frozen",
    "table4_frozen_finetuned": "frozen/finetuned",
    "table4_finetuned_frozen": "finetuned/frozen",
    "table4_finetuned_finetuned": "finetuned/finetuned",
}


def test_the_expected_metric_of_every_ablation_cell_is_the_papers(paper):
    rows = rows_of(paper)
    wanted = dict(zip([f"table1_{cell}" for cell in TABLE_1.split()], [54.6, *rows["", "54.6"]], strict=True))
    for prefix, row in ROWS.items():
        columns = [f"{prefix}_{column}" for column in ("anet_tal", "anet_mr", "coin")]
        wanted |= dict(zip(columns, rows["", row][-3:], strict=True))
    wanted |= {"table2_no_text_anet_tal": 46.5, "table2_late_fusion_anet_tal": 49.8}
    assert "to 46.5 (a relative" in paper and "variant to 49.8 on ANet TAL" in paper
    assert {name.removeprefix("ablations/") for name in ABLATIONS} == set(wanted)
    for name, figure in wanted.items():
        assert numbers(stated(f"ablations/{name}", "Expected:")) == [figure], name


def said(paper: str, words: str) -> bool:
    return words in " ".join(paper.split())


def test_sizes_frames_levels_and_ranges_are_the_papers(paper):
    assert said(paper, "implemented using a 6-layer Transformer and the hidden size is set to 512 and 768 for UnLoc-B")
    assert said(paper, "the MLP dimension is set to 2048 and 3072")
    assert said(paper, "a 4-layer feature pyramid") and said(paper, "set to [0, 4], [4, 8], [8, 16], [16, ]")
    assert said(paper, "all TAL and MR models are trained on 128 frames evenly")
    assert said(paper, "For UnLoc-L we increase the sampled frames to 160 and use a 5-L Feature Pyramid")
    assert said(paper, "We randomly sample 512 consecutive frames")
    for name in PAPER:
        recipe = loaded(name)
        large = "_l" in name
        model = recipe.model
        assert (model.num_layers, model.width, model.mlp_width) == ((6, 768, 3072) if large else (6, 512, 2048))
        assert (recipe.towers.name, recipe.towers.text_name) == ("ViT-L-14" if large else "ViT-B-16", "clip")
        if name == "thumos14_b" or recipe.task == "as":
            assert recipe.data.num_steps == 512
            assert recipe.data.fps == 2 if recipe.task == "as" else recipe.data.num_frames == 512
            continue
        longer = large and recipe.task == "tal"
        assert (recipe.data.num_steps, model.num_levels) == ((160, 5) if longer else (128, 4))
        assert recipe.data.num_frames == recipe.data.num_steps and recipe.data.fps is None
        assert recipe.targets.range_edges[:4] == [0, 4, 8, 16] and recipe.targets.range_edges[-1] == math.inf


def test_losses_tokens_optimiser_and_what_is_trained_are_the_papers(paper):
    assert said(paper, "For AS, we use sigmoid cross entropy") and said(paper, "For TAL and MR, we use the focal loss")
    assert said(paper, "We end up using L1 loss") and said(paper, "using all tokens gives better performance on all")
    assert said(paper, "all refers to 16 tokens to represent the class labels and for MR we increase the sequence len")
    assert said(paper, "synchronous SGD with a momentum of 0.9") and said(paper, "saturates at 3")
    assert said(paper, "For MR models we freeze the image encoder and finetune the rest")
    assert said(paper, "we freeze the text encoder and finetune the rest of the network following the best strategy")
    for name in PAPER:
        recipe = loaded(name)
        sentences = recipe.task == "mr"
        assert recipe.loss.relevance == ("sigmoid" if recipe.task == "as" else "focal")
        assert recipe.task == "as" or recipe.loss.box == "l1"
        assert (recipe.model.text_tokens, recipe.data.max_text_tokens) == ("all", 32 if sentences else 16)
        assert (recipe.model.num_head_convs, recipe.model.share_heads, recipe.model.pyramid) == (3, True, "simple")
        assert (recipe.optim.name, recipe.optim.momentum) == ("sgd", 0.9)
        expected = ("frozen", "finetune") if sentences else ("finetune", "frozen")
        assert (recipe.towers.image, recipe.towers.text) == expected
        assert recipe.data.prompts is not sentences
        assert recipe.data.prompt_ensembling is (name.endswith("_ensemble") or sentences)


def test_cells_of_one_column_with_the_same_figure_are_the_same_run():
    by_figure: dict[tuple, list[Recipe]] = {}
    for name in ABLATIONS:
        recipe = loaded(name, "name=cell")
        by_figure.setdefault((recipe.task, *numbers(stated(name, "Expected:"))), []).append(recipe)
    shared_figures = {key for key, recipes in by_figure.items() if len(recipes) > 1}
    assert {("tal", 54.7), ("tal", 53.3), ("mr", 44.2), ("as", 16.4)} <= shared_figures
    for key in (("tal", 54.7), ("tal", 53.3), ("mr", 44.2), ("as", 16.4)):
        assert all(recipe == by_figure[key][0] for recipe in by_figure[key])


def test_coin_ablations_train_on_128_frames(paper):
    assert said(paper, "For AS on COIN we randomly sample 128 consecutive frames (instead of 512)")
    steps = {loaded(name).data.num_steps for name in ABLATIONS if name.endswith("coin")}
    assert steps == {128}


# -- what the released configurations say -----------------------------------------------------------------------------

CONFIGS = {
    "anet_tal_b": "activitynet_tal_linspace_unloc_base_fpn",
    "anet_tal_l": "activitynet_tal_linspace_unloc_large_fpn",
    "anet_captions_b": "activitynet_cap_linspace_unloc_base_fpn",
    "anet_captions_l": "activitynet_cap_linspace_unloc_large_fpn",
    "charades_b": "charades_sta_linspace_unloc_base_fpn",
    "coin_l": "coin_action_seg_unloc_ft_image_clip_large",
    "qvhighlights_b": "qvhighlights_linspace_unloc_base_fpn_hd",
    "qvhighlights_l": "qvhighlights_linspace_unloc_large_fpn_hd",
}
FUSION = "model.video_text_fusion_config.config.self_attention_encoder_config."
FREEZE = {"True": "frozen", "False": "finetune"}
PYRAMIDS = {"simple_pyramid": "simple", "fpn": "fpn", "transformer": "none"}


def official(config: pd.Series) -> dict[str, object]:
    """Our keys with the values of one released configuration; keys it leaves unset are left out."""
    given = config[(config != "(unset)") & config.notna()]
    heads = [key for key in given.index if re.fullmatch(r"model\.head_config\.\w+\.type", key)]
    head = heads[0].removesuffix("type") + "config."
    clip_text = given["model.text_tower_config.encoder_name"] == "clip_text_encoder"
    ranges = re.findall(r"\((\w+), (\w+)\)", given.get("dataset_configs.feature_pyramid_config.regression_ranges", ""))
    values = {
        "model.width": given["model.video_tower_config.projection_size"],
        "model.num_heads": given[f"{FUSION}num_heads"],
        "model.mlp_width": given[f"{FUSION}mlp_dim"],
        "model.num_layers": given[f"{FUSION}num_layers"],
        "model.pyramid": PYRAMIDS[given[f"{FUSION[:-7]}name"]],
        "model.num_levels": len(ranges) or None,
        "model.num_head_convs": given.get(f"{head}num_conv_layers"),
        "model.share_heads": given.get(f"{head}weight_sharing"),
        "model.class_bias": given.get(f"{head}init_classification_head_bias", given.get(f"{head}init_head_bias")),
        "model.displacement_bias": given.get(f"{head}init_regression_head_bias", 0.0 if ranges else None),
        "model.head": "linear" if given[heads[0]] == "linear_head" else "conv",
        "model.project_texts": clip_text,
        "towers.frame_token": {"token": "cls", "gap": "gap"}[
            given["model.video_tower_config.encoder_config.image_encoder_config.classifier"]
        ],
        "towers.image": FREEZE[given["model.video_tower_config.freeze"]],
        "towers.text": FREEZE[given["model.text_tower_config.freeze"]] if clip_text else "cached",
        "targets.range_edges": [float(low) for low, _ in ranges] + [math.inf] if ranges else None,
        "targets.radius": given.get("dataset_configs.radius"),
        "loss.box": given.get("box_loss_type"),
        "loss.relevance": given.get("classification_loss_type", "sigmoid"),
        "loss.relevance_weight": given.get("classification_loss_alpha"),
        "loss.focal_alpha": given.get("focal_loss_alpha"),
        "loss.focal_gamma": given.get("focal_loss_gamma"),
        "decode.score_threshold": given.get("score_threshold"),
        "decode.nms_sigma": given.get("soft_nms_sigma"),
        "decode.max_detections": given.get("max_detections"),
        "data.frame_pick": "floor"
        if "dataset_configs.sampling_strategy" in given
        else None,  # linspace, of frame counts
        "data.fps": 1 / float(given["dataset_configs.secs_per_timestep"]) if ranges else None,
        "data.num_steps": given["dataset_configs.num_frames"],
        "data.max_text_tokens": given.get(
            "dataset_configs.tokenizer_config.max_num_tokens",
            given.get("dataset_configs.modality_configs.caption.max_num_tokens"),
        ),
        "optim.lr": given.get("layer_prefix_to_base_lrs.video_text_fusion", given["lr_configs.base_learning_rate"]),
        "optim.tower_lr": given["lr_configs.base_learning_rate"],
        "optim.momentum": given["optimizer_configs.momentum"],
        "optim.weight_decay": given["optimizer_configs.weight_decay"],
        "optim.clip_norm": given["max_grad_norm"],
        "train.batch_size": given["batch_size"],
    }
    return {key: value for key, value in values.items() if value is not None}


def value_of(recipe: Recipe, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_scenic_recipe_has_the_values_of_its_released_configuration(shared, name):
    configs = pd.read_csv(shared / "golden" / "scenic" / "configs.csv", index_col=0, dtype=str)
    recipe, wanted = loaded(f"scenic/{name}"), official(configs.loc[f"{CONFIGS[name]}.py"])
    assert CONFIGS[name] in " ".join(header(f"scenic/{name}")) and len(wanted) >= 19
    for key, value in wanted.items():
        ours = value_of(recipe, key)
        same_type = type(ours)(float(value)) if isinstance(ours, int | float) and not isinstance(ours, bool) else value
        assert str(ours) == str(same_type), key


STEPS_PER_EPOCH = {  # the release counts videos that were left to its authors, and captions one a video and step
    "anet_tal_b": 155,
    "anet_tal_l": 155,
    "anet_captions_b": 37421 / 64,
    "anet_captions_l": 37421 / 64,
    "charades_b": 193,
    "coin_l": 132,
    "qvhighlights_b": 91,
    "qvhighlights_l": 91,
}
TOTAL_STEPS = {"anet_tal_b": 3100, "anet_tal_l": 4650, "anet_captions_b": 3100, "anet_captions_l": 6200}
TOTAL_STEPS |= {"charades_b": 5790, "coin_l": 7260, "qvhighlights_b": 2730, "qvhighlights_l": 2730}


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_warm_up_and_drops_are_those_of_the_release(shared, name):
    configs = pd.read_csv(shared / "golden" / "scenic" / "configs.csv", index_col=0, dtype=str)
    config, optim = configs.loc[f"{CONFIGS[name]}.py"], loaded(f"scenic/{name}").optim
    per_epoch, total = STEPS_PER_EPOCH[name], TOTAL_STEPS[name]
    assert loaded(f"scenic/{name}").train.epochs * per_epoch == pytest.approx(total, rel=0.01)
    assert optim.warmup_epochs * per_epoch == pytest.approx(float(config["lr_configs.warmup_steps"]), rel=0.01)
    stated = (config["lr_configs.decay_steps"], config["lr_configs.decay_events"].strip("[]"))
    drop = min((float(event) for event in stated if event != "(unset)"), default=math.inf)
    if optim.schedule == "step":
        assert [epoch * per_epoch for epoch in optim.step_epochs] == pytest.approx([drop], rel=0.01)
    elif optim.schedule == "constant":
        assert drop > total
    assert (optim.schedule == "cosine") == ("cosine" in config["lr_configs.factors"])


# -- parameters -------------------------------------------------------------------------------------------------------


def transformer_size(width: int, layers: int) -> int:
    return layers * (12 * width**2 + 13 * width)


def image_tower_size(recipe: Recipe) -> int:
    """CLIP's image tower without its projection; a class embedding per frame, or none where patches are averaged."""
    width, layers, patch = (1024, 24, 14) if recipe.towers.name == "ViT-L-14" else (768, 12, 16)
    has_class = recipe.towers.frame_token == "cls"
    embeddings = (224 // patch) ** 2 + has_class + 3 * patch**2 + has_class * recipe.data.num_steps
    return transformer_size(width, layers) + (embeddings + 4) * width


def text_tower_size(recipe: Recipe) -> int:
    """CLIP's text tower without its projection, with the positions that are used."""
    width = recipe.model.width
    return transformer_size(width, 12) + (49408 + recipe.data.max_text_tokens + 2) * width


@pytest.mark.parametrize("name", CONFIGS)
def test_a_scenic_recipe_has_the_parameters_of_the_release(name):
    recipe = loaded(f"scenic/{name}")
    towers = image_tower_size(recipe) + (text_tower_size(recipe) if recipe.towers.text != "cached" else 0)
    frame_dim = 1024 if recipe.towers.name == "ViT-L-14" else 768
    with torch.device("meta"):
        model = UnLoc(recipe.model, frame_dim, recipe.model.width, recipe.data.num_steps, localizes=recipe.task != "as")
    total = re.search(r"([\d,]{11}) parameters", stated(f"scenic/{name}", "From the code:"))[1]
    assert towers + parameter_counts(model)["total"] == int(total.replace(",", ""))
