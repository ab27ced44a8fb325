import re
from pathlib import Path

import pytest

from unloc.config import Recipe
from unloc.errors import ConfigError, MissingError
from unloc.recipes import find_recipe, load_recipe, shipped_recipes


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text)
    return str(path)


def test_a_recipe_states_only_what_differs_from_its_base(tmp_path):
    grandparent = "name: old\ntask: tal\nmodel: {width: 64, num_heads: 4}\ntargets: {range_edges: [0, 4, inf]}\n"
    parent = "base: grandparent.yaml\nmodel: {num_levels: 3, width: 32}\ntargets: {range_edges: [0, 4, 8, inf]}\n"
    path = write(tmp_path, grandparent=grandparent, parent=parent, child="base: parent.yaml\nmodel: {width: 16}\n")
    recipe = load_recipe(path, ["train.epochs=3"])
    assert (recipe.name, recipe.task, recipe.train.epochs) == ("child", "tal", 3)
    assert (recipe.model.width, recipe.model.num_heads, recipe.model.num_levels) == (16, 4, 3)
    assert recipe.targets.range_edges == [0, 4, 8, float("inf")]  # lists are replaced, not joined


def test_a_base_may_be_a_shipped_name_and_be_replaced_on_the_command_line(tmp_path):
    path = write(tmp_path, own="base: synth_mr\nmodel: {width: 64}\n", other="task: tal\noptim: {lr: 0.5}\n")
    assert load_recipe(path.replace("other", "own")).optim.name == "adamw"
    rebased = load_recipe(path.replace("other", "own"), [f"base={path}", "model.num_heads=2"])
    assert (rebased.task, rebased.optim.lr, rebased.model.width, rebased.model.num_heads) == ("tal", 0.5, 64, 2)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("base: nowhere", MissingError, r"child\.yaml: base: .*'nowhere'"),
        ("base: nowhere.yaml", MissingError, r"child\.yaml: base: .*nowhere\.yaml"),
        ("base: parent.yaml", ConfigError, r"child → parent → child"),
        ("base: child.yaml", ConfigError, r"child → child"),
        ("base: wrong.yaml", ConfigError, r"wrong\.yaml: .*model\.widht.*model\.width"),
        ("base: synth_mr\nmodle: {}", ConfigError, r"child\.yaml: .*modle.*model\?"),
        ("base: [synth_mr]", ConfigError, r"child\.yaml: base: .*synth_mr"),
        ("base: synth_mr\nmodel: 3", ConfigError, r"child\.yaml: model: .*3"),
        ("- synth_mr", ConfigError, r"child\.yaml: .*list"),
        ("model: {", ConfigError, r"child\.yaml: .*line 2"),
    ],
)
def test_a_broken_recipe_is_one_line_that_names_file_and_key(tmp_path, text, error, words):
    path = write(tmp_path, parent="base: child.yaml", wrong="model: {widht: 3}", child=text)
    with pytest.raises(error, match=words) as raised:
        load_recipe(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.widht=3", "override: .*model.widht"),
        ("model=[", r"override: model=\[: expected"),
        ("optim.lr=fast", r"^override: optim\.lr: .*fast"),
        ("model.width=wide", r"^override: model\.width: .*wide"),
        ("train.batch_size=null", r"^override: train\.batch_size: "),
    ],
)
def test_a_broken_override_is_told_apart_from_the_file(override, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe("synth_mr", [override])


def test_a_wrong_type_in_a_file_names_the_file_that_has_it(tmp_path):
    path = write(tmp_path, parent="optim: {lr: fast}", child="base: parent.yaml\ntask: mr\n")
    with pytest.raises(ConfigError, match=r"parent\.yaml: optim\.lr: .*fast"):
        load_recipe(path, ["optim.momentum=0.5"])


@pytest.mark.parametrize("spelling", ["data.val_split=", "data.val_split=null", "data.val_split=''"])
def test_no_validation_split_is_spelled_as_an_empty_value_or_null(spelling, tmp_path):
    recipe = load_recipe("synth_mr", [spelling])
    assert recipe.data.val_split == "" and recipe == load_recipe("synth_mr", ["data.val_split="])
    path = write(tmp_path, own="base: synth_mr\ndata: {val_split: null}\ntowers: {name: }\n")
    assert (load_recipe(path).data.val_split, load_recipe(path).towers.name) == ("", "")


def test_shipped_rows_are_found_by_name_and_bases_may_be_rows_too():
    for name, stated in shipped_recipes().items():
        assert find_recipe(name) == stated and stated.file.is_file()
        assert stated.values.get("base", name) in shipped_recipes()
    with pytest.raises(MissingError, match="close: synth_mr"):
        find_recipe("synt_mr")


def test_a_mistake_in_a_shipped_row_names_file_and_row(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes", table="rows:\n  wide: {model: {widht: 3}}\n  good: {base: wide}\n")
    monkeypatch.setattr("unloc.recipes.MANIFEST_FOLDERS", (tmp_path,))
    shipped_recipes.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"table\.yaml: wide: .*model\.widht"):
            load_recipe("good")
    finally:
        shipped_recipes.cache_clear()


def test_the_model_page_names_keys_that_recipes_have_and_files_that_are_there():
    root = Path(__file__).resolve().parents[1]
    page = (root / "docs" / "model.md").read_text()
    sections = {name: getattr(Recipe(), name) for name in ("model", "loss", "towers", "targets", "data")}
    keys = re.findall(rf"`({'|'.join(sections)})\.(\w+)`", page)
    assert len(keys) >= 8 and all(hasattr(sections[section], key) for section, key in keys)
    paths = re.findall(r"`((?:unloc|tests|manifests)/[\w/.]+)`", page)
    assert len(paths) >= 6 and all((root / path).exists() for path in paths)
