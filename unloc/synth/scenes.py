"""Pictures: a background with camera, light and grain, and anti-aliased shapes over it. Numpy only.

Positions and sizes are in short sides of the frame, from its centre, x to the right and y down: what lies within ±0.5
survives a centre crop.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from unloc.synth.vocabulary import COLOURS

GLOW_COLOUR = np.array([255.0, 250.0, 225.0], dtype=np.float32)
GLOW_WIDTH = 0.35  # of the radius
PAPER, INK = np.array([245.0, 240.0, 230.0], dtype=np.float32), np.array([40.0, 35.0, 45.0], dtype=np.float32)
TEXTURE_SIZE = 256
_NOISE = np.random.default_rng(0).standard_normal((2 * TEXTURE_SIZE, 2 * TEXTURE_SIZE))
_GRAIN = 2.5 * _NOISE.astype(np.float32)  # of 255, for all videos; each frame takes another part of it
_STREAKS = (8.0 * np.repeat(_NOISE[:, ::16], 16, axis=1)).astype(np.float32)  # the same, along rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a world is drawn. What happens in it does not depend on it."""

    levels: tuple[float, float]  # least and most brightness of a background's colours, 0-255
    patterns: tuple[str, ...]
    grain: np.ndarray
    hatched: bool = False  # shapes are drawn in ink, with hatching in place of colours
    shadow: float = 0.0  # how much darker the right edge of the picture is, 0-1


# Heralds draw colours in ink as hatching: for each, the directions of its lines. Yellow is dotted.
HATCHING = {
    "red": [(1.0, 0.0)],
    "yellow": [],
    "green": [(0.71, 0.71)],
    "blue": [(0.0, 1.0)],
    "purple": [(0.71, -0.71)],
    "black": [(1.0, 0.0), (0.0, 1.0)],
}
HATCH_PERIOD = 0.055  # short sides of the picture
STYLES = {
    "studio": Style(levels=(90, 205), patterns=("plain", "stripes", "checks", "dots"), grain=_GRAIN),
    # Hatched ink on bright paper: what no shipped tower or checkpoint was trained on.
    "sketch": Style(levels=(195, 250), patterns=("bricks", "rings"), grain=_STREAKS, hatched=True, shadow=0.5),
}


@dataclass(frozen=True, slots=True)
class Sprite:
    """One object in one frame."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float  # distance from the centre to the outline, roughly, in short sides
    alpha: float = 1.0  # opacity, 0-1
    glow: float = 0.0  # strength of the bright outline, 0-1
    tilt: float = 0.0  # rotation in radians


class Scene:
    """Background, camera, light and grain of one video; `frame` draws one picture with the given sprites."""

    def __init__(
        self, rng: np.random.Generator, width: int, height: int, duration_seconds: float, style: str = "studio"
    ) -> None:
        self.width, self.height, self.side, self.style = width, height, min(width, height), STYLES[style]
        num_cuts = min(4, int(rng.poisson(duration_seconds / 25.0)))  # to another background
        self.cuts = np.sort(rng.uniform(0, duration_seconds, num_cuts))
        self.textures = [_make_texture(rng, self.style) for _ in range(num_cuts + 1)]
        self.pans = rng.uniform(-0.12, 0.12, (num_cuts + 1, 2))  # short sides per second
        self.wander = [_Waves(rng, 0.25, 0.02, 0.12) for _ in range(2)]
        self.shake = [_Waves(rng, rng.uniform(0.004, 0.016), 0.3, 2.5) for _ in range(2)]
        self.brightness = rng.uniform(0.8, 1.1), _Waves(rng, 0.18, 0.02, 0.25)
        self.tint = [_Waves(rng, 0.07, 0.01, 0.1) for _ in range(3)]
        starts = rng.uniform(0, duration_seconds, int(rng.poisson(duration_seconds / 40.0)))
        self.dims = [(float(s), float(s + rng.uniform(4, 10)), float(rng.uniform(0.15, 0.4))) for s in starts]
        self.blobs = [_Blob(rng) for _ in range(int(rng.integers(0, 3)))]

    def frame(self, seconds: float, sprites: Iterable[Sprite | None]) -> np.ndarray:
        """uint8 (H, W, 3) RGB at a time, sprites drawn in the order given, without those that are None."""
        shake_x, shake_y = (waves.at(seconds) for waves in self.shake)
        index = int(np.searchsorted(self.cuts, seconds, side="right"))
        offset_x = self.pans[index, 0] * seconds + self.wander[0].at(seconds) - shake_x
        offset_y = self.pans[index, 1] * seconds + self.wander[1].at(seconds) - shake_y
        frame = self._crop(self.textures[index], int(offset_x * self.side), int(offset_y * self.side))
        frame = frame.astype(np.float32)
        for blob in self.blobs:
            blob.draw(frame, seconds)
        for sprite in filter(None, sprites):
            _draw(frame, sprite, sprite.x + shake_x, sprite.y + shake_y, self.style)
        frame *= self.light(seconds)
        if self.style.shadow:
            frame *= np.linspace(1.0, 1.0 - self.style.shadow, self.width, dtype=np.float32)[:, None]
        # Grain offsets come from the time itself, so that frames can be drawn in any order.
        frame += self._crop(self.style.grain, int(seconds * 7919), int(seconds * 104729))[..., None]
        return np.clip(frame, 0, 255, out=frame).astype(np.uint8)

    def light(self, seconds: float) -> np.ndarray:
        """Gain of the three channels, float32 (3,)."""
        base, waves = self.brightness
        gain = base + waves.at(seconds)
        for start, end, depth in self.dims:
            inside = min(seconds - start, end - seconds) / 1.5  # the light fades over a second and a half
            gain *= 1.0 - depth * min(max(inside, 0.0), 1.0)
        return np.asarray([gain * (1.0 + tint.at(seconds)) for tint in self.tint], dtype=np.float32)

    def _crop(self, tile: np.ndarray, left: int, top: int) -> np.ndarray:
        left, top = left % TEXTURE_SIZE, top % TEXTURE_SIZE
        return tile[top : top + self.height, left : left + self.width]


class _Waves:
    """A smooth random curve within ±amplitude: three sines of frequencies (Hz) between slowest and fastest."""

    def __init__(self, rng: np.random.Generator, amplitude: float, slowest: float, fastest: float) -> None:
        self.amplitudes = amplitude * rng.dirichlet([2.0, 2.0, 2.0])
        self.frequencies, self.phases = rng.uniform(slowest, fastest, 3), rng.uniform(0, 2 * np.pi, 3)

    def at(self, seconds: float) -> float:
        return float(self.amplitudes @ np.sin(2 * np.pi * self.frequencies * seconds + self.phases))


class _Blob:
    """A soft grey ellipse that crosses the picture: a distraction."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.x, self.y = _Waves(rng, 0.9, 0.03, 0.12), _Waves(rng, 0.7, 0.03, 0.12)
        self.radius, self.grey, self.alpha = rng.uniform(0.1, 0.22), rng.uniform(60, 190), rng.uniform(0.25, 0.6)

    def draw(self, frame: np.ndarray, seconds: float) -> None:
        """Blend it into a float32 frame (H, W, 3), in place."""
        height, width = frame.shape[:2]
        side = min(height, width)
        centre_x, centre_y = width / 2 + self.x.at(seconds) * side, height / 2 + self.y.at(seconds) * side
        wide, high = 1.4 * self.radius * side, self.radius * side
        left, right = max(0, int(centre_x - 1.2 * wide)), min(width, int(centre_x + 1.2 * wide))
        top, bottom = max(0, int(centre_y - 1.2 * high)), min(height, int(centre_y + 1.2 * high))
        if left >= right or top >= bottom:
            return
        u = (np.arange(left, right, dtype=np.float32)[None] - centre_x) / wide
        v = (np.arange(top, bottom, dtype=np.float32)[:, None] - centre_y) / high
        weight = np.clip(1.3 - (u * u + v * v), 0.0, 1.0) * np.float32(self.alpha)
        patch = frame[top:bottom, left:right]
        patch += weight[..., None] * (np.float32(self.grey) - patch)


def _draw(frame: np.ndarray, sprite: Sprite, x: float, y: float, style: Style) -> None:
    """Blend a sprite at (x, y) into a float32 frame (H, W, 3) of 0-255, in place."""
    height, width = frame.shape[:2]
    side = min(height, width)
    centre_x, centre_y = width / 2 + x * side, height / 2 + y * side
    radius = sprite.radius * side
    reach = radius * (1.45 + GLOW_WIDTH) + 1.5
    left, right = max(0, int(centre_x - reach)), min(width, int(centre_x + reach) + 2)
    top, bottom = max(0, int(centre_y - reach)), min(height, int(centre_y + reach) + 2)
    if left >= right or top >= bottom or sprite.alpha <= 0.0:
        return
    u = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - centre_x)
    v = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - centre_y)
    upright_u, upright_v = u, v
    if sprite.tilt:
        cos, sin = np.float32(np.cos(sprite.tilt)), np.float32(np.sin(sprite.tilt))
        u, v = u * cos + v * sin, v * cos - u * sin
    u, v = np.broadcast_arrays(u, v)
    distance = _outline_distance(sprite.shape, u, v, radius)
    patch = frame[top:bottom, left:right]
    if sprite.glow > 0.0:
        halo = np.clip(0.5 - (distance - GLOW_WIDTH * radius) / 1.5, 0.0, 1.0) * (sprite.glow * sprite.alpha)
        patch += halo[..., None] * (GLOW_COLOUR - patch)
    inside = np.clip(0.5 - distance, 0.0, 1.0) * sprite.alpha
    if style.hatched:
        ink = _hatching(sprite.colour, upright_u, upright_v, HATCH_PERIOD * side)  # turned, it would be another colour
        ink = np.maximum(ink, np.clip(2.0 + distance, 0.0, 1.0))[..., None]  # an outline of 1.5 pixels
        colour = PAPER + ink * (INK - PAPER)
    else:
        shade = 0.72 + 0.28 * np.clip(-distance / (0.3 * radius), 0.0, 1.0)  # darker towards the outline
        colour = shade[..., None] * np.asarray(COLOURS[sprite.colour], dtype=np.float32)
    patch += inside[..., None] * (colour - patch)


def _hatching(colour: str, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """How much ink (0-1) the hatching of a colour lays on each pixel."""
    u, v = u * (2 * np.pi / period), v * (2 * np.pi / period)
    if not HATCHING[colour]:
        return np.clip(2 * np.sin(u) * np.sin(v), 0.0, 1.0)
    return np.max([np.clip(0.5 + 1.5 * np.sin(a * u + b * v), 0.0, 1.0) for a, b in HATCHING[colour]], axis=0)


def _outline_distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the outline of a shape at the origin, negative inside. u right, v down, pixels."""
    if shape == "circle":
        return np.hypot(u, v) - radius
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.87 * radius
    if shape == "triangle":
        v = v - 0.12 * radius
        return np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 0.58 * radius
    if shape == "cross":
        u, v = np.abs(u), np.abs(v)
        reach, half = 1.05 * radius, 0.36 * radius
        return np.minimum(np.maximum(u - reach, v - half), np.maximum(v - reach, u - half))
    # A five-pointed star: the plane folded onto one half of a point, then the distance to its edge.
    radius, sector = 1.15 * radius, np.pi / 5
    angle = np.abs(np.mod(np.arctan2(u, -v) + sector, 2 * sector) - sector)
    along, across = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    inner_x, inner_y = 0.45 * radius * np.cos(sector), 0.45 * radius * np.sin(sector)
    normal = np.array([inner_y, radius - inner_x]) / np.hypot(inner_y, radius - inner_x)
    return (along - radius) * normal[0] + across * normal[1]


def _make_texture(rng: np.random.Generator, style: Style) -> np.ndarray:
    """A random background, uint8 (2 * TEXTURE_SIZE, 2 * TEXTURE_SIZE, 3): fractal noise between two muted colours,
    under a pattern. It tiles seamlessly and is repeated, so that any crop is a slice.
    """
    palette = []
    for _ in range(3):  # muted colours
        value, saturation, colour = rng.uniform(*style.levels), rng.uniform(0.05, 0.4), rng.uniform(0.0, 1.0, 3)
        colour = (colour - colour.min()) / max(float(np.ptp(colour)), 1e-6)
        palette.append((value * (1.0 - saturation * (1.0 - colour))).astype(np.float32))
    noise, second = _fractal_noise(rng), _fractal_noise(rng)
    kind = rng.choice(style.patterns)
    cycles_x, cycles_y = (int(n) for n in rng.integers(3, 14, 2))
    grid = 2 * np.pi * np.arange(TEXTURE_SIZE, dtype=np.float32) / TEXTURE_SIZE
    x, y = grid[None] * cycles_x, grid[:, None] * cycles_y
    pattern = {
        "plain": np.full_like(x + y, 0.5),
        "stripes": 0.5 + 0.5 * np.sin(x + y),
        "checks": 0.5 + 0.5 * np.tanh(4 * np.sin(x) * np.sin(y)),
        "dots": np.clip(2.0 * np.sin(x) * np.sin(y) - 0.5, 0.0, 1.0),
        "bricks": (np.abs(np.sin(y)) < 0.2) | (np.abs(np.sin(x / 2 + np.pi / 2 * (np.sin(y) > 0))) < 0.12),
        "rings": 0.5 + 0.5 * np.sin(6 * np.hypot(np.sin(x / 2), np.sin(y / 2))),
    }[kind]
    image = palette[0] + noise[..., None] * (palette[1] - palette[0])
    image += (0.7 * second * pattern)[..., None] * (palette[2] - image)
    return np.tile(np.clip(image, 0, 255).astype(np.uint8), (2, 2, 1))


def _fractal_noise(rng: np.random.Generator) -> np.ndarray:
    """Periodic noise (TEXTURE_SIZE, TEXTURE_SIZE) in 0-1 with a power-law spectrum."""
    exponent = rng.uniform(0.9, 1.7)
    frequency = np.hypot(np.fft.fftfreq(TEXTURE_SIZE)[:, None], np.fft.rfftfreq(TEXTURE_SIZE)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE))) / frequency**exponent
    noise = np.fft.irfft2(spectrum, s=(TEXTURE_SIZE, TEXTURE_SIZE)).astype(np.float32)
    return 0.5 + 0.5 * np.tanh((noise - noise.mean()) / noise.std())
