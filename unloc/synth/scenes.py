"""A scene: everything of a video but its objects - background, camera, light, grain - and the frames with them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from unloc.synth.drawing import TEXTURE_SIZE, Sprite, draw, draw_blob, make_texture

SCENE_SECONDS = 25.0  # mean time between cuts to another background
GRAIN_LEVEL = 2.5  # standard deviation of the sensor noise, of 255


@dataclass(frozen=True, slots=True)
class Waves:
    """A smooth wandering value: a sum of sines."""

    amplitudes: np.ndarray
    frequencies: np.ndarray
    """Hertz."""
    phases: np.ndarray

    def at(self, seconds: float) -> float:
        """The value at a time."""
        return float(self.amplitudes @ np.sin(2 * np.pi * self.frequencies * seconds + self.phases))


def make_waves(rng: np.random.Generator, amplitude: float, slowest: float, fastest: float) -> Waves:
    """Three sines with frequencies (Hz) between slowest and fastest; the sum stays within ±amplitude."""
    shares = rng.dirichlet([2.0, 2.0, 2.0])
    return Waves(amplitude * shares, rng.uniform(slowest, fastest, 3), rng.uniform(0, 2 * np.pi, 3))


@dataclass(frozen=True, slots=True)
class Blob:
    """A grey shadow that crosses the picture and means nothing."""

    x: Waves
    y: Waves
    radius: float
    grey: float
    alpha: float


class Scene:
    """Background, camera, light and grain of one video; `frame` draws one picture with the given sprites."""

    def __init__(self, rng: np.random.Generator, width: int, height: int, duration_seconds: float) -> None:
        self.width, self.height, self.side = width, height, min(width, height)
        num_cuts = min(4, int(rng.poisson(duration_seconds / SCENE_SECONDS)))
        self.cuts = np.sort(rng.uniform(0, duration_seconds, num_cuts))
        self.textures = [make_texture(rng) for _ in range(num_cuts + 1)]
        self.pans = rng.uniform(-0.12, 0.12, (num_cuts + 1, 2))  # short sides per second
        self.wander = [make_waves(rng, 0.25, 0.02, 0.12) for _ in range(2)]
        self.shake = [make_waves(rng, rng.uniform(0.004, 0.016), 0.3, 2.5) for _ in range(2)]
        self.brightness = rng.uniform(0.8, 1.1), make_waves(rng, 0.18, 0.02, 0.25)
        self.tint = [make_waves(rng, 0.07, 0.01, 0.1) for _ in range(3)]
        self.dims = _dims(rng, duration_seconds)
        self.blobs = [_make_blob(rng) for _ in range(int(rng.integers(0, 3)))]
        self.grain = _grain_tile()

    def frame(self, seconds: float, sprites: Iterable[Sprite]) -> np.ndarray:
        """uint8 (H, W, 3) RGB at a time, sprites drawn in the order given."""
        shake_x, shake_y = (waves.at(seconds) for waves in self.shake)
        frame = self._background(seconds, shake_x, shake_y)
        for blob in self.blobs:
            draw_blob(frame, blob.x.at(seconds), blob.y.at(seconds), blob.radius, blob.grey, blob.alpha)
        for sprite in sprites:
            draw(frame, replace(sprite, x=sprite.x + shake_x, y=sprite.y + shake_y))
        frame *= self.light(seconds)
        frame += self._grain(seconds)[..., None]
        return np.clip(frame, 0, 255, out=frame).astype(np.uint8)

    def light(self, seconds: float) -> np.ndarray:
        """Gain of the three channels, float32 (3,)."""
        base, waves = self.brightness
        gain = base + waves.at(seconds)
        for start, end, depth in self.dims:
            # a second and a half of dusk on both sides
            inside = min(seconds - start, end - seconds) / 1.5
            gain *= 1.0 - depth * min(max(inside, 0.0), 1.0)
        return np.asarray([gain * (1.0 + tint.at(seconds)) for tint in self.tint], dtype=np.float32)

    def _background(self, seconds: float, shake_x: float, shake_y: float) -> np.ndarray:
        index = int(np.searchsorted(self.cuts, seconds, side="right"))
        offset_x = self.pans[index, 0] * seconds + self.wander[0].at(seconds) - shake_x
        offset_y = self.pans[index, 1] * seconds + self.wander[1].at(seconds) - shake_y
        left, top = int(offset_x * self.side) % TEXTURE_SIZE, int(offset_y * self.side) % TEXTURE_SIZE
        return self.textures[index][top : top + self.height, left : left + self.width].astype(np.float32)

    def _grain(self, seconds: float) -> np.ndarray:
        # Offsets from the time itself, so that frames can be drawn in any order.
        left, top = int(seconds * 7919) % TEXTURE_SIZE, int(seconds * 104729) % TEXTURE_SIZE
        return self.grain[top : top + self.height, left : left + self.width]


@lru_cache(maxsize=1)
def _grain_tile() -> np.ndarray:
    """Sensor noise, the same tile for all videos; each frame takes another part of it."""
    noise = np.random.default_rng(0).standard_normal((2 * TEXTURE_SIZE, 2 * TEXTURE_SIZE))
    return GRAIN_LEVEL * noise.astype(np.float32)


def _dims(rng: np.random.Generator, duration_seconds: float) -> list[tuple[float, float, float]]:
    """(start, end, depth) of stretches where the light goes down."""
    starts = rng.uniform(0, duration_seconds, int(rng.poisson(duration_seconds / 40.0)))
    return [(float(start), float(start + rng.uniform(4, 10)), float(rng.uniform(0.15, 0.4))) for start in starts]


def _make_blob(rng: np.random.Generator) -> Blob:
    return Blob(
        make_waves(rng, 0.9, 0.03, 0.12),
        make_waves(rng, 0.7, 0.03, 0.12),
        radius=rng.uniform(0.1, 0.22),
        grey=rng.uniform(60, 190),
        alpha=rng.uniform(0.25, 0.6),
    )
