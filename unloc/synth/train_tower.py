"""Trains the toy tower: open_clip's CLIP on single rendered frames and captions, contrastively, from nothing, on CPU.

    python -m unloc.synth.train_tower --out unloc/synth/toy_tower --seed 0

The loss is CLIP's with several positives: of a batch's captions all that are true of a frame count as its own (the
truth is known, see `captions`). Two throw-away linear heads help a small transformer to learn in minutes what an
object is and where it stands: one names the objects of the frame and their places from the class token, one names the
object under each patch. They are dropped at the end; what ships is the CLIP.
"""

import argparse
import json
import logging
import math
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from unloc.synth import TOWER_FOLDER
from unloc.synth.captions import CHUNK_FRAMES, CaptionedFrame, captions_true, render_chunk
from unloc.synth.vocabulary import LOOKS, SHAPES

logger = logging.getLogger(__name__)
TRAIN_STREAM, HELD_OUT_STREAM = 7_000_001, 7_000_002  # apart from every world: those start their seeds elsewhere


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerTraining:
    """All constants of the training."""

    seed: int = 0
    steps: int = 5000
    batch_size: int = 64
    lr: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 0.02
    place_weight: float = 1.0
    """Factor of the head that reads objects and places from the class token."""
    patch_weight: float = 0.5
    """Factor of the head that names the object under each patch."""
    workers: int = 2
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


def frame_batches(config: TowerTraining, stream: int, num_batches: int, preprocess: dict) -> Iterator[FrameBatch]:
    """Batches in a fixed order, rendered ahead by worker processes."""
    num_chunks = math.ceil(num_batches * config.batch_size / CHUNK_FRAMES)
    jobs = [(stream, config.seed, chunk) for chunk in range(num_chunks)]
    tokenizer = open_clip.SimpleTokenizer(context_length=preprocess["context_length"])
    with _ordered_mapper(config.workers) as run:
        for chunk in run(render_chunk, jobs):
            for start in range(0, CHUNK_FRAMES, config.batch_size):
                yield to_batch(chunk[start : start + config.batch_size], tokenizer, preprocess)


@contextmanager
def _ordered_mapper(workers: int) -> Iterator[Callable]:
    """`map` over processes, results in order, or in this process for 0 workers."""
    if workers == 0:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield lambda function, jobs: _bounded_imap(pool, function, jobs, ahead=4 * workers)


def _bounded_imap(pool: Pool, function: Callable, jobs: Sequence, ahead: int) -> Iterator:
    """Results in order, at most `ahead` of them waiting: rendering outruns training and would fill the memory."""
    waiting = deque(pool.apply_async(function, (job,)) for job in jobs[:ahead])
    for job in [*jobs[ahead:], *[None] * len(waiting)]:
        yield waiting.popleft().get()
        if job is not None:
            waiting.append(pool.apply_async(function, (job,)))


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


class ThrowAwayHeads(nn.Module):
    """What objects stand where, read from the class token and from the patches; used in training only."""

    def __init__(self, embed_dim: int, width: int, grid: int) -> None:
        super().__init__()
        self.objects = nn.Linear(embed_dim, len(LOOKS) * 4)
        self.patches = nn.Linear(width, len(LOOKS) + 1)
        self.grid = grid

    def place_loss(self, embeddings: Tensor, batch: FrameBatch) -> Tensor:
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

    def patch_loss(self, patches: Tensor, batch: FrameBatch) -> Tensor:
        """Which look, or none, covers the centre of each patch."""
        centres = (torch.arange(self.grid) + 0.5) / self.grid - 0.5
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        x, y = x.reshape(1, 1, -1), y.reshape(1, 1, -1)
        place_x, place_y, radius = (batch.places[..., index, None] for index in range(3))
        reach = torch.maximum(radius, torch.tensor(0.6 / self.grid))
        covered = ((x - place_x).abs() < reach) & ((y - place_y).abs() < reach)
        looks = _look_index(batch.facts)
        target = torch.full((len(looks), x.shape[-1]), len(LOOKS))
        for order in range(looks.shape[1]):  # later objects are drawn over earlier ones
            exists = looks[:, order, None] < len(LOOKS)
            target = torch.where(covered[:, order] & exists, looks[:, order, None], target)
        return F.cross_entropy(self.patches(patches).flatten(0, 1), target.flatten())


def _look_index(facts: Tensor) -> Tensor:
    """(B, O) index into LOOKS, len(LOOKS) where there is no object."""
    looks = facts[..., 0] * len(SHAPES) + facts[..., 1]
    return torch.where(facts[..., 0] < 0, len(LOOKS), looks)


def build_model(config_path: Path) -> tuple[CLIP, dict]:
    """The untrained CLIP of a configuration file, and what preparing its inputs needs."""
    config = json.loads(config_path.read_text(encoding="utf-8"))
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    with torch.no_grad():
        model.visual.positional_embedding.copy_(sinusoids(model.visual.grid_size[0], config["vision_cfg"]["width"]))
    preprocess = {"image_size": config["vision_cfg"]["image_size"], **config["preprocess_cfg"]}
    return model, preprocess | {"context_length": config["text_cfg"]["context_length"]}


def sinusoids(grid: int, width: int, amplitude: float = 0.7) -> Tensor:
    """(1 + grid^2, width) start of the positional embedding, zero for the class token: waves of x and of y.

    open_clip starts from small noise, from which a transformer this small takes long to learn what is beside what.
    """
    centres = math.pi * (torch.arange(grid) + 0.5) / grid
    y, x = (axis.reshape(-1, 1) for axis in torch.meshgrid(centres, centres, indexing="ij"))
    frequencies = 2.0 ** torch.linspace(0.0, math.log2(grid), width // 4)
    waves = [wave(axis * frequencies) for axis in (x, y) for wave in (torch.sin, torch.cos)]
    return torch.cat([torch.zeros(1, width), amplitude * torch.cat(waves, dim=1)])


def train(config: TowerTraining, config_path: Path) -> tuple[CLIP, dict]:
    """The trained CLIP and its record: constants, loss curve, retrieval on held-out frames, versions."""
    torch.manual_seed(config.seed)
    model, preprocess = build_model(config_path)
    model.visual.output_tokens = True
    heads = ThrowAwayHeads(model.visual.output_dim, model.visual.conv1.out_channels, model.visual.grid_size[0])
    optimizer = make_optimizer([model, heads], config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    curve, started = [], time.perf_counter()
    for step, batch in enumerate(frame_batches(config, TRAIN_STREAM, config.steps, preprocess)):
        losses = batch_losses(model, heads, batch)
        total = losses["contrastive"] + config.place_weight * losses["place"] + config.patch_weight * losses["patch"]
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == config.steps - 1:
            curve.append({"step": step} | {key: round(value.item(), 4) for key, value in losses.items()})
            logger.info("%s  %.0f s", curve[-1], time.perf_counter() - started)
    minutes = (time.perf_counter() - started) / 60
    model.visual.output_tokens = False
    model.eval()
    record = {"training": asdict(config), "minutes": round(minutes, 1), "threads": torch.get_num_threads()}
    record |= {"loss_curve": curve, "held_out": retrieval(model, config, preprocess), "versions": _versions()}
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


def batch_losses(model: CLIP, heads: ThrowAwayHeads, batch: FrameBatch) -> dict[str, Tensor]:
    """The three losses of one batch."""
    embeddings, patches = model.visual(batch.images)
    texts = F.normalize(encode_captions(model, batch.tokens), dim=-1)
    scale = model.logit_scale.exp().clamp(max=100.0)
    return {
        "contrastive": contrastive_loss(F.normalize(embeddings, dim=-1), texts, batch.truth, scale),
        "place": heads.place_loss(embeddings, batch),
        "patch": heads.patch_loss(patches, batch),
    }


def encode_captions(model: CLIP, tokens: Tensor) -> Tensor:
    """open_clip's encode_text, without the padding that no caption of the batch reaches: (M, K) to (M, D)."""
    length = int(tokens.argmax(dim=-1).max()) + 1
    hidden = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    return hidden[torch.arange(len(tokens)), tokens.argmax(dim=-1)] @ model.text_projection


@torch.inference_mode()
def retrieval(model: CLIP, config: TowerTraining, preprocess: dict, num_batches: int = 8) -> dict[str, float]:
    """On frames of scenes never trained on, in percent: is the best caption of a frame true of it, and the reverse."""
    caption_hits, frame_hits, chance = [], [], []
    for batch in frame_batches(config, HELD_OUT_STREAM, num_batches, preprocess):
        images = F.normalize(model.encode_image(batch.images), dim=-1)
        texts = F.normalize(model.encode_text(batch.tokens), dim=-1)
        similarity = images @ texts.T
        caption_hits.append(batch.truth.gather(1, similarity.argmax(dim=1, keepdim=True)).float().mean())
        stated_somewhere = batch.truth.any(dim=0)
        best = batch.truth.gather(0, similarity.argmax(dim=0, keepdim=True))[0]
        frame_hits.append(best[stated_somewhere].float().mean())
        chance.append(batch.truth.float().mean())
    names = {"image_to_text_top1": caption_hits, "text_to_image_top1": frame_hits, "chance": chance}
    return {name: round(100 * float(torch.stack(values).mean()), 2) for name, values in names.items()}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "open_clip_torch", "numpy", "safetensors")}


def save(model: CLIP, record: dict, out: Path) -> None:
    """Weights as fp16 safetensors and the record beside them, each whole or not at all."""
    tensors = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    part = out / "weights.safetensors.part"
    save_file(tensors, part)
    part.chmod(0o644)  # safetensors writes for the owner only
    part.replace(out / "weights.safetensors")
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


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
