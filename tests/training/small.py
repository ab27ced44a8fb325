"""Small examples to train on."""

import numpy as np

from unloc.examples.batches import Example
from unloc.examples.steps import TimeGrid


def small_example(seed: int, *, steps: int = 16, width: int = 16, **fields: object) -> Example:
    """A video of random frame tokens, one a second; `fields` are the others, or replace these."""
    frames = np.random.default_rng(seed).normal(size=(steps, width)).astype(np.float32)
    given = {"video_id": f"v{seed}", "frames": frames, "frame_mask": np.ones(steps, dtype=bool)}
    given |= {"grid": TimeGrid(0.0, 1.0), "duration_seconds": float(steps)}
    return Example(**given | fields)
