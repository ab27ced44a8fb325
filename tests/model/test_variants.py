"""Every variant of the paper's tables builds and runs; every pair that contradicts itself is one clear error."""

import dataclasses
import itertools
import re

import pytest
import torch

from unloc.config import ModelConfig, Recipe
from unloc.errors import ConfigError
from unloc.model.unloc import MAX_SEQUENCES, UnLoc
from unloc.recipes import load_recipe, recipe_from_dict

TINY = {"width": 16, "num_heads": 2, "mlp_width": 32, "num_layers": 3, "num_levels": 3, "num_head_convs": 1}


def build(**changes):
    torch.manual_seed(0)
    options = {key: changes.pop(key) for key in ("num_classes", "localizes") if key in changes}
    return UnLoc(ModelConfig(**TINY | changes), 16, 16, 16, **options).eval()


def inputs(videos=2, texts=3):
    generator = torch.Generator().manual_seed(1)
    frame_mask = torch.arange(16) < torch.tensor([[16], [13]])[:videos]
    text_mask = torch.arange(5) < torch.randint(2, 6, (texts, 1), generator=generator)
    return (
        torch.randn(videos, 16, 16, generator=generator),
        frame_mask,
        torch.randn(texts, 5, 16, generator=generator),
        text_mask,
    )


AXES = {
    "fusion": ("mid", "late", "none"),
    "pyramid": ("simple", "fpn", "none"),
    "text_tokens": ("all", "eos"),
    "positions": ("sinusoidal", "learned", "none"),
    "share_heads": (True, False),
    "displacements": ("per_text", "shared"),
}


@pytest.mark.parametrize(
    "values", list(itertools.product(*AXES.values())), ids=lambda values: "-".join(map(str, values))
)
def test_every_variant_scores_every_class_and_trains_every_parameter(values):
    changes = dict(zip(AXES, values, strict=True))
    model = build(**changes, num_classes=3 if changes["fusion"] == "none" else None).train()
    outputs = model(*inputs(), pairing="all")
    points = 16 if changes["pyramid"] == "none" else 28
    assert outputs.relevance.shape == (2, 3, points) and outputs.displacements.shape == (2, 3, points, 2)
    assert (outputs.displacements >= 0).all()
    (outputs.relevance.sum() + outputs.displacements.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    per_text = changes["displacements"] == "per_text" and changes["fusion"] != "late"
    assert torch.equal(outputs.displacements[:, 0], outputs.displacements[:, 1]) != per_text


@pytest.mark.parametrize("num_convs", [1, 2, 3, 4])
def test_heads_have_one_to_four_convolutions(num_convs):
    assert len(build(num_head_convs=num_convs).relevance_head.blocks[0].convs) == num_convs


def test_shared_displacements_come_from_features_averaged_over_all_classes_in_chunks_or_not():
    results = {}
    for chunk in (0, 2):
        model = build(displacements="shared", max_texts_in_flight=chunk).train()
        seen = []
        model.encoder.register_forward_hook(lambda module, given, levels, seen=seen: seen.append(levels))
        outputs = model(*inputs(texts=5), pairing="all")
        (outputs.displacements[:, 0].square().sum() + outputs.relevance.sum()).backward()
        results[chunk] = outputs.displacements, [parameter.grad for parameter in model.parameters()]
        if not chunk:
            means = [level.unflatten(0, (2, 5)).mean(dim=1) for level in seen[0]]
            expected = model.displacement_head(means)[:, None].expand(-1, 5, -1, -1)
            torch.testing.assert_close(outputs.displacements, expected)
    torch.testing.assert_close(results[0], results[2], atol=1e-4, rtol=1e-4)


def test_what_the_first_layer_makes_of_frames_is_computed_once_and_changes_no_output():
    model, (frames, frame_mask, texts, text_mask) = build(), inputs()
    lengths = []
    model.encoder.layers[0].qkv.register_forward_hook(lambda module, given, out: lengths.append(out.shape[:2]))
    every = model(frames, frame_mask, texts, text_mask, pairing="all")
    assert lengths == [(2, 16), (3, 5)]  # frames once per video, tokens once per text; not 2 x 3 sequences of 21
    for video, text in itertools.product(range(2), range(3)):
        one = (frames[[video]], frame_mask[[video]], texts[[text]], text_mask[[text]])
        alone = model(*one, pairing="own")
        torch.testing.assert_close(alone.relevance[0, 0], every.relevance[video, text], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.displacements[0, 0], every.displacements[video, text], atol=1e-5, rtol=1e-5)


def test_ten_thousand_labels_stream_through_a_bounded_number_of_sequences():
    model, (frames, frame_mask, _, _) = build(num_layers=1, pyramid="simple"), inputs()
    texts, text_mask = torch.randn(10_000, 2, 16), torch.ones(10_000, 2, dtype=torch.bool)
    fused = []
    model.encoder.register_forward_hook(lambda module, given, levels: fused.append(len(given[0])))
    with torch.inference_mode():
        outputs = model(frames, frame_mask, texts, text_mask, pairing="all")
        few = model(frames, frame_mask, texts[-3:], text_mask[-3:], pairing="all")
    assert outputs.relevance.shape == (2, 10_000, 28) and max(fused) <= MAX_SEQUENCES
    assert sum(fused[:-1]) == 20_000
    torch.testing.assert_close(outputs.relevance[:, -3:], few.relevance, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [200, 778])
def test_all_classes_of_a_benchmark_in_chunks_have_the_gradients_of_all_at_once(classes):
    frames, frame_mask, _, _ = inputs()
    texts = torch.randn(classes, 2, 16, generator=torch.Generator().manual_seed(2)).double()
    gradients, fused = {}, {0: [], 50: []}
    for chunk, seen in fused.items():
        model = build(max_texts_in_flight=chunk, num_layers=1, num_levels=2, width=8).double().train()
        model.encoder.register_forward_hook(lambda module, given, levels, seen=seen: seen.append(len(given[0])))
        outputs = model(frames.double(), frame_mask, texts, torch.ones(classes, 2, dtype=torch.bool))
        (outputs.relevance.square().mean() + outputs.displacements.square().mean()).backward()
        gradients[chunk] = [parameter.grad for parameter in model.parameters()]
    assert fused[0] == [2 * classes] and max(fused[50]) == 100
    assert sum(fused[50]) == 2 * 2 * classes  # forward, and again in the backward pass
    for one, other in zip(gradients[0], gradients[50], strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


AS = ["task=as", "model.pyramid=none", "model.head=linear"]
OUT_OF_RANGE = """
    model.fusion=middle model.text_tokens=cls model.positions=rotary model.pyramid=bifpn model.displacements=none
    model.num_head_convs=0 model.num_head_convs=5 model.num_layers=0 model.width=30 model.dropout=1.5
    model.max_texts_in_flight=-1 model.class_bias=.nan
    data.num_steps=0 data.num_steps=100 data.max_text_tokens=1 data.max_text_tokens=500 data.coverage=2
    data.crop_probability=-1 data.crop_min_fraction=3 data.frame_pick=ceil
    targets.radius=-1 decode.nms_sigma=0
    loss.relevance=hinge loss.box=giou loss.box=l1+ loss.box=x*l1 loss.box=iou+l3 loss.focal_alpha=2
    optim.lr=.inf optim.tower_lr=-1 optim.momentum=2 optim.weight_decay=-1 optim.warmup_epochs=-1 optim.clip_norm=-1
    train.epochs=-1 train.epochs=.nan train.eval_every_epochs=0 train.ema_decay=1 train.seed=-1
    towers.text=none towers.text_name=bert towers.frame_token=mean
"""
CONTRADICTIONS = [
    (["model.pyramid=fpn", "model.num_layers=3"], r"model\.num_levels: 4"),
    (["model.pyramid=none"], r"targets\.range_edges: 4 .* 1 "),
    (["model.num_levels=5"], r"targets\.range_edges: 4 .* 5 "),
    (["targets.range_edges=[0,8,4,16,inf]"], r"targets\.range_edges: .*8.*4"),
    (["targets.range_edges=[4,8,16,32,inf]"], r"targets\.range_edges: .*from 0"),
    (["model.head=linear"], r"model\.head: .*task mr"),
    (["task=tal", "model.head=linear"], r"model\.head: .*task tal"),
    (["model.fusion=none"], r"model\.fusion: none .*task mr"),
    (["model.displacements=shared"], r"model\.displacements: shared"),
    (["task=hd"], r"model\.saliency_head: task hd"),
    (["task=tal", "model.saliency_head=true"], r"model\.saliency_head: task tal"),
    ([*AS, "model.saliency_head=true"], r"model\.saliency_head: task as"),
    (["train.classes_per_video=4"], r"train\.classes_per_video: .*task mr"),
    (["task=tal", "train.classes_per_video=4", "model.fusion=none"], r"train\.classes_per_video: .*fusion none"),
    (["task=tal", "train.classes_per_video=4", "model.displacements=shared"], "displacements shared.* all classes"),
    (["optim.schedule=step"], r"optim\.schedule: step .*optim\.step_epochs"),
    (["optim.step_epochs=[2, .nan]"], r"optim\.step_epochs: .*nan"),
    (["data.fps=2", "data.num_frames=128"], r"data\.fps: .*2\.0.*data\.num_frames 128"),
    (["towers.image=finetune"], r"towers\.image: finetune.*towers\.name"),
    (["model.width=16384", "model.mlp_width=65536", "model.num_layers=128"], r"model\.width: .*billion"),
    (["data.num_steps=65536", "train.batch_size=1000000"], r"train\.batch_size: 1000000 .*GiB"),
    (["train.epochs=1e300"], r"train\.epochs: .*1e\+300"),
    (["optim.warmup_epochs=1e300"], r"optim\.warmup_epochs: .*1e\+300"),
]
WHOLE_NUMBERS = [
    f"{section}.{item.name}"
    for section in ("model", "decode", "data", "train")
    for item in dataclasses.fields(getattr(Recipe(), section))
    if item.type in (int, int | None)
]


def refusal(*overrides):
    with pytest.raises(ConfigError) as raised:
        load_recipe("synth_mr", overrides)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250
    return str(raised.value)


@pytest.mark.parametrize("override", OUT_OF_RANGE.split())
def test_a_value_that_is_out_of_range_is_named_with_its_key(override):
    key, value = override.split("=", 1)
    assert re.search(f"{re.escape(key)}: .*{re.escape(value.lstrip('.'))}", refusal(override))


@pytest.mark.parametrize(("overrides", "words"), CONTRADICTIONS, ids=[" ".join(pair[0]) for pair in CONTRADICTIONS])
def test_a_recipe_that_contradicts_itself_is_one_clear_line(overrides, words):
    assert re.search(words, refusal(*overrides))


@pytest.mark.parametrize("key", WHOLE_NUMBERS)
@pytest.mark.parametrize("value", ["1e12", "1000000000000", "99999999999999999999999999", "-1000000000000"])
def test_a_size_beyond_all_memory_is_refused_before_memory_is_asked_for(key, value):
    assert len(WHOLE_NUMBERS) >= 13
    found = refusal(f"{key}={value}")
    assert key in found or "multiple" in found


def test_good_neighbours_of_the_bad_pairs_load():
    assert load_recipe("synth_mr", AS).model.head == "linear"
    shared = {"task": "tal", "model": {"displacements": "shared"}}
    assert recipe_from_dict(shared).model.displacements == "shared"
    assert load_recipe("synth_mr", ["task=tal", "model.fusion=none"]).model.fusion == "none"
    assert load_recipe("synth_mr", ["loss.box=.5*iou + center_offset_squared"]).loss.box
