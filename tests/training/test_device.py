"""Where fit, eval and extract compute and in what precision."""

import json

import pytest
import torch

from tests.training.test_trainer import recipe_for
from unloc.errors import InputError
from unloc.inference.device import resolve_device, resolve_precision
from unloc.model.unloc import UnLoc
from unloc.training.run import fit_recipe


@pytest.mark.parametrize(("num_gpus", "expected"), [(0, "cpu"), (2, "cuda:0")])
def test_auto_is_the_first_cuda_device_or_the_cpu(monkeypatch, num_gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert str(resolve_device("auto")) == expected


@pytest.mark.parametrize("name", ["quantum", "mps", "cuda:2", ""])
def test_a_device_that_torch_does_not_have_is_refused_in_one_line(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="--device") as raised:
        resolve_device(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cpu", None, "fp32"), ("cuda", (7, 5), "fp32"), ("cuda", (8, 0), "bf16"), ("cuda", (9, 0), "bf16")],
)
def test_auto_is_bfloat16_where_the_gpu_is_fast_with_it(monkeypatch, device, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device(device)) == expected
    assert resolve_precision("fp32", torch.device(device)) == "fp32"


@pytest.mark.parametrize(("precision", "used"), [("bf16", "bf16"), ("auto", "fp32")])
def test_evaluation_computes_in_the_precision_of_training_and_both_record_it(
    unloc, token_world, tmp_path, monkeypatch, precision, used
):
    manifest, cache = token_world
    run, seen = tmp_path / "run", set()
    fit_recipe(recipe_for("mr", "train.epochs=0.1", f"train.precision={precision}"), manifest, cache, run, threads=1)
    forward = UnLoc.forward

    def spy(self, *arguments, **options):
        outputs = forward(self, *arguments, **options)
        seen.add(outputs.relevance.dtype)
        return outputs

    monkeypatch.setattr(UnLoc, "forward", spy)
    assert unloc("eval", run, "--manifest", manifest, "--cache", cache, "--split", "test")[0] == 0
    assert seen == {torch.bfloat16 if used == "bf16" else torch.float32}
    for file in ("env.json", "eval/test/metrics.json"):
        recorded = json.loads((run / file).read_text())
        assert (recorded["device"], recorded["precision"]) == ("cpu", used)
