"""The package as others get it: a wheel with recipes and the toy tower, usable from any folder; recipes that load."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.training.recipe_headers import header
from unloc.recipes import dump_recipe, load_recipe, shipped_recipes

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_recipes_tower_and_checkpoints_and_runs_from_another_folder(tmp_path):
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=True)
    wheel = tmp_path / done.stdout.split()[-1]
    assert wheel.stat().st_size < 16e6
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    code = (
        "import unloc, pipeline, unloc.recipes as r; import unloc.synth as s\n"
        "files = [s.TOWER_FOLDER / name for name in ('config.json', 'weights.safetensors')]\n"
        "from unloc.report.page import SHELL\n"
        "files += [SHELL] + [s.toy_unloc_folder(t) / 'model.safetensors' for t in ('mr', 'tal', 'as')]\n"
        "print(unloc.__file__, len(r.shipped_recipes()) >= 77, all(p.is_file() for p in files))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    file, recipe, shipped = done.stdout.split()
    assert file.startswith(str(tmp_path)) and recipe == "True" and shipped == "True"


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.name == name and f"task: {recipe.task}" in dump_recipe(recipe)
    lines = header(name)
    assert any(
        line.startswith(
            (
                "Command: unloc fit",
                "Command: unloc pretrain",
                "Command: none as yet",
                f"unloc fit {name} ",
                f"unloc pretrain {name} ",
            )
        )
        for line in lines
    )
    assert any(line.startswith("Expected") for line in lines)


def test_the_public_names_load_when_asked_for():
    import unloc

    assert callable(unloc.open_cache) and callable(unloc.load_model) and callable(unloc.evaluation.moment_retrieval)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        unloc.nonsense  # noqa: B018
