"""`train.compile`: the same run through torch.compile, whose checkpoints are those of any run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import apart
from tests.training.test_trainer import recipe_for
from unloc.errors import ConfigError
from unloc.training.run import fit_recipe


def fit_compiled(manifest: Path, cache: Path, folder: Path) -> tuple[int, str]:
    """Fit with and without torch.compile, here without code generation; then resume the compiled run without it.

    Returns the number of graphs, and the error where the compiler is broken.
    """
    graphs = []

    def counted(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compile_, words = torch.compile, ["train.epochs=0.3", "train.eval_every_epochs=0.15", "optim.name=sgd"]
    torch.compile = lambda function: compile_(function, backend=counted)
    for name in ("off", "on"):
        fit_recipe(recipe_for("mr", *words, f"train.compile={name}"), manifest, cache, folder / name, threads=1)
    count = len(graphs)
    fit_recipe(recipe_for("mr", *words), manifest, cache, folder / "on", threads=1, resume=True)

    def broken(graph, example_inputs):
        raise RuntimeError("no compiler")

    torch.compile = lambda function: compile_(function, backend=broken)
    with pytest.raises(ConfigError) as raised:
        fit_recipe(recipe_for("mr", "train.compile=on"), manifest, cache, folder / "broken", threads=1)
    return count, str(raised.value)


def test_a_compiled_run_has_one_graph_and_ends_in_the_same_weights(token_world, tmp_path):
    # In a process of its own: here every function is wrapped by the check of its shapes.
    count, error = apart(fit_compiled, *token_world, tmp_path)
    assert count == 1 and "no compiler" in error and "set train.compile=off" in error
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
