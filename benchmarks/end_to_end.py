"""Training the image tower from pixels: memory and time of a step, plain, checkpointed and replayed; its gradients.

Claims (issue 12): the peak memory of replayed training grows neither with the frames nor with the videos (within 10 %)
and is under a third of plain training's at 2 videos; replayed gradients are those of plain training within 1e-5. And
what the cache saves: seconds of the same step above cached frame tokens.

Memory is what a step needs on top of weights and pixels; float32 on a CPU, bfloat16 with --device cuda. Each kind of
step runs in turn in one process.

    taskset -c 2,3 python benchmarks/end_to_end.py [--tower ViT-B-16] [--frames 32] [--videos 1 2 4] [--chunk 32]
        [--device cpu] [--json OUT]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from model_step import PeakMemory, seconds_of
from torch import Tensor, nn

from unloc.config import ModelConfig, Recipe, TowersConfig
from unloc.model.build import EndToEnd, build_model
from unloc.model.clip import WeightSettings, clip_model
from unloc.training.replay import replay

KINDS = ("cached", "plain", "checkpointed", "replayed")


def loss_of(model: nn.Module, frames: Tensor, ids: Tensor) -> Tensor:
    """A loss that reaches every output."""
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.is_cuda):
        outputs = model(frames, None, ids, None, pairing="own")
    return outputs.relevance.float().square().mean() + outputs.displacements.float().square().mean()


def step(kind: str, model: EndToEnd, pixels: Tensor, tokens: Tensor, ids: Tensor, chunk: int) -> None:
    """Forward and backward of one batch."""
    model.image_tower.visual.set_grad_checkpointing(kind == "checkpointed")
    if kind != "replayed":
        loss_of(model, tokens if kind == "cached" else pixels, ids).backward()
        return
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
        tokens = model.encode_in_chunks(pixels, chunk).requires_grad_()
    loss_of(model, tokens, ids).backward()
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
        replay(model, pixels, tokens.grad, chunk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", default="ViT-B-16")
    parser.add_argument("--frames", type=int, help="Default 128 on a GPU, 32 on a CPU.")
    parser.add_argument("--videos", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most-gib", type=float, default=14.0, help="Plain steps that would need more are left out.")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device, rows, needed = torch.device(args.device), [], {}
    args.frames = args.frames or (128 if device.type == "cuda" else 32)
    torch.manual_seed(0)
    towers = TowersConfig(name=args.tower, image="finetune", text="frozen", frame_chunk=args.chunk)
    recipe = Recipe(task="mr", towers=towers, model=ModelConfig(num_levels=4))
    recipe = replace(recipe, data=replace(recipe.data, num_steps=args.frames))
    clip = clip_model(args.tower, WeightSettings())
    model = build_model(recipe, num_classes=0, clip=clip, live=("image", "text")).to(device).train()
    size = clip.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    for videos in args.videos:
        pixels = torch.randint(0, 256, (videos, args.frames, 3, size, size), dtype=torch.uint8).to(device)
        ids = model.text_tower.tokenize([f"a person opens a door {number}" for number in range(videos)])[0].to(device)
        with torch.no_grad():
            tokens = model.image_tower(pixels[:, :1]).expand(-1, args.frames, -1).contiguous()
        for kind in KINDS:
            if needed.get(kind, 0) * videos / (args.videos[0] * 1024) > args.most_gib:
                print(f"{videos} videos, {kind}: left out, would need more than {args.most_gib} GiB")
                continue
            model.zero_grad(set_to_none=True)
            with PeakMemory(device) as memory:
                seconds = seconds_of(
                    lambda k=kind, p=pixels, t=tokens, i=ids: step(k, model, p, t, i, args.chunk), device
                )
            row = {"videos": videos, "kind": kind, "seconds": seconds, "peak_mib": memory.bytes / 2**20}
            needed.setdefault(kind, row["peak_mib"])
            if kind in ("plain", "replayed"):
                gradients = torch.cat([p.grad.flatten().cpu() for p in model.image_tower.parameters()])
                if kind == "plain":
                    plain = gradients
                elif rows[-2]["kind"] == "plain":
                    row["distance"] = float((gradients - plain).norm() / plain.norm())
            rows.append(row)
            print(
                f"{videos} videos x {args.frames} frames, {kind:12} {seconds:8.2f} s {row['peak_mib']:8.0f} MiB", end=""
            )
            print(f"  gradients {row['distance']:.1e} from plain" if "distance" in row else "", flush=True)
    peaks = {(row["videos"], row["kind"]): row["peak_mib"] for row in rows}
    replayed = [peaks[videos, "replayed"] for videos in args.videos]
    print(f"replayed, most / least over videos: {max(replayed) / min(replayed):.2f}")
    for videos in args.videos:
        if (videos, "plain") in peaks:
            print(f"replayed / plain at {videos} videos: {peaks[videos, 'replayed'] / peaks[videos, 'plain']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
