import torch

from unloc.config import DecodeConfig
from unloc.inference.predict import detections_of


def test_soft_nms_per_class_keeps_the_best_of_a_video_not_of_every_class():
    torch.manual_seed(0)
    starts = torch.arange(20.0) * 10
    segments = torch.stack([starts, starts + 5], dim=-1).expand(7, 20, 2)  # nothing overlaps: no score decays
    scores = torch.rand(7, 20) * 0.9 + 0.05
    found = list(detections_of(segments, scores, DecodeConfig(nms_per_class=True, max_detections=30)))
    best = scores.flatten().sort(descending=True).values[:30]
    torch.testing.assert_close(torch.tensor([window[2] for _, window in found]), best.double(), atol=1e-6, rtol=0)
    assert all(abs(scores[label, int(window[0] // 10)] - window[2]) < 1e-6 for label, window in found)


def test_soft_nms_per_class_lets_equal_segments_of_two_classes_both_stand():
    segments = torch.tensor([[[0.0, 5.0]], [[0.0, 5.0]]])
    scores = torch.tensor([[0.8], [0.6]])
    apart = list(detections_of(segments, scores, DecodeConfig(nms_per_class=True)))
    together = list(detections_of(segments, scores, DecodeConfig()))
    assert [label for label, _ in apart] == [label for label, _ in together] == [0, 1]
    assert apart[1][1][2] > 0.59 and together[1][1][2] < 0.2
