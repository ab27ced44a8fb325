"""95 % intervals: how much a score would change if other videos of the same kind had been drawn.

Videos are drawn with replacement, as many as there are; a video drawn twice counts twice, which is what scoring a copy
of it gives. Matches within a video do not depend on the draw, so each draw only weights them.

The spread of the draws is centred on the score itself: mAP of copied videos is biased upwards (fewer distinct videos,
and precision is made monotone), on ActivityNet by 2 points, so plain percentiles would not contain the score.
"""

import numpy as np

from unloc.evaluation.classification import LabelScores
from unloc.evaluation.detection import DetectionScores
from unloc.evaluation.queries import QueryScores
from unloc.evaluation.segmentation import FrameScores


def bootstrap_intervals(
    scores: DetectionScores | QueryScores | FrameScores | LabelScores, seed: int
) -> dict[str, list[float]]:
    """[2.5 %, 97.5 %] of every metric in percent over the draws that define it; none for metrics that are undefined."""
    num_videos, intervals = scores.num_videos, {}
    if not num_videos:
        return {}
    counts = np.random.default_rng(seed).multinomial(num_videos, np.full(num_videos, 1.0 / num_videos), size=1000)
    centre, draws = scores.drawn(counts)
    for name, column in draws.items():
        defined = column[np.isfinite(column)]
        if len(defined) and np.isfinite(centre[name]):
            ends = np.percentile(defined, (2.5, 97.5)) - defined.mean() + centre[name]
            intervals[name] = np.clip(ends, 0.0, 100.0).tolist()
    return intervals
