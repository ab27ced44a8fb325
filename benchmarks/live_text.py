"""What a text tower in the model costs: a training step of `charades_b` above cached texts and with its live tower.

The tower encodes every caption once, the fusion every pair of a video and a caption, so the share of the tower falls
with the number of videos. Each round measures one step of either kind, in turns; memory is what a step needs on top of
weights and optimizer. `tower` is the text tower alone, forward and backward, over all captions.

    taskset -c 2,3 python benchmarks/live_text.py [--device cpu] [--videos 8] [--captions 8] [--rounds 3] [--json OUT]

With --device cuda the sizes are those of the paper: 64 videos and 64 captions, bfloat16. On a CPU one step of these
takes some 20 minutes of a core: `--videos 64 --captions 64 --rounds 0 --kinds live tower` takes one each.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from model_step import PeakMemory, seconds_of, train_step
from torch import nn

from unloc.model.build import build_model
from unloc.model.clip import WeightSettings, clip_model
from unloc.model.unloc import Outputs
from unloc.recipes import load_recipe

KINDS = ("cached", "live", "tower")
CAPTION = "a person opens the door of the fridge and takes out a bottle of water number {}"


class TowerAlone(nn.Module):
    """The text tower as `train_step` calls a model."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, frames, frame_mask, ids, mask):
        tokens = self.tower(ids, mask)
        return Outputs(tokens, tokens, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--videos", type=int)
    parser.add_argument("--captions", type=int)
    parser.add_argument("--rounds", type=int, default=3, help="0: only the first step, whose memory is measured.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    default = 8 if device.type == "cpu" else 64
    videos, captions = args.videos or default, args.captions or default
    torch.manual_seed(0)
    recipe = load_recipe("charades_b")
    recipe = replace(recipe, model=replace(recipe.model, max_texts_in_flight=min(8, captions)))
    clip = clip_model(recipe.towers.name, WeightSettings(activation="quick_gelu"))
    live = build_model(recipe, num_classes=0, frame_dim=512, clip=clip, live=("text",)).to(device)
    ids, mask = live.text_tower.tokenize([CAPTION.format(number) for number in range(captions)])
    ids, mask = ids.to(device), None if mask.all() else mask.to(device)
    frames = torch.randn(videos, recipe.data.num_steps, 512, device=device)
    with torch.no_grad():
        tokens = live.text_tower(ids, mask)
    kinds = {
        "cached": (live.core, (frames, None, tokens, mask)),
        "live": (live, (frames, None, ids, mask)),
        "tower": (TowerAlone(live.text_tower), (frames, None, ids, mask)),
    }
    kinds = {kind: kinds[kind] for kind in args.kinds}
    first, seconds, peak = {}, {kind: [] for kind in kinds}, {}
    for kind, (model, inputs) in kinds.items():
        with PeakMemory(device) as memory:
            first[kind] = seconds_of(lambda model=model, inputs=inputs: train_step(model, inputs), device)
        peak[kind] = memory.bytes / 2**20
        live.zero_grad(set_to_none=True)
    for _ in range(args.rounds):
        for kind, (model, inputs) in kinds.items():
            seconds[kind].append(seconds_of(lambda model=model, inputs=inputs: train_step(model, inputs), device))
            live.zero_grad(set_to_none=True)
    num_weights = sum(parameter.numel() for parameter in live.text_tower.parameters())
    print(f"{videos} videos x {captions} captions of {ids.shape[1]} tokens, {device}; tower: {num_weights / 1e6:.1f} M")
    for kind in kinds:
        print(f"  {kind:7} {min(seconds[kind] or [first[kind]]):8.3f} s  {peak[kind]:8.0f} MiB")
    if args.rounds and {"live", "cached"} <= kinds.keys():
        ratio = statistics.median(one / other for one, other in zip(seconds["live"], seconds["cached"], strict=True))
        print(f"  live / cached: {ratio:.2f} in time, {peak['live'] / peak['cached']:.2f} in memory")
    if args.json:
        result = {"videos": videos, "captions": captions, "first": first, "seconds": seconds, "peak_mib": peak}
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
