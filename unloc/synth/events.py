"""What happens in each video and how it looks over time: a plan drawn from (seed, index) alone, before any pixel.

A video shows the steps of one task in order, with gaps, and side events that may overlap them: classes that are no
steps, and actions that are no class at all (most often a step's object with another motion). Objects may stay in view
before and after their event, and distractors stand still, so neither presence nor looks give a boundary away.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import attrgetter

import numpy as np

from unloc.synth.scenes import Sprite
from unloc.synth.vocabulary import ALL_ACTIONS, CLASS_ACTIONS, LOOKS, SIDE_ACTIONS, TASKS, Action

SPLIT_PATTERN = ("train", "val", "test", "train", "train", "train", "train", "test", "train", "train")
FRAME_SIZES = ((160, 128), (176, 144), (144, 192), (192, 128), (224, 128), (144, 144))
FRAME_RATES = tuple(map(Fraction, ("8", "10", "12", "25/2", "15", "12000/1001", "15000/1001")))
MIN_SECONDS, MAX_SECONDS = 20.0, 90.0
MIN_EVENT_SECONDS = 2.0
FOREGROUND = (0.40, 0.60)  # share of a video that is covered by events
FADE_SECONDS = 0.25  # a pass fades out and the next one in
MOVES = {"rising": (0, -1), "falling": (0, 1), "moving left": (-1, 0), "moving right": (1, 0)}  # x and y of a pass
STILL = "still"  # the motion of distractors


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One action with its time and place. A long event repeats its motion in several whole passes."""

    action: Action
    start_seconds: float
    end_seconds: float
    is_step: bool = False  # of the video's task; else a side event
    x: float = 0.0  # centre of the path, short sides from the frame's centre
    y: float = 0.0
    radius: float = 0.0
    pass_seconds: float = 0.0  # length of one pass (of one period for blinking and swinging)
    peak_start_seconds: float = 0.0  # while it glows: the highlight
    peak_end_seconds: float = 0.0
    tilt: float = 0.0
    still_before_seconds: float = 0.0  # how long the object stands still in view before and after
    still_after_seconds: float = 0.0

    @property
    def length_seconds(self) -> float:
        """Seconds from start to end."""
        return self.end_seconds - self.start_seconds

    @property
    def visible_seconds(self) -> tuple[float, float]:
        """From when to when the object is in view, standing still included."""
        return self.start_seconds - self.still_before_seconds, self.end_seconds + self.still_after_seconds

    def overlap_seconds(self, start_seconds: float, end_seconds: float) -> float:
        """Seconds that the event shares with an interval."""
        return max(0.0, min(self.end_seconds, end_seconds) - max(self.start_seconds, start_seconds))

    def sprite_at(self, seconds: float) -> Sprite | None:
        """The object at a time, None when it is out of view. It fades between two passes, not at the event's ends."""
        first, last = self.visible_seconds
        if not first <= seconds < last:
            return None
        motion, length, x, y, scale, alpha = self.action.motion, self.length_seconds, self.x, self.y, 1.0, 1.0
        elapsed = min(max(seconds - self.start_seconds, 0.0), length)
        during = self.start_seconds <= seconds < self.end_seconds
        if motion == "blinking":
            alpha = 0.0 if during and (elapsed / self.pass_seconds) % 1.0 >= 0.55 else 1.0
        elif motion == "swinging":
            x += 0.2 * math.sin(2 * math.pi * elapsed / self.pass_seconds)
        elif motion != STILL:
            num_passes = max(1, round(length / self.pass_seconds))
            pass_seconds = length / num_passes
            index, share = divmod(elapsed / pass_seconds, 1.0) if elapsed < length else (num_passes - 1, 1.0)
            if during and index != 0:
                alpha = min(alpha, share * pass_seconds / FADE_SECONDS)
            if during and index != num_passes - 1:
                alpha = min(alpha, (1.0 - share) * pass_seconds / FADE_SECONDS)
            if motion in MOVES:
                offset = 0.52 * (share - 0.5)  # in short sides
                x, y = (at + direction * offset for at, direction in zip((x, y), MOVES[motion], strict=True))
            else:
                small, large = 0.6, 1.55
                scale = small + (share if motion == "growing" else 1.0 - share) * (large - small)
        if motion == STILL:
            alpha = _ramp(seconds, first, last, 0.5)
        else:
            alpha *= min(1.0, (seconds - first) / FADE_SECONDS + 0.2, (last - seconds) / FADE_SECONDS + 0.2)
        wobble = 0.006 * math.sin(2.1 * seconds + 9 * self.x)
        glow = _ramp(seconds, self.peak_start_seconds, self.peak_end_seconds, 0.3)
        return Sprite(*self.action.look, x + wobble, y - wobble, self.radius * scale, alpha, glow, self.tilt)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPlan:
    """One video: how it is encoded and what happens in it."""

    video_id: str  # with `v_`, as in ActivityNet Captions: one name serves in all formats
    index: int
    split: str
    task: str
    fps: Fraction
    num_frames: int
    width: int
    height: int
    gop: int
    num_b_frames: int
    events: tuple[Event, ...]  # in order of their starts
    distractors: tuple[Event, ...]  # objects that stand still: in every single frame they look like events

    @property
    def duration_seconds(self) -> float:
        """Length of the encoded video."""
        return float(self.num_frames / self.fps)


def video_generator(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The generator of one video and one purpose (0 plan, 1 pixels, 2-5 sentences and raters): never shared."""
    return np.random.default_rng([seed, index, purpose])


def plan_video(seed: int, index: int) -> VideoPlan:
    """The plan of video `index` of the world `seed`; steps and side events together cover 40-60 % of it."""
    rng = video_generator(seed, index, 0)
    fps = FRAME_RATES[rng.integers(len(FRAME_RATES))]
    num_frames = int((MIN_SECONDS + (MAX_SECONDS - MIN_SECONDS) * rng.beta(1.2, 2.6)) * fps)
    duration = float(num_frames / fps)
    width, height = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    task = list(TASKS)[rng.integers(len(TASKS))]
    timed, events = [], []
    while not FOREGROUND[0] <= covered_share(timed, duration) <= FOREGROUND[1]:
        timed = _time_steps(rng, TASKS[task], duration)
        _add_side_events(rng, timed, duration)
        bounds = ((round(float(event.start_seconds), 2), round(float(event.end_seconds), 2)) for event in timed)
        timed = [replace(event, start_seconds=a, end_seconds=b) for event, (a, b) in zip(timed, bounds, strict=True)]
    for event in sorted(timed, key=attrgetter("start_seconds")):
        events.append(_place_event(rng, event, events, duration))
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
        events=tuple(events),
        distractors=_plan_distractors(rng, events, duration),
    )


def covered_share(events: Sequence[Event], duration_seconds: float) -> float:
    """Share of the video during which at least one event is going on."""
    covered, reached = 0.0, 0.0
    for event in sorted(events, key=attrgetter("start_seconds")):
        covered += max(0.0, event.end_seconds - max(event.start_seconds, reached))
        reached = max(reached, event.end_seconds)
    return covered / duration_seconds


def _time_steps(rng: np.random.Generator, steps: tuple[Action, ...], duration: float) -> list[Event]:
    """Steps in task order: some left out, some done twice or three times, of very different lengths, with gaps."""
    chosen = [step for step in steps if rng.random() < 0.85]
    if len(chosen) < 2 or rng.random() < 0.1:  # few steps: one of them may take most of the foreground
        chosen = list(steps[:2])
    repeated = [step for step in chosen for _ in range(1 + int(rng.choice(3, p=[0.8, 0.16, 0.04])))]
    shortest = max(MIN_EVENT_SECONDS, 0.02 * duration)
    repeated = repeated[: int(0.9 * FOREGROUND[1] * duration / shortest)]
    spare = max(0.0, rng.uniform(0.34, 0.52) * duration - len(repeated) * shortest)
    lengths = shortest + spare * rng.dirichlet(np.full(len(repeated), 1.5))
    gaps = (duration - lengths.sum()) * rng.dirichlet(np.full(len(repeated) + 1, 1.2))
    starts = np.cumsum(gaps[:-1]) + np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    times = zip(repeated, starts, starts + lengths, strict=True)
    return [Event(action=step, start_seconds=start, end_seconds=end, is_step=True) for step, start, end in times]


def _add_side_events(rng: np.random.Generator, events: list[Event], duration: float) -> None:
    """Add up to two further actions to the steps, each perhaps twice, never during an event of the same look. Half are
    classes that are no step, half no class; half of those look like a step of this video.
    """
    own_looks = {step.action.look for step in events}
    for _ in range(int(rng.choice(3, p=[0.2, 0.45, 0.35]))):
        if rng.random() < 0.5:
            action = SIDE_ACTIONS[rng.integers(len(SIDE_ACTIONS))]
        else:
            looks = own_looks if rng.random() < 0.5 else LOOKS
            candidates = [action for action in ALL_ACTIONS if action.look in looks and action not in CLASS_ACTIONS]
            action = candidates[rng.integers(len(candidates))]
        for _ in range(1 + int(rng.random() < 0.2)):
            length = min(MIN_EVENT_SECONDS * np.exp(rng.uniform(0, 1.6)), 0.3 * duration)
            start = rng.uniform(0.0, duration - length)
            same_look = [event for event in events if event.action.look == action.look]
            if all(start > e.end_seconds + 1.0 or start + length < e.start_seconds - 1.0 for e in same_look):
                events.append(Event(action=action, start_seconds=start, end_seconds=start + length))


def _place_event(rng: np.random.Generator, event: Event, others: list[Event], duration: float) -> Event:
    """The event with size, speed, highlight and, of twelve places, the one farthest from the other objects."""
    motion, start, end, length = event.action.motion, event.start_seconds, event.end_seconds, event.length_seconds
    period = {"blinking": (1.5, 2.4), "swinging": (2.2, 3.6)}.get(motion, (2.4, 6.5))
    still = [rng.uniform(0.5, 4.0) if rng.random() < 0.5 else 0.0 for _ in range(2)]
    peak = length * rng.uniform(0.35, 0.6)
    peak_start = start + rng.uniform(0.0, 1.0) * (length - peak)
    event = replace(
        event,
        radius=float(rng.uniform(0.095, 0.15)),
        pass_seconds=min(float(rng.uniform(*period)), length / 2 if motion == "blinking" else length),
        still_before_seconds=min(still[0], start),
        still_after_seconds=min(still[1], duration - end),
        peak_start_seconds=peak_start,
        peak_end_seconds=peak_start + peak,
        tilt=float(rng.uniform(-0.2, 0.2)),
    )
    # Path centres: anywhere across the path, near the middle along it.
    along_x = 0.05 if motion in ("moving left", "moving right") else 0.12 if motion == "swinging" else 0.3
    along_y = 0.05 if motion in ("rising", "falling") else 0.3
    first, last = event.visible_seconds
    near = [other for other in others if other.visible_seconds[0] < last and other.visible_seconds[1] > first]

    def clearance(place: Event) -> float:
        """Smallest distance to objects in view at the same time, at half-second steps, at most 0.35."""
        times = np.arange(first, last, 0.5) if near else ()
        pairs = ((place.sprite_at(seconds), other.sprite_at(seconds)) for seconds in times for other in near)
        return min((float(np.hypot(a.x - b.x, a.y - b.y)) for a, b in pairs if a and b), default=0.35)

    centres = rng.uniform(-1.0, 1.0, (12, 2)) * [along_x, along_y]
    return max((replace(event, x=x, y=y) for x, y in centres), key=lambda place: min(0.35, clearance(place)))


def _plan_distractors(rng: np.random.Generator, events: Sequence[Event], duration: float) -> tuple[Event, ...]:
    """Still objects, half of them with the look of an event of this video."""
    own = [event.action.look for event in events]
    distractors = []
    for _ in range(int(rng.poisson(duration / 14.0))):
        start, length = rng.uniform(0.0, duration - 3.0), rng.uniform(3.0, 12.0)
        glow = length * rng.uniform(0.0, 0.5) if rng.random() < 0.6 else 0.0  # so a glow is no sign of an event
        glow_start = start + rng.uniform(0.0, 1.0) * (length - glow)
        look = own[rng.integers(len(own))] if rng.random() < 0.5 else LOOKS[rng.integers(len(LOOKS))]
        x, y = map(float, rng.uniform(-0.36, 0.36, 2))
        size = {"radius": float(rng.uniform(0.075, 0.16)), "tilt": float(rng.uniform(-0.2, 0.2))}
        glowing = {"peak_start_seconds": glow_start, "peak_end_seconds": glow_start + glow}
        times = {"start_seconds": start, "end_seconds": min(duration, start + length), "pass_seconds": length}
        distractors.append(Event(action=Action(*look, STILL), x=x, y=y, **size, **glowing, **times))
    return tuple(distractors)


def _ramp(seconds: float, start: float, end: float, ramp_seconds: float) -> float:
    """0 outside (start, end), 1 inside, linear over `ramp_seconds` at both ends."""
    if end <= start:
        return 0.0
    return min(max(min(seconds - start, end - seconds) / ramp_seconds, 0.0), 1.0)
