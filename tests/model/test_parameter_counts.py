"""The official configurations have the official parameter counts (Table 2 for T5)."""

import importlib.util
import re

import pytest
from typer.testing import CliRunner

from unloc.cli import app
from unloc.errors import TowerError
from unloc.model.build import counted_parameters
from unloc.recipes import load_recipe


def total_with(*towers):
    """Parameters of the official Base model with other towers."""
    recipe = load_recipe("scenic/anet_tal_b", ["towers.image=frozen", "towers.text=frozen", *towers])
    return counted_parameters(recipe)["total"]


@pytest.mark.parametrize(("text", "millions"), [("t5-small", 147.1), ("t5-base", 221.5)])
def test_models_with_unpaired_text_towers_are_as_large_as_in_table_2(text, millions):
    pytest.importorskip("transformers", reason="the extra `t5` is not installed")
    assert round(total_with(f"towers.text_name={text}") / 1e6, 1) == millions


def test_a_tower_that_cannot_be_counted_is_named():
    for image in ("ViT-B-17", "coca_ViT-B-32"):
        with pytest.raises(TowerError, match=f"tower '{image}'"):
            total_with(f"towers.name={image}")
    if importlib.util.find_spec("transformers") is None:
        with pytest.raises(TowerError, match=r"unloc\[t5\]"):
            total_with("towers.text_name=t5-base")


def printed_counts(recipe, *overrides):
    result = CliRunner().invoke(app, ["fit", recipe, *overrides, "--print-config"])
    assert result.exit_code == 0
    lines = result.output.split("# parameters")[1].splitlines()[1:]
    counts = {line[1:22].strip(): int(line[22:].replace(",", "")) for line in lines}
    assert sum(counts.values()) - counts["total"] - counts["all heads"] == counts["total"]
    return counts


def fusion_size(width, levels):
    """6 layers, and a depthwise convolution and a norm a level (one norm alone without a pyramid)."""
    return 6 * (12 * width**2 + 13 * width) + (levels * 6 * width if levels else 2 * width)


def heads_size(width, convs, *, separate=0, shared=0):
    """A logit and two displacements from norms and convolutions: one block for all levels with scales, or one each."""
    block = convs * (3 * width**2 + 3 * width)
    return (separate or 1) * (2 * block + 3 * width + 3) + 2 * shared


PRINTED = {
    "anet_tal_b": (fusion_size(512, 4), heads_size(512, 4, shared=4), 174_918_923),
    "anet_tal_l": (fusion_size(768, 5), heads_size(768, 4, shared=5), 360_690_957),
    "anet_captions_b": (fusion_size(512, 4), heads_size(512, 3, separate=4), 187_539_212),
    "anet_captions_l": (fusion_size(768, 4), heads_size(768, 4, shared=4), 484_289_803),
    "charades_b": (fusion_size(512, 4), heads_size(512, 3, separate=4), 187_531_020),
    "coin_l": (fusion_size(768, 0), 768 + 1, 346_493_697),
    "qvhighlights_b": (fusion_size(512, 4), heads_size(512, 3, shared=4), 173_363_467),
    "qvhighlights_l": (fusion_size(768, 4), heads_size(768, 3, shared=4), 480_907_019),
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_recipe_of_the_release_prints_its_official_total_and_parts_that_add_up_to_it(name):
    counts = printed_counts(f"scenic/{name}")
    assert tuple(counts[part] for part in ("encoder", "all heads", "total")) == PRINTED[name]
    if name == "anet_tal_b":  # the one whose parts are published
        towers = ("image_tower", "video_projection", "text_tower", "text_projection")
        assert [counts[part] for part in towers] == [85_896_960, 393_216, 63_134_720, 262_144]
        assert (counts["encoder"], counts["all heads"]) == (18_926_592, 6_305_291)


def test_a_model_without_text_has_no_text_tower_and_no_projection_of_texts():
    with_text = printed_counts("ablations/table2_clip_anet_tal")
    for changes in ([], ["base=scenic/anet_tal_b"]):
        counts = printed_counts("ablations/table2_no_text_anet_tal", *changes)
        assert not {"text_tower", "text_projection"} & set(counts)
    assert printed_counts("ablations/table2_no_text_anet_tal")["encoder"] == with_text["encoder"]


def test_what_print_config_prints_stays_the_recipe(tmp_path):
    result = CliRunner().invoke(app, ["fit", "scenic/anet_tal_b", "optim.lr=0.05", "--print-config"])
    assert result.exit_code == 0 and re.search("total +174,918,923", result.output)
    (tmp_path / "printed.yaml").write_text(result.output)
    assert load_recipe(str(tmp_path / "printed.yaml")) == load_recipe("scenic/anet_tal_b", ["optim.lr=0.05"])
