"""`train.compile`: the same run through torch.compile, whose checkpoints are those of any run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unloc.errors import ConfigError

GRAPHS = []


def fit_compiled(manifest: str, cache: str, folder: str) -> None:
    """Fit with and without torch.compile, here without code generation; then resume the compiled run without it."""
    from tests.training.test_trainer import recipe_for
    from unloc.training.run import fit_recipe

    def counted(graph, example_inputs):
        GRAPHS.append(graph)
        return graph.forward

    compile_, words = torch.compile, ["train.epochs=1", "train.eval_every_epochs=0.5", "optim.name=sgd"]
    torch.compile = lambda function: compile_(function, backend=counted)
    for name in ("off", "on"):
        recipe = recipe_for("mr", *words, f"train.compile={name}")
        fit_recipe(recipe, Path(manifest), cache, Path(folder) / name, threads=1)
    print(len(GRAPHS))
    fit_recipe(recipe_for("mr", *words), Path(manifest), cache, Path(folder) / "on", threads=1, resume=True)

    def broken(graph, example_inputs):
        raise RuntimeError("no compiler")

    torch.compile = lambda function: compile_(function, backend=broken)
    try:
        fit_recipe(recipe_for("mr", "train.compile=on"), Path(manifest), cache, Path(folder) / "broken", threads=1)
    except ConfigError as error:
        print(error)


def test_a_compiled_run_has_one_graph_and_ends_in_the_same_weights(token_world, tmp_path):
    # In a process of its own: here every function is wrapped by the check of its shapes.
    words = [sys.executable, "-m", "tests.training.test_compiled_run", *token_world, tmp_path]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    count, error = done.stdout.splitlines()
    assert count == "1" and "no compiler" in error and "set train.compile=off" in error
    files = [tmp_path / name / "checkpoints" / "last" / "model.safetensors" for name in ("off", "on")]
    one, other = map(load_file, files)
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5)
    rows = [
        [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("off", "on")
    ]
    for off, on in zip(*rows, strict=True):
        if off["kind"] == "train":
            assert on["loss"] == pytest.approx(off["loss"], rel=1e-4)


if __name__ == "__main__":
    fit_compiled(*sys.argv[1:])
