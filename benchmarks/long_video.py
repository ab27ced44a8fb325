"""Prediction on films of hours: is a planted event found as in a short video, in how much memory, and how fast again?

A film is a row of rendered shots of 20 to 90 s, drawn small and at a low rate; 40 an hour show one event each, the
others only still objects, which look like events (unless --no-distractors). A query asks for the action of an event;
each of its events in the film counts. Compared are: short (the query in its own shot alone), search then ground (what
predict does; R5 too), all windows grounded, search alone (the baseline's segments in the window that ranks first), and
how often a window with the event is among those searched.

Usage: python benchmarks/long_video.py --hours 1 3 9 [--queries 60] [--no-distractors] [--out films]

One hour takes about 6 minutes on one core; the windows of all queries grow with its square.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import numpy as np

from unloc.cache.reading import CachedVideo
from unloc.examples.sources import VideoFrames
from unloc.inference.similarity import segments_above
from unloc.inference.video_model import GROUNDED_SHARE, GROUNDED_WINDOWS, VideoModel, load
from unloc.inference.windows import Window, best_windows, moments_in
from unloc.synth.events import VideoPlan, plan_video, video_generator
from unloc.synth.formats import class_query
from unloc.synth.world import video_frames

WIDTH, HEIGHT = 160, 128
EVENTS_PER_HOUR = 40
SHORT_SECONDS = 120.0


def shots_of(seed: int, seconds: float, fps: int, *, distractors: bool = True) -> list[tuple[float, VideoPlan]]:
    """(start, plan) of the shots of a film; 40 an hour keep one event, the others none."""
    shots, at = [], 0.0
    while at < seconds:
        plan = plan_video(seed, len(shots))
        count = int(plan.duration_seconds * fps)
        shots.append((at, replace(plan, fps=Fraction(fps), num_frames=count, width=WIDTH, height=HEIGHT)))
        at += count / fps
    rng = np.random.default_rng(seed)
    chosen = set(rng.permutation(len(shots))[: round(EVENTS_PER_HOUR * at / 3600)].tolist())
    kept = []
    for number, (start, plan) in enumerate(shots):
        events = plan.events[:0]
        if number in chosen:
            events = (plan.events[int(rng.integers(len(plan.events)))],)
        kept.append((start, replace(plan, events=events, **({} if distractors else {"distractors": ()}))))
    return kept


def render_film(path: Path, shots: list[tuple[float, VideoPlan]], seed: int) -> None:
    """The shots one after another as one H.264 file."""
    rate = shots[0][1].fps
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "superfast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 48
        for _, plan in shots:
            for pixels in video_frames(plan, seed):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def hit(window: np.ndarray | None, truth: list[tuple[float, float]], at: float = 0.5) -> bool:
    """Whether a window overlaps one of the segments by that IoU."""
    if window is None:
        return False
    overlaps = [(min(window[1], end) - max(window[0], start), start, end) for start, end in truth]
    return any(o / (max(window[1], end) - min(window[0], start)) >= at for o, start, end in overlaps)


def first_window(found: object) -> np.ndarray | None:
    """The best moment of one query."""
    return next((window for _, window in found.kept()), None)


def compare(
    model: VideoModel, film: Path, shots: list[tuple[float, VideoPlan]], seed: int, queries: int
) -> dict[str, float]:
    """Percent of queries whose first answer has IoU 0.5 with an event of their action, by way of answering."""
    cached = model.tokens.of(film)
    video = VideoFrames("film", cached.frames[0], cached.times_seconds, cached.meta["duration_seconds"])
    windows = model._windows(video, True)
    planted = [(start, plan, plan.events[0]) for start, plan in shots if plan.events]
    hits, most = defaultdict(list), max(GROUNDED_WINDOWS, ceil(GROUNDED_SHARE * len(windows)))
    asked = np.random.default_rng(seed + 1).permutation(len(planted))[:queries]
    for start, plan, event in (planted[number] for number in sorted(asked)):
        same = [(s + e.start_seconds, s + e.end_seconds) for s, _, e in planted if e.action == event.action]
        text = class_query(event, video_generator(seed, plan.index, 5))
        tokens = model.encode_texts([text])
        similarity = model._similarity(video.frames, [text])[:, 0]
        searched = best_windows(windows, video.times_seconds, similarity, most)
        inside = (video.times_seconds >= start) & (video.times_seconds < start + plan.duration_seconds)
        times = video.times_seconds[inside] - start
        shot = VideoFrames("shot", video.frames[inside], times, plan.duration_seconds)
        own = [(event.start_seconds, event.end_seconds)]
        hits["short"].append(hit(first_window(moments_in(model.loaded, shot, tokens, [[Window()]])), own))
        for name, chosen in (("search then ground", searched), ("all windows", windows)):
            found = [window for _, window in moments_in(model.loaded, video, tokens, [chosen]).kept()]
            hits[name].append(any(hit(window, same) for window in found[:1]))
            hits[f"{name}, R5"].append(any(hit(window, same) for window in found[:5]))
        (best,) = best_windows(windows, video.times_seconds, similarity, 1)
        seen = (video.times_seconds >= best.start) & (video.times_seconds < best.end)
        part = CachedVideo(video.frames[None, seen], video.times_seconds[seen], lambda: cached.meta)
        hits["search alone"].append(hit(next(iter(segments_above(similarity[seen], part)), None), same))
        middles = [(one + other) / 2 for one, other in same]
        is_there = any(window.own_start <= middle < window.own_end for window in searched for middle in middles)
        hits["recall of the search"].append(is_there)
    return {name: 100.0 * float(np.mean(values)) for name, values in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0])
    parser.add_argument("--fps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=90)
    parser.add_argument("--queries", type=int, default=1000, help="Most events that are asked for, at random.")
    parser.add_argument("--checkpoint", default="toy")
    parser.add_argument("--no-distractors", action="store_true", help="without still objects that look like events")
    parser.add_argument("--out", type=Path, default=Path("films"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cache, rows = options.out / "tokens", {}
    for seconds in (SHORT_SECONDS, *(3600 * hours for hours in options.hours)):
        kind = "_plain" if options.no_distractors else ""
        film = options.out / f"film_{options.seed}_{seconds:.0f}s_{options.fps}fps{kind}.mp4"
        shots, row = shots_of(options.seed, seconds, options.fps, distractors=not options.no_distractors), {}
        if not film.is_file():
            render_film(film, shots, options.seed)
        command = [sys.executable, "-m", "unloc", "predict", film, "-q", "a red circle rises", "--json"]
        command = [*map(str, command), "--checkpoint", options.checkpoint, "--cache", str(cache)]
        for name in ("first", "second"):
            began = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            assert os.waitstatus_to_exitcode(status) in (0, 3), f"{command} failed"
            row[f"{name} query, s"] = time.perf_counter() - began
            row[f"{name} query, peak MB"] = usage.ru_maxrss / 1e3
        model = load(options.checkpoint, cache=cache)
        model.predict(film, ["a red circle rises"])  # the tower's first call is slower
        began = time.perf_counter()
        model.predict(film, ["a blue star falls"])
        row["second query after start, s"] = time.perf_counter() - began
        if seconds > SHORT_SECONDS:
            row |= compare(model, film, shots, options.seed, options.queries)
        rows[f"{seconds / 60:g} min"] = row
        print(json.dumps({f"{seconds / 60:g} min": row}), flush=True)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"\n| | {' | '.join(rows)} |\n|---|{'--:|' * len(rows)}")
    for name in names:
        print(f"| {name} | {' | '.join(f'{row[name]:.1f}' if name in row else '' for row in rows.values())} |")


if __name__ == "__main__":
    main()
