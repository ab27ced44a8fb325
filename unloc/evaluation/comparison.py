"""Is one run better than another: a paired bootstrap over the videos on which both are scored."""

import numpy as np

from unloc.callbacks import OnProgress
from unloc.errors import InputError
from unloc.evaluation.protocols import protocol_for
from unloc.evaluation.reopening import Scored
from unloc.files import file_sha256

DRAWS = 1000
PARTS = 20  # in which draws are scored; frames are scored in one, as the mAP of their first draws is
ROUNDING = 1e-9  # of percentages


def compare(
    a: Scored, b: Scored, *, draws: int = DRAWS, seed: int = 0, on_progress: OnProgress = lambda done, total: None
) -> dict:
    """Every metric in percent of both, B - A with its 95 % interval, and whether that excludes 0 (`resolved`).

    The same draws of videos serve both, so that what makes a video hard for both cancels out; their spread is centred
    as in `bootstrap_intervals`. Raises InputError unless task, split, annotations, protocol and videos are the same.
    """
    _require_same_test(a, b)
    pair = [a.scores(), b.scores()]
    videos = [getattr(scores, "video_ids", np.zeros(0)) for scores in pair]
    if not np.array_equal(*videos):
        raise InputError(f"unloc compare: {a.name} and {b.name} answer other queries, and --rejection scores no others")
    num_videos, metrics = pair[0].num_videos, {}
    if num_videos < 2:
        raise InputError(f"unloc compare: {num_videos} video with annotations; resampling needs at least two")
    weights = np.random.default_rng(seed).multinomial(num_videos, np.full(num_videos, 1.0 / num_videos), size=draws)
    one, other = (scores.metrics() for scores in pair)
    drawn, done = [], 0
    for scores in pair:
        parts = []
        for part in np.array_split(weights, 1 if a.task == "as" else PARTS):
            parts.append(scores.drawn(part))
            done += len(part)
            on_progress(done, 2 * draws)
        drawn.append({name: np.concatenate([found[name] for found in parts]) for name in parts[0]})
    for name in [name for name in one if name in other]:
        spread, difference = drawn[1][name] - drawn[0][name], other[name] - one[name]
        spread = spread[np.isfinite(spread)]
        if not len(spread) or not np.isfinite(difference):
            continue
        low, high = np.percentile(spread, (2.5, 97.5)) - spread.mean() + difference
        resolved = bool(low > ROUNDING or high < -ROUNDING)
        values = {"a": one[name], "b": other[name], "difference": difference, "interval": [float(low), float(high)]}
        metrics[name] = values | {"resolved": resolved}
    tested = {"task": a.evaluation.task, "split": a.evaluation.split, "manifest": a.evaluation.selected.name}
    tested |= {"protocol": protocol_for(a.task, a.evaluation.protocol, a.evaluation.selected).name}
    counts = {"num_videos": num_videos, "draws": draws, "seed": seed}
    return {"a": a.name, "b": b.name} | tested | counts | {"metrics": metrics}


def _require_same_test(a: Scored, b: Scored) -> None:
    """Raise InputError naming the first thing in which the tests of two runs differ."""

    def facts(one: Scored) -> dict[str, str]:
        """What both must have in common."""
        evaluation, selected = one.evaluation, one.evaluation.selected
        return {
            "task": one.task,
            "split": evaluation.split,
            "annotations": f"{selected.name} with sha256 {file_sha256(evaluation.manifest_path)[:12]}",
            "protocol": protocol_for(one.task, evaluation.protocol, selected).name,
            "number of videos": str(len(selected.videos)),
            "videos": ", ".join(selected.videos["video_id"]),
        }

    ours, theirs = facts(a), facts(b)
    for what, value in ours.items():
        if value != theirs[what]:
            got = "differ" if what == "videos" else f"{value} and {theirs[what]}"
            advice = "evaluate both with the same manifest, split, task and lists of videos"
            raise InputError(f"unloc compare: {a.name} and {b.name} have not the same {what} ({got}); {advice}")
