"""Targets, losses, decoding and Soft-NMS against the official implementation's tensors (spec §A), and our own."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from unloc.config import LossConfig
from unloc.model.unloc import Outputs
from unloc.ops.nms import soft_nms
from unloc.ops.points import Targets, decode_segments, localization_targets, make_points
from unloc.training.objective import caption_weights, pair_losses, segmentation_loss

EDGES = [0.0, 4.0, 8.0, 16.0, math.inf]
T = 128
OWN = Path(__file__).parents[1] / "golden" / "model.npz"


@pytest.fixture(scope="session", params=["official", "own"])
def golden(request):
    """The official implementation's tensors, and ours of the same names, which are always there (tests/golden)."""
    if request.param == "own":
        return np.load(OWN)
    return np.load(request.getfixturevalue("shared") / "golden" / "scenic" / "unloc_golden.npz")


def steps_of(golden, case):
    frames = np.stack([golden[f"{case}/start"], golden[f"{case}/end"]], axis=-1)
    return torch.from_numpy((frames * (T - 1) / (golden[f"{case}/total_frames"] - 1)).astype(np.float32))


def test_tal_targets_are_the_official_ones(golden):
    text = torch.from_numpy(golden["target_tal/seg_label"])[None]
    targets = localization_targets(steps_of(golden, "target_tal")[None], text, 3, make_points(T, 4), EDGES, 3.0)
    label = torch.from_numpy(golden["target_tal/label"]).T.bool()
    assert torch.equal(targets.relevance[0], label)
    expected = torch.from_numpy(golden["target_tal/displacements"]).transpose(0, 1)
    inside = expected < 147  # the official filler is (N + 1) / 2^l = 1180 / 8 at least
    assert inside.sum() > 300
    torch.testing.assert_close(targets.displacements[0][inside], expected[inside], atol=1e-5, rtol=0)


def test_mr_targets_are_the_official_ones(golden):
    segments = steps_of(golden, "target_mr")[None]
    targets = localization_targets(segments, torch.arange(5)[None], 5, make_points(T, 4), EDGES, 3.0)
    label = torch.from_numpy(golden["target_mr/label"])[..., 0].bool()
    assert torch.equal(targets.relevance[0], label)
    expected = torch.from_numpy(golden["target_mr/displacements"])
    torch.testing.assert_close(targets.displacements[0][label], expected[label], atol=1e-5, rtol=0)


BOX_NAMES = {"iou+center_offset_squared": "iou+center_offset_squared", "l1": "l1_over_union", "iou": "iou"}
BOX_NAMES |= {"l1+iou": "l1_over_union+iou", "0.5*l1+1.0*iou": "0.5*l1_over_union+1.0*iou"}


def tensors(golden, case):
    arrays = {key.split("/", 1)[1]: golden[key] for key in golden if key.startswith(f"{case}/")}
    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}


@pytest.mark.parametrize("relevance", ["focal", "sigmoid"])
@pytest.mark.parametrize("box", BOX_NAMES)
def test_tal_losses_are_the_official_ones(golden, relevance, box):
    case = tensors(golden, "loss_tal")
    out = case["logits"].unflatten(-1, (3, 3)).transpose(1, 2)  # video, class, point: logit, start, end
    targets = Targets(case["label"].bool().transpose(1, 2), case["displacements"].transpose(1, 2))
    weights = case["frame_mask"].bool()[:, None]
    config = LossConfig(relevance=relevance, box=BOX_NAMES[box])
    parts = pair_losses(Outputs(out[..., 0], out[..., 1:], None), targets, weights, weights.sum(), config)
    # float32 steps are 2e-6 wide at the size of the sigmoid losses: two of them are allowed
    assert float(sum(parts.values())) == pytest.approx(float(case[f"{relevance}|{box}"]), abs=1e-6, rel=2e-7)


@pytest.mark.parametrize("gathered", [True, False])
def test_mr_losses_are_the_official_ones(golden, gathered):
    """Two captions of each of two videos, one of them padding; all pairs, or (not gathered) each video's own."""
    case = tensors(golden, "loss_mr")
    own = torch.eye(2, dtype=torch.bool).repeat_interleave(2, dim=1)[..., None]  # video, caption of all
    label = case["label"][..., 0].bool().flatten(0, 1)
    targets = Targets(own & label, case["displacements"].flatten(0, 1).expand(2, -1, -1, -1))
    weights = caption_weights(case["frame_mask"].bool(), case["caption_mask"].bool().flatten())
    weights = weights.expand(2, -1, -1) if gathered else weights & own
    outputs = Outputs(case["logits"][..., 0], case["logits"][..., 1:], None)
    parts = pair_losses(outputs, targets, weights, weights.sum(), LossConfig())
    expected = float(case[f"focal|iou|all_gather={gathered}"])
    assert float(sum(parts.values())) == pytest.approx(expected, abs=1e-6)


def test_the_as_loss_is_the_official_one(golden):
    case = tensors(golden, "loss_as")
    logits, labels = case["logits"].transpose(1, 2), case["label"].transpose(1, 2)
    loss = segmentation_loss(logits, labels, case["frame_mask"].bool(), 1, LossConfig(relevance="sigmoid"))
    assert float(loss) == pytest.approx(float(case["sigmoid"]), abs=1e-6)


def seconds_of(golden, case):
    """Decoded segments in seconds, as the official code clips and scales them: N stored frames at 10 fps."""
    displacements = torch.from_numpy(golden[f"{case}/displacements"])
    num_frames = int(golden[f"{case}/total_frames"])
    per_text = displacements.transpose(0, 1) if case == "decode_tal" else displacements
    segments = decode_segments(per_text, make_points(T, 4)) * ((num_frames - 1) / (T - 1))
    return segments.clamp(0, num_frames) * 0.1


def test_tal_segments_are_decoded_as_officially(golden):
    segments = seconds_of(golden, "decode_tal").transpose(0, 1)
    probs = torch.from_numpy(golden["decode_tal/probs"])
    position, label = torch.nonzero(probs >= 0.001, as_tuple=True)
    assert label.tolist() == golden["decode_tal/class_idx"].tolist()
    expected = torch.from_numpy(golden["decode_tal/segments"])
    torch.testing.assert_close(segments[position, label], expected, atol=2e-5, rtol=0)


def test_mr_segments_are_decoded_as_officially(golden):
    expected = torch.from_numpy(golden["decode_mr/segments"])
    torch.testing.assert_close(seconds_of(golden, "decode_mr"), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("per_class", [False, True])
def test_soft_nms_keeps_what_the_official_one_keeps(golden, per_class):
    segments = torch.from_numpy(golden["decode_tal/segments"])
    scores = torch.from_numpy(golden["decode_tal/scores"])
    label = golden["decode_tal/class_idx"]
    name = "nms_multiclass" if per_class else "nms_agnostic"
    groups = [np.flatnonzero(label == c) for c in range(3)] if per_class else [np.arange(len(label))]
    chosen, kept_scores = [], []
    for group in groups:
        group = torch.from_numpy(group)
        index, kept = soft_nms(
            segments[group][None], scores[group][None], sigma=0.3, score_threshold=0.001, max_detections=100
        )
        chosen += group[index[0][kept[0] > 0]].tolist()
        kept_scores.append(kept[0][kept[0] > 0])
    assert label[chosen].tolist() == golden[f"{name}/class_idx"].tolist()
    torch.testing.assert_close(segments[chosen], torch.from_numpy(golden[f"{name}/segments"]), atol=0, rtol=0)
    torch.testing.assert_close(torch.cat(kept_scores), torch.from_numpy(golden[f"{name}/scores"]), atol=1e-6, rtol=0)


def test_soft_nms_of_several_captions_at_once_equals_the_official_one(golden):
    index, kept = soft_nms(
        torch.from_numpy(golden["decode_mr/segments"]),
        torch.from_numpy(golden["decode_mr/scores"]),
        sigma=0.3,
        score_threshold=0.001,
        max_detections=100,
    )
    for row in range(2):
        expected = torch.from_numpy(golden[f"nms_mr_{row}/segments"])
        segments = torch.from_numpy(golden["decode_mr/segments"])[row][index[row]]
        torch.testing.assert_close(segments, expected, atol=0, rtol=0)
        scores = torch.from_numpy(golden[f"nms_mr_{row}/scores"])
        torch.testing.assert_close(kept[row], scores, atol=1e-6, rtol=0)
