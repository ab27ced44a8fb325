"""Targets, decoding and Soft-NMS give the official implementation's tensors, and our own."""

import math

import numpy as np
import pytest
import torch

from unloc.ops.nms import soft_nms
from unloc.ops.points import decode_segments, localization_targets, make_points

EDGES = [0.0, 4.0, 8.0, 16.0, math.inf]
T = 128


def steps_of(scenic, case):
    frames = np.stack([scenic[f"{case}/start"], scenic[f"{case}/end"]], axis=-1)
    return torch.from_numpy((frames * (T - 1) / (scenic[f"{case}/total_frames"] - 1)).astype(np.float32))


def test_tal_targets_are_the_official_ones(scenic):
    text = torch.from_numpy(scenic["target_tal/seg_label"])[None]
    targets = localization_targets(steps_of(scenic, "target_tal")[None], text, 3, make_points(T, 4), EDGES, 3.0)
    label = torch.from_numpy(scenic["target_tal/label"]).T.bool()
    assert torch.equal(targets.relevance[0], label)
    expected = torch.from_numpy(scenic["target_tal/displacements"]).transpose(0, 1)
    inside = expected < 147  # the official filler is (N + 1) / 2^l = 1180 / 8 at least
    assert inside.sum() > 300
    torch.testing.assert_close(targets.displacements[0][inside], expected[inside], atol=1e-5, rtol=0)


def test_mr_targets_are_the_official_ones(scenic):
    segments = steps_of(scenic, "target_mr")[None]
    targets = localization_targets(segments, torch.arange(5)[None], 5, make_points(T, 4), EDGES, 3.0)
    label = torch.from_numpy(scenic["target_mr/label"])[..., 0].bool()
    assert torch.equal(targets.relevance[0], label)
    expected = torch.from_numpy(scenic["target_mr/displacements"])
    torch.testing.assert_close(targets.displacements[0][label], expected[label], atol=1e-5, rtol=0)


def seconds_of(scenic, case):
    """Decoded segments in seconds, as the official code clips and scales them: N stored frames at 10 fps."""
    displacements = torch.from_numpy(scenic[f"{case}/displacements"])
    num_frames = int(scenic[f"{case}/total_frames"])
    per_text = displacements.transpose(0, 1) if case == "decode_tal" else displacements
    segments = decode_segments(per_text, make_points(T, 4)) * ((num_frames - 1) / (T - 1))
    return segments.clamp(0, num_frames) * 0.1


def test_tal_segments_are_decoded_as_officially(scenic):
    segments = seconds_of(scenic, "decode_tal").transpose(0, 1)
    probs = torch.from_numpy(scenic["decode_tal/probs"])
    position, label = torch.nonzero(probs >= 0.001, as_tuple=True)
    assert label.tolist() == scenic["decode_tal/class_idx"].tolist()
    expected = torch.from_numpy(scenic["decode_tal/segments"])
    torch.testing.assert_close(segments[position, label], expected, atol=2e-5, rtol=0)


def test_mr_segments_are_decoded_as_officially(scenic):
    expected = torch.from_numpy(scenic["decode_mr/segments"])
    torch.testing.assert_close(seconds_of(scenic, "decode_mr"), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("per_class", [False, True])
def test_soft_nms_keeps_what_the_official_one_keeps(scenic, per_class):
    segments = torch.from_numpy(scenic["decode_tal/segments"])
    scores = torch.from_numpy(scenic["decode_tal/scores"])
    label = scenic["decode_tal/class_idx"]
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
    assert label[chosen].tolist() == scenic[f"{name}/class_idx"].tolist()
    torch.testing.assert_close(segments[chosen], torch.from_numpy(scenic[f"{name}/segments"]), atol=0, rtol=0)
    torch.testing.assert_close(torch.cat(kept_scores), torch.from_numpy(scenic[f"{name}/scores"]), atol=1e-6, rtol=0)


def test_soft_nms_of_several_captions_at_once_equals_the_official_one(scenic):
    index, kept = soft_nms(
        torch.from_numpy(scenic["decode_mr/segments"]),
        torch.from_numpy(scenic["decode_mr/scores"]),
        sigma=0.3,
        score_threshold=0.001,
        max_detections=100,
    )
    for row in range(2):
        expected = torch.from_numpy(scenic[f"nms_mr_{row}/segments"])
        segments = torch.from_numpy(scenic["decode_mr/segments"])[row][index[row]]
        torch.testing.assert_close(segments, expected, atol=0, rtol=0)
        scores = torch.from_numpy(scenic[f"nms_mr_{row}/scores"])
        torch.testing.assert_close(kept[row], scores, atol=1e-6, rtol=0)
