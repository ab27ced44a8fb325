import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from unloc.annotations.converters import CONVERTERS, convert
from unloc.annotations.reading import Problems
from unloc.recipes import shipped_recipes
from unloc.tasks import TASKS

FOLDER = Path(__file__).resolve().parents[2] / "manifests" / "datasets"
DESCRIPTIONS = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted(FOLDER.glob("*.yaml"))}
COPIES = {  # what the copies under ../shared/annotations are called
    "activitynet": ("activitynet_1.3", {"activity_net.v1-3.min.json": "activity_net.v1-3.rebuilt.json"}),
    "activitynet_captions": ("activitynet_captions", {}),
    "charades_sta": ("charades_sta", {}),
    "qvhighlights": ("qvhighlights", {}),
    "coin": ("coin", {"COIN.json": "COIN.rebuilt.json"}),
    "thumos14": ("thumos14", {}),
}


def converted(shared: Path, name: str, repairs: Problems, *more: str):
    """The manifest that the description's own command makes of the copy of its files."""
    words = shlex.split(DESCRIPTIONS[name]["convert"])
    folder, renamed = COPIES[name]
    files = [*DESCRIPTIONS[name]["files"], *more]
    return convert(
        words[3], [shared / "annotations" / folder / renamed.get(file, file) for file in files], None, repairs
    )


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_says_where_from_under_which_licence_and_how_to_convert(name):
    described = DESCRIPTIONS[name]
    assert described["name"] == name and described["source"] and described["licence"] and described["notes"]
    words = shlex.split(described["convert"])
    assert words[:3] == ["unloc", "data", "convert"] and words[3] in CONVERTERS
    assert words[5 : words.index("--out")] == described["files"]
    splits = {described["train_on"], described["report_on"], described.get("select_on", described["train_on"])}
    assert splits <= set(described["splits"]) and set(described["tasks"]) <= set(TASKS)


@pytest.mark.parametrize("name", sorted(COPIES.keys() - {"coin"}))
def test_the_described_counts_are_those_of_the_real_files(shared, name):
    described = DESCRIPTIONS[name]
    manifest = converted(shared, name, Problems())
    assert manifest.name == name and list(manifest.tasks) == described["tasks"]
    assert len(manifest.classes) == described.get("classes", 0)
    assert set(manifest.splits) == set(described["splits"])
    for split, counts in described["splits"].items():
        part = manifest.select(split)
        found = {"videos": len(part.videos), "queries": len(part.queries), "instances": len(part.instances)}
        found["windows"] = int(part.queries["segments"].map(len).sum()) if len(part.queries) else 0
        assert {key: found[key] for key in counts} == counts, split


def test_coin_has_the_described_videos_of_which_the_copy_here_lacks_812(shared):
    repairs = Problems()
    manifest = converted(shared, "coin", repairs, "coin_official_split_11827.json")
    gaps = {rule.split()[2]: len(places) for rule, places in repairs.places.items() if "coverage gap" in rule}
    for split, counts in DESCRIPTIONS["coin"]["splits"].items():
        assert len(manifest.select(split).videos) + gaps[split] == counts["videos"]
    assert len(manifest.classes) == DESCRIPTIONS["coin"]["classes"] and sum(gaps.values()) == 812


def test_every_recipe_that_a_description_names_is_shipped_and_uses_its_splits():
    from unloc.recipes import load_recipe

    for described in DESCRIPTIONS.values():
        for name in described["recipes"]:
            assert name in shipped_recipes(), name
            recipe = load_recipe(name)
            assert recipe.data.train_split == described["train_on"]
            assert recipe.data.val_split == described.get("select_on", "")
            assert recipe.task in described["tasks"]
