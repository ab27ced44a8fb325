"""Single frames with captions for the toy tower: random objects, and which captions are true of which frame.

A caption states some facts of one object: colour, shape, size, place, glow. Because the facts are known, the truth of
every caption is known for every frame of the batch, not only for the one it was written for. Motion words appear in
captions too, at random: a frame cannot tell them, so they are never part of the truth.
"""

from dataclasses import dataclass, replace

import numpy as np

from unloc.synth.scenes import Scene, Sprite
from unloc.synth.vocabulary import COLOURS, MOTION_PHRASES, MOTIONS, SHAPE_WORDS, SHAPES

ANY = -1
FACTS = ("colour", "shape", "size", "column", "row", "fine_size", "fine_column", "fine_row", "glow")
SIZE_WORDS = ("tiny", "small", "medium", "large", "huge")
SIZE_EDGES = (0.085, 0.11, 0.145, 0.185)
COLUMN_WORDS = ("far left", "left", "centre", "right", "far right")
ROW_WORDS = ("top", "upper part", "middle", "lower part", "bottom")
PLACE_EDGES = (-0.24, -0.08, 0.08, 0.24)
FINE_EDGES = tuple(np.linspace(-0.4, 0.4, 11))  # 12 columns and rows, numbered
FINE_SIZE_EDGES = (0.07, 0.085, 0.1, 0.12, 0.14, 0.165, 0.195)
MAX_OBJECTS = 5
SCENE_LENGTH_SECONDS = 60.0
SIDES = (112, 128, 144)  # rendered sizes, as the short sides of videos
SCENES_PER_CHUNK = 4
CHUNK_FRAMES = 512


@dataclass(frozen=True, slots=True)
class CaptionedFrame:
    """A frame, what is in it, and captions."""

    image: np.ndarray
    """uint8 (H, W, 3)."""
    facts: np.ndarray
    """int (MAX_OBJECTS, len(FACTS)); rows of ANY where there is no object."""
    places: np.ndarray
    """float32 (MAX_OBJECTS, 3): x, y, radius in short sides."""
    captions: tuple[str, ...]
    stated: np.ndarray
    """int (len(captions), len(FACTS)): the facts each caption states, ANY where it is silent."""


def captions_true(facts: np.ndarray, stated: np.ndarray) -> np.ndarray:
    """bool (B, M): whether caption m, stating (M, F), is true of some object of frame b, facts (B, O, F)."""
    agrees = (stated[None, None] == ANY) | (facts[:, :, None] == stated[None, None])
    exists = facts[:, :, 0] != ANY
    return (agrees.all(axis=-1) & exists[:, :, None]).any(axis=1)


def render_chunk(job: tuple[int, int, int]) -> list[CaptionedFrame]:
    """CHUNK_FRAMES frames of one size from (stream, seed, chunk number)."""
    rng = np.random.default_rng(job)
    side = SIDES[rng.integers(len(SIDES))]
    scenes = [Scene(rng, side, side, SCENE_LENGTH_SECONDS) for _ in range(SCENES_PER_CHUNK)]
    pairs = [captioned_frames(rng, scenes[index % len(scenes)]) for index in range(CHUNK_FRAMES // 2)]
    return [frame for side_of_mirror in zip(*pairs, strict=True) for frame in side_of_mirror]


def captioned_frames(rng: np.random.Generator, scene: Scene) -> tuple[CaptionedFrame, CaptionedFrame]:
    """A random moment of a scene with random objects, and its mirror image with captions of its own."""
    sprites = random_sprites(rng)
    image = scene.frame(rng.uniform(0.0, SCENE_LENGTH_SECONDS), sprites)
    mirrored = [replace(sprite, x=-sprite.x, tilt=-sprite.tilt) for sprite in sprites]
    return describe(rng, image, sprites), describe(rng, np.ascontiguousarray(image[:, ::-1]), mirrored)


def describe(
    rng: np.random.Generator, image: np.ndarray, sprites: list[Sprite], num_captions: int = 3
) -> CaptionedFrame:
    """The frame with its facts and captions: true ones, and the last with one fact changed."""
    facts = np.full((MAX_OBJECTS, len(FACTS)), ANY, dtype=np.int64)
    places = np.zeros((MAX_OBJECTS, 3), dtype=np.float32)
    for row, sprite in enumerate(sprites):
        facts[row] = sprite_facts(sprite)
        places[row] = sprite.x, sprite.y, sprite.radius
    stated = np.stack([_state(rng, facts[rng.integers(len(sprites))]) for _ in range(num_captions)])
    stated[-1] = _change_one(rng, stated[-1])
    return CaptionedFrame(image, facts, places, tuple(caption_text(rng, row) for row in stated), stated)


def sprite_facts(sprite: Sprite) -> np.ndarray:
    """int (len(FACTS),) of one object."""
    return np.array(
        [
            list(COLOURS).index(sprite.colour),
            SHAPES.index(sprite.shape),
            np.searchsorted(SIZE_EDGES, sprite.radius),
            np.searchsorted(PLACE_EDGES, sprite.x),
            np.searchsorted(PLACE_EDGES, sprite.y),
            np.searchsorted(FINE_SIZE_EDGES, sprite.radius),
            np.searchsorted(FINE_EDGES, sprite.x),
            np.searchsorted(FINE_EDGES, sprite.y),
            int(sprite.glow > 0.5),
        ]
    )


def caption_text(rng: np.random.Generator, stated: np.ndarray) -> str:
    """The sentence that states these facts: 'a small glowing red disc rising at the far left, row 3'."""
    facts = dict(zip(FACTS, stated.tolist(), strict=True))
    words = ["a" if rng.random() < 0.6 else "the"]
    if facts["size"] != ANY:
        words.append(SIZE_WORDS[facts["size"]])
    if facts["glow"] == 1:
        words.append("glowing")
    if facts["colour"] != ANY:
        words.append(list(COLOURS)[facts["colour"]])
    names = SHAPE_WORDS[SHAPES[facts["shape"]]] if facts["shape"] != ANY else ("object",)
    words.append(names[rng.integers(len(names))])
    words.append(_motion_words(rng))
    words += _place_words(facts)
    return " ".join(filter(None, words))


def _motion_words(rng: np.random.Generator) -> str:
    """A motion drawn at random, whatever the frame: it tells the tower nothing."""
    if rng.random() < 0.4:
        return ""
    motion = MOTIONS[rng.integers(len(MOTIONS))]
    return motion if rng.random() < 0.3 else str(rng.choice(MOTION_PHRASES[motion]))


def _place_words(facts: dict[str, int]) -> list[str]:
    words = []
    if facts["column"] != ANY:
        words.append(f"at the {COLUMN_WORDS[facts['column']]}")
    if facts["row"] != ANY:
        words.append(f"in the {ROW_WORDS[facts['row']]}")
    if facts["fine_column"] != ANY:
        words.append(f"column {facts['fine_column']}")
    if facts["fine_row"] != ANY:
        words.append(f"row {facts['fine_row']}")
    if facts["fine_size"] != ANY:
        words.append(f"size {facts['fine_size']}")
    return words


def random_sprites(rng: np.random.Generator) -> list[Sprite]:
    """One to five objects, apart from each other where there is room, as they occur in the videos."""
    sprites: list[Sprite] = []
    for _ in range(1 + int(rng.choice(MAX_OBJECTS, p=[0.35, 0.3, 0.2, 0.1, 0.05]))):
        radius = float(np.exp(rng.uniform(np.log(0.055), np.log(0.23))))
        places = rng.uniform(-0.45, 0.45, (4, 2))
        x, y = max(places, key=lambda place: _nearest(place, sprites))
        sprites.append(
            Sprite(
                colour=str(rng.choice(list(COLOURS))),
                shape=str(rng.choice(SHAPES)),
                x=float(x),
                y=float(y),
                radius=radius,
                alpha=1.0 if rng.random() < 0.8 else float(rng.uniform(0.6, 1.0)),
                glow=float(rng.random() < 0.35),
                tilt=float(rng.uniform(-0.25, 0.25)),
            )
        )
    return sprites


def _nearest(place: np.ndarray, sprites: list[Sprite]) -> float:
    return min((float(np.hypot(place[0] - s.x, place[1] - s.y)) for s in sprites), default=1.0)


def _state(rng: np.random.Generator, facts: np.ndarray) -> np.ndarray:
    """Some facts of an object: looks nearly always, place and size often, coarsely or finely."""
    chances = {"colour": 0.9, "shape": 0.9, "glow": 0.3}
    fine = "fine_" if rng.random() < 0.6 else ""
    chances |= {f"{fine}column": 0.5, f"{fine}row": 0.5, f"{fine}size": 0.35}
    stated = np.array(
        [fact if rng.random() < chances.get(name, 0.0) else ANY for name, fact in zip(FACTS, facts, strict=True)]
    )
    if stated[FACTS.index("glow")] == 0:  # captions say what glows, never what does not
        stated[FACTS.index("glow")] = ANY
    if (stated[:2] == ANY).all():
        stated[0] = facts[0]
    return stated


def _change_one(rng: np.random.Generator, stated: np.ndarray) -> np.ndarray:
    """The same facts but for one, which becomes a near miss: a hard negative, unless another object makes it true."""
    changed = stated.copy()
    column = rng.choice(np.flatnonzero((stated != ANY) & (np.arange(len(FACTS)) < len(FACTS) - 1)))
    counts = (len(COLOURS), len(SHAPES), 5, 5, 5, 8, 12, 12)
    step = 1 if rng.random() < 0.5 else -1
    changed[column] = (changed[column] + step * (1 if column < 5 else rng.integers(1, 4))) % counts[column]
    return changed
