"""The model is one graph under torch.compile, has no recompilation over text lengths, and reads nothing back."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.processes import apart
from unloc.config import ModelConfig
from unloc.model.unloc import UnLoc

TINY = ModelConfig(width=16, num_heads=2, mlp_width=32, num_layers=2, num_levels=2, num_head_convs=1)
VARIANTS = [
    {},
    {"pyramid": "fpn", "share_heads": False, "text_tokens": "eos"},
    {"fusion": "late", "saliency_head": True},
    {"displacements": "shared", "max_texts_in_flight": 2},
]


def inputs(num_tokens, *, masked):
    torch.manual_seed(num_tokens)
    frame_mask = torch.arange(16) < torch.tensor([[16], [12]])
    text_mask = torch.arange(num_tokens) < torch.tensor([[num_tokens], [3], [5]])
    masks = (frame_mask, text_mask) if masked else (None, None)
    return torch.randn(2, 16, 16), masks[0], torch.randn(3, num_tokens, 16), masks[1]


def tensors(outputs):
    return [value for value in vars(outputs).values() if value is not None]


def compiled_graphs(changes, *, masked):
    """How many graphs a compiled model has after texts of 6 to 32 tokens; its outputs are those of the model."""
    model, graphs = UnLoc(dataclasses.replace(TINY, **changes), 16, 16, 16), []

    def counted(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=counted, fullgraph=True)
    for num_tokens in (6, 7, 32):
        given = inputs(num_tokens, masked=masked)
        for tokens_or_mask in given[2:]:
            if tokens_or_mask is not None:
                torch._dynamo.mark_dynamic(tokens_or_mask, 1)
        found, expected = compiled(*given), model(*given)
        for one, other in zip(tensors(found), tensors(expected), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        sum(value.sum() for value in tensors(found)).backward()
    return len(graphs)


def graphs_of_variants():
    return [compiled_graphs({}, masked=False), *(compiled_graphs(variant, masked=True) for variant in VARIANTS)]


def test_texts_of_6_to_32_tokens_are_one_graph_that_is_compiled_once():
    # In a process of its own: here every function is wrapped by the check of its shapes.
    assert apart(graphs_of_variants) == [1] * (len(VARIANTS) + 1)


class Recorder(TorchDispatchMode):
    """The names of all operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_step_reads_nothing_back_and_copies_nothing_from_the_host(changes):
    model, given = UnLoc(dataclasses.replace(TINY, **changes), 16, 16, 16), inputs(6, masked=True)
    with Recorder() as recorder:
        sum(value.sum() for value in tensors(model(*given))).backward()
    # What waits for the device (item, nonzero, masks as indices) and what builds a tensor from Python values.
    assert not recorder.names & {"_local_scalar_dense", "nonzero", "is_nonzero", "lift_fresh", "masked_select"}
