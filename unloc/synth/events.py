"""What happens in each video: a plan drawn from (seed, index) alone, before any pixel.

A video shows the steps of one task in order, with gaps, and beside them events that may overlap them: classes that
are no steps, and actions that are no class at all (a step's object with another motion, most often). Objects may rest
in view before and after their event, idle objects stand about, so neither presence nor looks give a boundary away.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from unloc.synth.motion import Event, Idler, event_sprite
from unloc.synth.vocabulary import ALL_ACTIONS, CLASS_ACTIONS, LOOKS, SIDE_ACTIONS, TASKS, Action

SPLIT_PATTERN = ("train", "val", "test", "train", "train", "train", "train", "test", "train", "train")
FRAME_SIZES = ((160, 128), (176, 144), (144, 192), (192, 128), (224, 128), (144, 144))
FRAME_RATES = tuple(map(Fraction, ("8", "10", "12", "25/2", "15", "12000/1001", "15000/1001")))
MIN_SECONDS, MAX_SECONDS = 20.0, 90.0
MIN_EVENT_SECONDS = 2.0
FOREGROUND = (0.40, 0.60)
"""Share of a video that is covered by events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPlan:
    """One video: how it is encoded and what happens in it."""

    video_id: str
    """With the `v_` that ActivityNet Captions puts before ids, so that one name serves in all formats."""
    index: int
    split: str
    task: str
    fps: Fraction
    num_frames: int
    width: int
    height: int
    gop: int
    num_b_frames: int
    events: tuple[Event, ...]
    """In order of their starts."""
    idlers: tuple[Idler, ...]

    @property
    def duration_seconds(self) -> float:
        """Length of the encoded video."""
        return float(self.num_frames / self.fps)


def video_generator(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The generator of one video and one purpose (0 plan, 1 pixels, 2 sentences, 3 raters): never shared."""
    return np.random.default_rng([seed, index, purpose])


def plan_video(seed: int, index: int) -> VideoPlan:
    """The plan of video `index` of the world `seed`; the same wherever and in whichever order it is asked for."""
    rng = video_generator(seed, index, 0)
    fps = FRAME_RATES[rng.integers(len(FRAME_RATES))]
    wanted = MIN_SECONDS + (MAX_SECONDS - MIN_SECONDS) * rng.beta(1.2, 2.6)
    num_frames = int(wanted * fps)
    duration = float(num_frames / fps)
    width, height = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    task = list(TASKS)[rng.integers(len(TASKS))]
    events = _plan_events(rng, TASKS[task], duration)
    return VideoPlan(
        video_id=f"v_synth{seed}_{index:05d}",
        index=index,
        split=SPLIT_PATTERN[index % len(SPLIT_PATTERN)],
        task=task,
        fps=fps,
        num_frames=num_frames,
        width=width,
        height=height,
        gop=int(rng.choice([12, 25, 50, 120, 250])),
        num_b_frames=int(rng.integers(0, 4)),
        events=events,
        idlers=_plan_idlers(rng, events, duration),
    )


def covered_share(events: tuple[Event, ...] | list[Event], duration_seconds: float) -> float:
    """Share of the video during which at least one event is going on."""
    covered, reached = 0.0, 0.0
    for event in sorted(events, key=lambda event: event.start_seconds):
        covered += max(0.0, event.end_seconds - max(event.start_seconds, reached))
        reached = max(reached, event.end_seconds)
    return covered / duration_seconds


def _plan_events(rng: np.random.Generator, steps: tuple[Action, ...], duration: float) -> tuple[Event, ...]:
    """Steps and side events whose union covers 40-60 % of the video."""
    while True:
        timed = _time_steps(rng, steps, duration)
        timed += _time_side_events(rng, timed, duration)
        spans = [_bare_event(*item) for item in timed]
        if FOREGROUND[0] <= covered_share(spans, duration) <= FOREGROUND[1]:
            break
    placed: list[Event] = []
    for event in sorted(spans, key=lambda event: event.start_seconds):
        placed.append(_stage_event(rng, event, placed, duration))
    return tuple(placed)


def _bare_event(action: Action, start: float, end: float, is_step: bool) -> Event:
    return Event(
        action=action,
        start_seconds=round(float(start), 2),
        end_seconds=round(float(end), 2),
        is_step=is_step,
        x=0.0,
        y=0.0,
        radius=0.1,
        pass_seconds=1.0,
    )


Timed = tuple[Action, float, float, bool]


def _time_steps(rng: np.random.Generator, steps: tuple[Action, ...], duration: float) -> list[Timed]:
    """Steps in task order: some left out, some done twice or three times, of very different lengths, with gaps."""
    chosen = [step for step in steps if rng.random() < 0.85]
    if len(chosen) < 2 or rng.random() < 0.1:  # few steps: one of them may take most of the foreground
        chosen = list(steps[:2])
    repeated = [step for step in chosen for _ in range(1 + int(rng.choice(3, p=[0.8, 0.16, 0.04])))]
    shortest = max(MIN_EVENT_SECONDS, 0.02 * duration)
    most = int(0.9 * FOREGROUND[1] * duration / shortest)
    repeated = repeated[:most]
    spare = max(0.0, rng.uniform(0.34, 0.52) * duration - len(repeated) * shortest)
    lengths = shortest + spare * rng.dirichlet(np.full(len(repeated), 1.5))
    gaps = (duration - lengths.sum()) * rng.dirichlet(np.full(len(repeated) + 1, 1.2))
    starts = np.cumsum(gaps[:-1]) + np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    return [
        (action, start, start + length, True) for action, start, length in zip(repeated, starts, lengths, strict=True)
    ]


def _time_side_events(rng: np.random.Generator, steps: list[Timed], duration: float) -> list[Timed]:
    """Up to two actions beside the steps, each perhaps twice, never while an event with the same look is going on."""
    taken = list(steps)
    for _ in range(int(rng.choice(3, p=[0.2, 0.45, 0.35]))):
        action = _side_action(rng, [step[0] for step in steps])
        for _ in range(1 + int(rng.random() < 0.2)):
            length = min(MIN_EVENT_SECONDS * np.exp(rng.uniform(0, 1.6)), 0.3 * duration)
            start = rng.uniform(0.0, duration - length)
            same_look = [item for item in taken if item[0].look == action.look]
            if all(start > item[2] + 1.0 or start + length < item[1] - 1.0 for item in same_look):
                taken.append((action, start, start + length, False))
    return taken[len(steps) :]


def _side_action(rng: np.random.Generator, steps: list[Action]) -> Action:
    """A class that is no step, or an action that is no class: half of those look like a step of this video."""
    if rng.random() < 0.5:
        return SIDE_ACTIONS[rng.integers(len(SIDE_ACTIONS))]
    looks = {step.look for step in steps} if rng.random() < 0.5 else set(LOOKS)
    candidates = [action for action in ALL_ACTIONS if action.look in looks and action not in CLASS_ACTIONS]
    return candidates[rng.integers(len(candidates))]


def _stage_event(rng: np.random.Generator, event: Event, others: list[Event], duration: float) -> Event:
    """The event with size, speed, rests, highlight and, of several places, the one farthest from what else is there."""
    length = event.length_seconds
    motion = event.action.motion
    period = {"blinking": (1.5, 2.4), "swinging": (2.2, 3.6)}.get(motion, (2.4, 6.5))
    rests = [rng.uniform(0.5, 4.0) if rng.random() < 0.5 else 0.0 for _ in range(2)]
    peak = length * rng.uniform(0.35, 0.6)
    peak_start = event.start_seconds + rng.uniform(0.0, 1.0) * (length - peak)
    staged = replace(
        event,
        radius=float(rng.uniform(0.095, 0.15)),
        pass_seconds=min(float(rng.uniform(*period)), length / 2 if motion == "blinking" else length),
        rest_before_seconds=min(rests[0], event.start_seconds),
        rest_after_seconds=min(rests[1], duration - event.end_seconds),
        peak_start_seconds=peak_start,
        peak_end_seconds=peak_start + peak,
        tilt=float(rng.uniform(-0.2, 0.2)),
    )
    places = [replace(staged, x=x, y=y) for x, y in _places(rng, motion)]
    return max(places, key=lambda place: _clearance(place, others))


def _places(rng: np.random.Generator, motion: str, number: int = 12) -> np.ndarray:
    """(number, 2) candidate path centres: free across the path, near the middle along it."""
    along_x = 0.05 if motion in ("moving left", "moving right") else 0.12 if motion == "swinging" else 0.3
    along_y = 0.05 if motion in ("rising", "falling") else 0.3
    return rng.uniform(-1.0, 1.0, (number, 2)) * [along_x, along_y]


def _clearance(event: Event, others: list[Event]) -> float:
    """Smallest distance to objects in view at the same time, at half-second steps; capped where nothing is near."""
    nearest = 0.35
    first, last = event.visible_seconds
    near = [other for other in others if other.visible_seconds[0] < last and other.visible_seconds[1] > first]
    for seconds in np.arange(first, last, 0.5) if near else ():
        here = event_sprite(event, seconds)
        for there in (event_sprite(other, seconds) for other in near):
            if here and there:
                nearest = min(nearest, float(np.hypot(here.x - there.x, here.y - there.y)))
    return nearest


def _plan_idlers(rng: np.random.Generator, events: tuple[Event, ...], duration: float) -> tuple[Idler, ...]:
    """Objects that stand about, half of them with the look of an event of this video."""
    own = [event.action.look for event in events]
    idlers = []
    for _ in range(int(rng.poisson(duration / 14.0))):
        start, length = rng.uniform(0.0, duration - 3.0), rng.uniform(3.0, 12.0)
        glow = length * rng.uniform(0.0, 0.5) if rng.random() < 0.6 else 0.0  # so a glow is no sign of an event
        glow_start = start + rng.uniform(0.0, 1.0) * (length - glow)
        look = own[rng.integers(len(own))] if rng.random() < 0.5 else LOOKS[rng.integers(len(LOOKS))]
        x, y = rng.uniform(-0.36, 0.36, 2)
        idlers.append(
            Idler(
                look=look,
                start_seconds=start,
                end_seconds=min(duration, start + length),
                glow_start_seconds=glow_start,
                glow_end_seconds=glow_start + glow,
                x=float(x),
                y=float(y),
                radius=float(rng.uniform(0.075, 0.16)),
                tilt=float(rng.uniform(-0.2, 0.2)),
            )
        )
    return tuple(idlers)
