import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unloc.ops.losses import box_loss, focal_loss
from unloc.ops.nms import soft_nms
from unloc.ops.points import Targets, decode_segments, localization_targets, make_points, shared_displacements

EDGES = [0.0, 4.0, 8.0, 16.0, math.inf]
segment = st.tuples(st.floats(0, 127), st.floats(0.5, 120)).map(lambda pair: (pair[0], min(pair[0] + pair[1], 127.5)))


def segment_iou(segments, others):
    """Intersection over union of every segment with every other; 0 where the union is empty."""
    start = segments[..., :, None, 0].maximum(others[..., None, :, 0])
    end = segments[..., :, None, 1].minimum(others[..., None, :, 1])
    overlap = (end - start).clamp(min=0)
    length = (segments[..., 1] - segments[..., 0])[..., :, None]
    other_length = (others[..., 1] - others[..., 0])[..., None, :]
    union = length + other_length - overlap
    return (overlap / union.clamp(min=1e-12)).where(union > 0, 0.0)


@settings(deadline=None)
@given(st.lists(segment, min_size=1, max_size=5))
def test_decoding_the_targets_gives_the_segments_back_at_every_positive_point(segments):
    points = make_points(128, 4)
    steps = torch.tensor([segments])
    targets = localization_targets(steps, torch.arange(len(segments))[None], len(segments), points, EDGES, 3.0)
    decoded = decode_segments(targets.displacements, points)
    for row, (start, end) in enumerate(segments):
        found = decoded[0, row][targets.relevance[0, row]]
        torch.testing.assert_close(found, torch.tensor([[start, end]]).expand_as(found), atol=1e-3, rtol=0)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 4), st.integers(1, 6))
def test_every_level_by_itself_gives_random_segments_back_at_every_point_inside_them(data, level, multiple):
    num_steps = multiple * 16
    points = make_points(num_steps, 5)
    edges = [0.0] * (level + 1) + [math.inf] * (5 - level)  # this level takes segments of every length, others none
    start = data.draw(st.floats(0, num_steps - 1.0))
    end = data.draw(st.floats(start + 0.01, num_steps + 20.0))
    targets = localization_targets(torch.tensor([[[start, end]]]), torch.zeros(1, 1).long(), 1, points, edges, math.inf)
    inside = (points.strides == 2.0**level) & (points.steps >= np.float32(start)) & (points.steps <= np.float32(end))
    assert torch.equal(targets.relevance[0, 0], inside)
    decoded = decode_segments(targets.displacements, points)[0, 0][inside]
    torch.testing.assert_close(decoded, torch.tensor([[start, end]]).expand_as(decoded), atol=1e-4, rtol=0)


@settings(deadline=None)
@given(segment, st.integers(0, 3))
def test_a_segment_reaching_every_range_is_positive_near_its_centre_only(segment, level):
    points = make_points(128, 4)
    edges = [0.0, math.inf, math.inf, math.inf, math.inf] if level == 0 else EDGES
    targets = localization_targets(torch.tensor([[segment]]), torch.zeros(1, 1).long(), 1, points, edges, 3.0)
    centre = sum(segment) / 2
    distance = (points.steps - centre).abs()[targets.relevance[0, 0]]
    assert (distance <= 3 * points.strides[targets.relevance[0, 0]] + 1e-4).all()


@pytest.mark.parametrize("rows_per_video", [1, 3])
def test_classes_that_share_displacements_all_learn_the_shortest_segment_at_a_point(rows_per_video):
    points = make_points(16, 1)
    segments = torch.tensor([[[0.0, 12.0], [4.0, 8.0], [1.0, 6.0]]])
    targets = localization_targets(segments, torch.tensor([[0, 1, 2]]), 3, points, [0.0, math.inf], math.inf)
    if rows_per_video == 3:  # every class a row of its own
        targets = Targets(targets.relevance.transpose(0, 1), targets.displacements.transpose(0, 1))
    shared = shared_displacements(targets, rows_per_video)
    assert torch.equal(shared.relevance, targets.relevance)
    at_five = shared.displacements.reshape(3, 16, 2)[:, 5]
    assert at_five.tolist() == [[1.0, 3.0]] * 3  # classes 0, 1 and 2 are there; class 1 is the shortest
    assert shared.displacements.reshape(3, 16, 2)[0, 10].tolist() == [10.0, 2.0]  # class 0 alone


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_saturated_logits_have_finite_losses_and_gradients(gamma):
    logits = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0], requires_grad=True)
    for label in (0.0, 1.0):
        loss = focal_loss(logits, torch.full_like(logits, label), 0.25, gamma).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


positive = st.floats(0.01, 50)


@settings(deadline=None)
@given(st.tuples(positive, positive), st.tuples(positive, positive))
def test_box_losses_agree_with_the_iou_of_the_segments(predicted, target):
    one, other = torch.tensor(predicted, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    as_segments = [torch.stack([-box[0], box[1]])[None] for box in (one, other)]
    iou = segment_iou(*as_segments)[0, 0]
    loss = {name: box_loss(one, other, name) for name in ("iou", "l1", "l1_over_union", "diou")}
    torch.testing.assert_close(loss["iou"], 1 - iou, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(loss["l1_over_union"], loss["iou"], atol=1e-3, rtol=1e-3)
    assert loss["l1"] == (one - other).abs().sum()
    assert loss["diou"] >= loss["iou"]
    torch.testing.assert_close(box_loss(one, other, "0.5*iou + l1"), 0.5 * loss["iou"] + loss["l1"])


def plain_soft_nms(segments, scores, sigma, threshold, most):
    """The definition, one candidate at a time."""
    scores, kept = scores.clone(), []
    while len(kept) < most and scores.max() > threshold:
        best = int(scores.argmax())
        kept.append((best, float(scores[best])))
        iou = segment_iou(segments[best][None], segments)[0]
        scores = scores * torch.exp(-iou.square() / (2 * sigma))
        scores[best] = -1.0
    return kept


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 4))
def test_batched_soft_nms_equals_the_plain_loop_on_every_row(seed, num_points, rows):
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(rows, num_points, generator=generator) * 50
    segments = torch.stack([starts, starts + torch.rand(rows, num_points, generator=generator) * 20], dim=-1)
    scores = torch.rand(rows, num_points, generator=generator)
    index, kept = soft_nms(segments, scores, sigma=0.3, score_threshold=0.05, max_detections=10)
    for row in range(rows):
        expected = plain_soft_nms(segments[row], scores[row], 0.3, 0.05, 10)
        assert index[row][kept[row] > 0].tolist() == [place for place, _ in expected]
        found = kept[row][kept[row] > 0]
        torch.testing.assert_close(found, torch.tensor([score for _, score in expected]), atol=1e-6, rtol=1e-5)


def test_soft_nms_of_nothing_above_the_threshold_keeps_nothing():
    _, kept = soft_nms(torch.zeros(2, 3, 2), torch.zeros(2, 3), sigma=0.3, score_threshold=0.001, max_detections=5)
    assert not kept.any()


def test_soft_nms_never_takes_nan_and_keeps_the_rest_of_the_row():
    segments, scores = torch.tensor([[[0.0, 1.0], [0.0, 1.0], [5.0, 6.0]]]), torch.tensor([[torch.nan, 0.5, 0.7]])
    index, kept = soft_nms(segments, scores, sigma=0.3, score_threshold=0.001, max_detections=5)
    assert index[kept > 0].tolist() == [2, 1] and kept[kept > 0].tolist() == scores[0, [2, 1]].tolist()
