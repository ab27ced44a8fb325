import pytest
import torch

from unloc.config import DecodeConfig
from unloc.inference.predict import detections_of
from unloc.ops import nms


def test_soft_nms_per_class_keeps_the_best_of_a_video_not_of_every_class():
    torch.manual_seed(0)
    starts = torch.arange(20.0) * 10
    segments = torch.stack([starts, starts + 5], dim=-1).expand(7, 20, 2)  # nothing overlaps: no score decays
    scores = torch.rand(7, 20) * 0.9 + 0.05
    (found,) = detections_of(segments[None], scores[None], DecodeConfig(nms_per_class=True, max_detections=30))
    best = scores.flatten().sort(descending=True).values[:30]
    torch.testing.assert_close(torch.tensor([window[2] for _, window in found]), best.double(), atol=1e-6, rtol=0)
    assert all(abs(scores[label, int(window[0] // 10)] - window[2]) < 1e-6 for label, window in found)


def test_soft_nms_per_class_lets_equal_segments_of_two_classes_both_stand():
    segments = torch.tensor([[[0.0, 5.0]], [[0.0, 5.0]]])
    scores = torch.tensor([[0.8], [0.6]])
    (apart,) = detections_of(segments[None], scores[None], DecodeConfig(nms_per_class=True))
    (together,) = detections_of(segments[None], scores[None], DecodeConfig())
    assert [label for label, _ in apart] == [label for label, _ in together] == [0, 1]
    assert apart[1][1][2] > 0.59 and together[1][1][2] < 0.2


@pytest.mark.parametrize("per_class", [False, True])
def test_videos_together_have_the_detections_of_each_alone(per_class):
    torch.manual_seed(1)
    starts = torch.rand(4, 3, 12) * 20
    segments = torch.stack([starts, starts + 1 + 5 * torch.rand(4, 3, 12)], dim=-1)
    scores = torch.rand(4, 3, 12).round(decimals=1)  # with ties
    scores[1], scores[2, 1] = 0.0, 0.0  # a video without candidates, a class without them
    config = DecodeConfig(nms_per_class=per_class, max_detections=9, score_threshold=0.3)
    together = detections_of(segments, scores, config)
    assert together[1] == [] and [len(found) for found in together] == [9, 0, 9, 9]
    for video, found in enumerate(together):
        (alone,) = detections_of(segments[video : video + 1], scores[video : video + 1], config)
        assert [label for label, _ in found] == [label for label, _ in alone]
        assert all((one == other).all() for (_, one), (_, other) in zip(found, alone, strict=True))


def test_soft_nms_that_looks_every_few_candidates_keeps_the_same(monkeypatch):
    """As on a GPU: what is taken after the last candidate is padding."""
    torch.manual_seed(0)
    segments, scores = torch.rand(3, 40, 2).sort(-1).values, torch.rand(3, 40)
    scores[0] = 0
    options = {"sigma": 0.3, "score_threshold": 0.4, "max_detections": 30}
    expected = nms.soft_nms(segments, scores, **options)
    monkeypatch.setattr(nms, "CHECK_EVERY_ON_CPU", 7)
    for one, other in zip(expected, nms.soft_nms(segments, scores, **options), strict=True):
        assert torch.equal(one, other)
