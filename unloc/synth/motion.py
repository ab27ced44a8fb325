"""How an event looks over time: the pose of its object before, during and after it."""

import math
from dataclasses import dataclass

from unloc.synth.drawing import Sprite
from unloc.synth.vocabulary import Action

TRAVEL = 0.52  # short sides that a rising, falling or sideways object covers in one pass
SWING = 0.2  # half width of a swing
GROWTH = (0.6, 1.55)  # factors of the radius between which objects grow and shrink
FADE_SECONDS = 0.25  # a pass fades out and the next one in


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One action with its time and its place. A long event repeats its motion: several passes, each a whole one."""

    action: Action
    start_seconds: float
    end_seconds: float
    is_step: bool
    """True for a step of the video's task, False for what happens beside it."""
    x: float
    y: float
    """Centre of the path, short sides from the frame's centre."""
    radius: float
    pass_seconds: float
    """Length of one pass (of one period for blinking and swinging)."""
    rest_before_seconds: float = 0.0
    rest_after_seconds: float = 0.0
    """The object stands still in view this long before and after."""
    peak_start_seconds: float = 0.0
    peak_end_seconds: float = 0.0
    """While it glows: the highlight."""
    tilt: float = 0.0

    @property
    def length_seconds(self) -> float:
        """Seconds from start to end."""
        return self.end_seconds - self.start_seconds

    @property
    def visible_seconds(self) -> tuple[float, float]:
        """From when to when the object is in view, resting included."""
        return self.start_seconds - self.rest_before_seconds, self.end_seconds + self.rest_after_seconds

    def overlap_seconds(self, start_seconds: float, end_seconds: float) -> float:
        """Seconds that the event shares with a stretch."""
        return max(0.0, min(self.end_seconds, end_seconds) - max(self.start_seconds, start_seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Idler:
    """An object that stands about and does nothing: it looks like an event in every single frame."""

    look: tuple[str, str]
    start_seconds: float
    end_seconds: float
    x: float
    y: float
    radius: float
    glow_start_seconds: float = 0.0
    glow_end_seconds: float = 0.0
    tilt: float = 0.0


def event_sprite(event: Event, seconds: float) -> Sprite | None:
    """The event's object at a time, or None when it is out of view."""
    first, last = event.visible_seconds
    if not first <= seconds < last:
        return None
    x, y, scale, alpha = _pose(event, seconds)
    # What rests stays; what does not appears and vanishes softly at the boundaries.
    alpha *= min(1.0, (seconds - first) / FADE_SECONDS + 0.2, (last - seconds) / FADE_SECONDS + 0.2)
    wobble = 0.006 * math.sin(2.1 * seconds + 9 * event.x)
    glow = _ramp(seconds, event.peak_start_seconds, event.peak_end_seconds, 0.3)
    colour, shape = event.action.look
    return Sprite(colour, shape, x + wobble, y - wobble, event.radius * scale, alpha, glow, event.tilt)


def idler_sprite(idler: Idler, seconds: float) -> Sprite | None:
    """The idle object at a time, or None when it is out of view; it trembles like all objects do."""
    if not idler.start_seconds <= seconds < idler.end_seconds:
        return None
    alpha = _ramp(seconds, idler.start_seconds, idler.end_seconds, 0.5)
    wobble = 0.006 * math.sin(2.1 * seconds + 9 * idler.x)
    glow = _ramp(seconds, idler.glow_start_seconds, idler.glow_end_seconds, 0.3)
    return Sprite(*idler.look, idler.x + wobble, idler.y - wobble, idler.radius, alpha, glow, idler.tilt)


def _ramp(seconds: float, start: float, end: float, ramp_seconds: float) -> float:
    """0 outside (start, end), 1 inside, linear over `ramp_seconds` at both ends."""
    if end <= start:
        return 0.0
    return min(max(min(seconds - start, end - seconds) / ramp_seconds, 0.0), 1.0)


def _pose(event: Event, seconds: float) -> tuple[float, float, float, float]:
    """x, y, size factor and opacity at a time."""
    elapsed = min(max(seconds - event.start_seconds, 0.0), event.length_seconds)
    during = event.start_seconds <= seconds < event.end_seconds
    motion, x, y = event.action.motion, event.x, event.y
    if motion == "blinking":
        lit = not during or (elapsed / event.pass_seconds) % 1.0 < 0.55
        return x, y, 1.0, 1.0 if lit else 0.0
    if motion == "swinging":
        return x + SWING * math.sin(2 * math.pi * elapsed / event.pass_seconds), y, 1.0, 1.0
    share, alpha = _share_of_pass(event, elapsed, during)
    if motion in ("growing", "shrinking"):
        small, large = GROWTH
        grown = share if motion == "growing" else 1.0 - share
        return x, y, small + grown * (large - small), alpha
    offset = TRAVEL * (share - 0.5)
    if motion in ("rising", "falling"):
        return x, y + (offset if motion == "falling" else -offset), 1.0, alpha
    return x + (offset if motion == "moving right" else -offset), y, 1.0, alpha


def _share_of_pass(event: Event, elapsed: float, during: bool) -> tuple[float, float]:
    """How much of the pass is done, 0-1, and the opacity: faded between two passes, full at the event's own ends."""
    num_passes = max(1, round(event.length_seconds / event.pass_seconds))
    pass_seconds = event.length_seconds / num_passes
    if elapsed >= event.length_seconds:
        return 1.0, 1.0
    index, share = divmod(elapsed / pass_seconds, 1.0)
    if not during:
        return share, 1.0
    since, left = share * pass_seconds, (1.0 - share) * pass_seconds
    alpha_in = 1.0 if index == 0 else min(1.0, since / FADE_SECONDS)
    alpha_out = 1.0 if index == num_passes - 1 else min(1.0, left / FADE_SECONDS)
    return share, min(alpha_in, alpha_out)
