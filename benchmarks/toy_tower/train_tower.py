"""Trains the toy tower: open_clip's CLIP on single rendered frames and captions, contrastively, from nothing, on CPU.

    python -m benchmarks.toy_tower.train_tower --out unloc/synth/toy_tower --seed 0

The loss is CLIP's with several positives: of a batch's captions all that are true of a frame count as its own (the
truth is known, see `captions`). A throw-away linear head helps a small tower to learn in minutes what stands where: it
reads the looks of the frame's objects, their places and sizes from the embedding. It is dropped at the end; what ships
is the CLIP. Its image tower is CLIP's ResNet: from nothing and in minutes it learns shapes and places that a vision
transformer of its size does not (benchmarks/RESULTS.md).
"""

import argparse
import json
import logging
import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.toy_tower.captions import CHUNK_FRAMES, CaptionedFrame, captions_true, render_chunk
from unloc.files import replacing, write_file
from unloc.synth import TOWER_FOLDER
from unloc.synth.vocabulary import COLOURS, LOOKS, SHAPES

logger = logging.getLogger(__name__)
TRAIN_STREAM, HELD_OUT_STREAM = 7_000_001, 7_000_002  # apart from every world: those start their seeds elsewhere


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerTraining:
    """All constants of the training."""

    seed: int = 0
    steps: int = 1800
    batch_size: int = 128
    chunks: int = 80
    """Chunks of `CHUNK_FRAMES` rendered frames to draw from."""
    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.02
    place_weight: float = 1.0
    """Factor of the head that reads objects and places from the embedding."""
    workers: int = 4
    """Processes that render frames; the frames do not depend on their number."""


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Frames and captions as tensors."""

    images: Tensor
    """(B, 3, S, S) normalised."""
    facts: Tensor
    """(B, O, F) int64."""
    places: Tensor
    """(B, O, 3) x, y, radius in short sides."""
    tokens: Tensor
    """(M, K) caption token ids."""
    truth: Tensor
    """(B, M) bool: caption m is true of frame b."""


def rendered_chunks(config: TowerTraining, stream: int, num_chunks: int) -> list[list[CaptionedFrame]]:
    """Chunks of frames of one size each, in their order; they do not depend on who rendered them."""
    jobs = [(stream, config.seed, chunk) for chunk in range(num_chunks)]
    if config.workers == 0:
        return [render_chunk(job) for job in jobs]
    with multiprocessing.get_context("spawn").Pool(config.workers) as pool:
        return pool.map(render_chunk, jobs, chunksize=1)


def random_batches(config: TowerTraining, preprocess: dict) -> Iterator[FrameBatch]:
    """The batches of all steps, each of random frames of one random chunk."""
    chunks = rendered_chunks(config, TRAIN_STREAM, config.chunks)
    tokenizer = open_clip.SimpleTokenizer(context_length=preprocess["context_length"])
    rng = np.random.default_rng((TRAIN_STREAM, config.seed))
    for _ in range(config.steps):
        chunk = chunks[rng.integers(len(chunks))]
        chosen = rng.choice(len(chunk), config.batch_size, replace=False)
        yield to_batch([chunk[index] for index in chosen], tokenizer, preprocess)


def to_batch(frames: list[CaptionedFrame], tokenizer: open_clip.SimpleTokenizer, preprocess: dict) -> FrameBatch:
    """Frames resized as open_clip would (bicubic, anti-aliased), normalised; captions tokenised, with their truth."""
    images = torch.from_numpy(np.stack([frame.image for frame in frames])).permute(0, 3, 1, 2).float()
    size = preprocess["image_size"]
    images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp_(0, 255) / 255
    mean, std = (torch.tensor(preprocess[key])[:, None, None] for key in ("mean", "std"))
    facts = np.stack([frame.facts for frame in frames])
    stated = np.concatenate([frame.stated for frame in frames])
    return FrameBatch(
        images=(images - mean) / std,
        facts=torch.from_numpy(facts),
        places=torch.from_numpy(np.stack([frame.places for frame in frames])),
        tokens=tokenizer([caption for frame in frames for caption in frame.captions]),
        truth=torch.from_numpy(captions_true(facts, stated)),
    )


def contrastive_loss(images: Tensor, texts: Tensor, truth: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss with several positives: each true pair against all untrue pairs of its frame and of its caption.

    images (B, D), texts (M, D) unit vectors; truth (B, M). Mean over true pairs of both directions.
    """
    logits = scale * images @ texts.T
    untrue = logits.masked_fill(truth, -math.inf)
    losses = []
    for dim in (0, 1):
        rivals = untrue.logsumexp(dim=dim, keepdim=True)
        losses.append(F.softplus(rivals - logits)[truth].mean())
    return 0.5 * (losses[0] + losses[1])


class ThrowAwayHead(nn.Module):
    """Which looks are in a frame and where, read from its embedding; used in training only."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.objects = nn.Linear(embed_dim, len(LOOKS) * 4)

    def forward(self, embeddings: Tensor, batch: FrameBatch) -> Tensor:
        """Presence of each look, and for present ones (the last of each look) x, y and log radius."""
        looks = _look_index(batch.facts)
        present = torch.zeros(len(looks), len(LOOKS) + 1)
        wanted = torch.zeros(len(looks), len(LOOKS) + 1, 3)
        rows = torch.arange(len(looks))[:, None].expand_as(looks)
        present[rows, looks] = 1.0
        wanted[rows, looks] = torch.cat([batch.places[..., :2], (batch.places[..., 2:] + 1e-6).log() + 2.2], dim=-1)
        logits, places = self.objects(embeddings).view(len(looks), len(LOOKS), 4).split([1, 3], dim=-1)
        presence = F.binary_cross_entropy_with_logits(logits[..., 0], present[:, :-1])
        distance = F.smooth_l1_loss(places[present[:, :-1] > 0], wanted[:, :-1][present[:, :-1] > 0], beta=0.05)
        return 10.0 * presence + 4.0 * distance


def _look_index(facts: Tensor) -> Tensor:
    """(B, O) index into LOOKS, len(LOOKS) where there is no object."""
    looks = facts[..., 0] * len(SHAPES) + facts[..., 1]
    return torch.where(facts[..., 0] < 0, len(LOOKS), looks)


def build_model(config_path: Path) -> tuple[CLIP, dict]:
    """The untrained CLIP of a configuration file, and what preparing its inputs needs."""
    config = json.loads(config_path.read_text(encoding="utf-8"))
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    preprocess = {"image_size": config["vision_cfg"]["image_size"], **config["preprocess_cfg"]}
    return model, preprocess | {"context_length": config["text_cfg"]["context_length"]}


def train(config: TowerTraining, config_path: Path) -> tuple[CLIP, dict]:
    """The trained CLIP and its record: constants, loss curve, retrieval on held-out frames, versions."""
    torch.manual_seed(config.seed)
    model, preprocess = build_model(config_path)
    head = ThrowAwayHead(model.visual.output_dim)
    optimizer = make_optimizer([model, head], config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    curve, started = [], time.perf_counter()
    for step, batch in enumerate(random_batches(config, preprocess)):
        losses = batch_losses(model, head, batch)
        total = losses["contrastive"] + config.place_weight * losses["place"]
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == config.steps - 1:
            curve.append({"step": step} | {key: round(value.item(), 4) for key, value in losses.items()})
            logger.info("%s  %.0f s", curve[-1], time.perf_counter() - started)
    minutes = (time.perf_counter() - started) / 60
    model.eval()
    record = {"training": asdict(config), "minutes": round(minutes, 1), "threads": torch.get_num_threads()}
    record |= {"loss_curve": curve, "held_out": held_out_scores(model, config, preprocess), "versions": _versions()}
    return model, record


def make_optimizer(modules: list[nn.Module], config: TowerTraining) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))


def _rate(step: int, config: TowerTraining) -> float:
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def batch_losses(model: CLIP, head: ThrowAwayHead, batch: FrameBatch) -> dict[str, Tensor]:
    """The two losses of one batch."""
    embeddings = model.encode_image(batch.images)
    texts = F.normalize(encode_captions(model, batch.tokens), dim=-1)
    scale = model.logit_scale.exp().clamp(max=100.0)
    return {
        "contrastive": contrastive_loss(F.normalize(embeddings, dim=-1), texts, batch.truth, scale),
        "place": head(embeddings, batch),
    }


def encode_captions(model: CLIP, tokens: Tensor) -> Tensor:
    """open_clip's encode_text, without the padding that no caption of the batch reaches: (M, K) to (M, D)."""
    length = int(tokens.argmax(dim=-1).max()) + 1
    hidden = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    return hidden[torch.arange(len(tokens)), tokens.argmax(dim=-1)] @ model.text_projection


def held_out_scores(model: CLIP, config: TowerTraining, preprocess: dict, num_chunks: int = 4) -> dict[str, float]:
    """On frames of scenes never trained on: retrieval in percent, and what a linear read-out of an embedding tells."""
    tokenizer = open_clip.SimpleTokenizer(context_length=preprocess["context_length"])
    chunks = rendered_chunks(config, HELD_OUT_STREAM, num_chunks)
    starts = range(0, CHUNK_FRAMES, config.batch_size)
    batches = [to_batch(c[i : i + config.batch_size], tokenizer, preprocess) for c in chunks for i in starts]
    with torch.inference_mode():
        embeddings = [model.encode_image(batch.images) for batch in batches]
        texts = [model.encode_text(batch.tokens) for batch in batches]
    return retrieval(batches, embeddings, texts) | linear_readout(batches, embeddings)


def retrieval(batches: list[FrameBatch], embeddings: list[Tensor], texts: list[Tensor]) -> dict[str, float]:
    """Percent: is the batch's best caption of a frame (B, D) true of it, and the best frame of a caption (M, D)."""
    caption_hits, frame_hits, chance = [], [], []
    for batch, images, captions in zip(batches, embeddings, texts, strict=True):
        similarity = F.normalize(images, dim=-1) @ F.normalize(captions, dim=-1).T
        caption_hits.append(batch.truth.gather(1, similarity.argmax(dim=1, keepdim=True)).float().mean())
        best = batch.truth.gather(0, similarity.argmax(dim=0, keepdim=True))[0]
        frame_hits.append(best[batch.truth.any(dim=0)].float().mean())
        chance.append(batch.truth.float().mean())
    names = {"image_to_text_top1": caption_hits, "text_to_image_top1": frame_hits, "chance": chance}
    return {name: round(100 * float(torch.stack(values).mean()), 2) for name, values in names.items()}


def linear_readout(batches: list[FrameBatch], embeddings: list[Tensor]) -> dict[str, float]:
    """Ridge regression from embeddings of frames with one object, fitted on two thirds of them, tried on the rest.

    Percent of right colours and shapes, and the root mean square error of x, y (short sides) and log radius.
    """
    facts, places = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("facts", "places"))
    alone = facts[:, 1, 0] < 0
    inputs = torch.cat(embeddings)[alone]
    inputs = F.pad((inputs - inputs.mean(dim=0)) / (inputs.std(dim=0) + 1e-6), (0, 1), value=1.0)
    classes = [facts[alone, 0, column] for column in (0, 1)]
    geometry = torch.cat([places[alone, 0, :2], places[alone, 0, 2:].log()], dim=1)
    wanted = torch.cat([*(F.one_hot(column).float() for column in classes), geometry], dim=1)
    count = 2 * len(inputs) // 3
    gram = inputs[:count].T @ inputs[:count] + 20.0 * torch.eye(inputs.shape[1])
    read = inputs[count:] @ torch.linalg.solve(gram, inputs[:count].T @ wanted[:count])
    colours, shapes, geometry_read = read.split([len(COLOURS), len(SHAPES), 3], dim=1)
    hits = [(logits.argmax(1) == truth[count:]) for logits, truth in zip((colours, shapes), classes, strict=True)]
    errors = (geometry_read - geometry[count:]).square().mean(dim=0).sqrt()
    scores = {f"{name}_top1": 100 * float(h.float().mean()) for name, h in zip(("colour", "shape"), hits, strict=True)}
    scores |= dict(zip(("x_rmse", "y_rmse", "log_radius_rmse"), errors.tolist(), strict=True))
    return {name: round(value, 3) for name, value in scores.items()}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "open_clip_torch", "numpy", "safetensors")}


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def save(model: CLIP, record: dict, out: Path) -> None:
    """Weights as fp16 safetensors and the record beside them, each whole or not at all."""
    tensors = {name: _half(value.detach()).contiguous() for name, value in model.state_dict().items()}
    with replacing(out / "weights.safetensors") as part:
        save_file(tensors, part)
        part.chmod(0o644)  # safetensors writes for the owner only
    write_file(out / "record.json", json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Train and write weights and record."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    defaults = TowerTraining()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TOWER_FOLDER)
    parser.add_argument("--config", type=Path, default=TOWER_FOLDER / "config.json")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name in ("seed", "steps", "batch_size", "workers"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    options = vars(parser.parse_args())
    out, config_path = options.pop("out"), options.pop("config")
    torch.set_num_threads(options.pop("threads"))
    model, record = train(TowerTraining(**options), config_path)
    out.mkdir(parents=True, exist_ok=True)
    save(model, record, out)
    logger.info("%s", record["held_out"])


if __name__ == "__main__":
    main()
