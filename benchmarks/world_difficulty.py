"""How hard the rendered world is: action segmentation by a plain temporal network that is told where every object is.

Its input per step is no picture but the truth: for each of the 30 looks whether an object of it is in view, where, and
how large. What it does not reach with that, no tower's tokens can be blamed for; what more videos add shows that it is
videos that lack.

Usage: python benchmarks/world_difficulty.py --videos 160 1200 [--steps 600] [--seed 777]
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unloc.synth.events import plan_video
from unloc.synth.vocabulary import LOOKS, TASKS

NUM_STEPS, WIDTH = 192, 192
STEPS = list(dict.fromkeys(action for task in TASKS.values() for action in task))


def truth_of(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, str]:
    """(T, 120) presence, x, y and log radius of every look; (T, K) which step is going on; the split."""
    plan = plan_video(seed, index)
    times = np.linspace(0.0, plan.duration_seconds, NUM_STEPS, endpoint=False)
    objects = np.zeros((NUM_STEPS, len(LOOKS), 4), dtype=np.float32)
    labels = np.zeros((NUM_STEPS, len(STEPS)), dtype=np.float32)
    for step, seconds in enumerate(times):
        for item in (*plan.events, *plan.distractors):
            sprite = item.sprite_at(seconds)
            if sprite and sprite.alpha > 0.5:
                place = (1.0, 3 * sprite.x, 3 * sprite.y, math.log(sprite.radius / 0.1))
                objects[step, LOOKS.index((sprite.colour, sprite.shape))] = place
    for event in plan.events:
        if event.is_step:
            labels[(times >= event.start_seconds) & (times < event.end_seconds), STEPS.index(event.action)] = 1
    return objects.reshape(NUM_STEPS, -1), labels, plan.split


class Block(nn.Module):
    """A residual dilated convolution."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation)
        self.norm, self.out = nn.GroupNorm(8, WIDTH), nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.out(F.gelu(self.norm(self.conv(hidden))))


def trained(inputs: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """The network after `steps` batches of 16 videos, AdamW with a cosine schedule."""
    torch.manual_seed(0)
    blocks = [Block(dilation) for dilation in (1, 2, 4, 1, 2, 4, 8)]
    first, last = nn.Conv1d(inputs.shape[-1], WIDTH, 1), nn.Conv1d(WIDTH, len(STEPS), 1)
    network = nn.Sequential(first, *blocks, nn.Dropout(0.2), last)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.05)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (16,))
        logits, target = network(inputs[chosen].transpose(1, 2)), labels[chosen].transpose(1, 2)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / target.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def frame_accuracy(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Percent of frames with the right step, or rightly with none."""
    with torch.no_grad():
        logits = network(inputs.transpose(1, 2)).transpose(1, 2)
    said = torch.where(logits.max(-1).values > 0, logits.argmax(-1) + 1, 0)
    true = torch.where(labels.max(-1).values > 0, labels.argmax(-1) + 1, 0)
    return 100.0 * (said == true).float().mean().item()


def main() -> None:
    """A line for each number of videos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[160])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=777)
    options = parser.parse_args()
    for number in options.videos:
        with ProcessPoolExecutor() as pool:
            rows = list(pool.map(partial(truth_of, options.seed), range(number), chunksize=10))
        part = {name: [row for row in rows if row[2] == name] for name in ("train", "test")}
        sets = {name: [torch.tensor(np.stack([row[i] for row in rows])) for i in (0, 1)] for name, rows in part.items()}
        accuracy = frame_accuracy(trained(*sets["train"], options.steps), *sets["test"])
        background = 100.0 * (1 - sets["test"][1].amax(-1).mean().item())
        print(
            f"{len(part['train'])} training videos: {accuracy:.1f} % of the frames of {len(part['test'])} test videos "
            f"(all background: {background:.1f} %)",
            flush=True,
        )


if __name__ == "__main__":
    main()
