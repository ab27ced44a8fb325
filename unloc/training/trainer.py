"""The training loop: plain PyTorch over a cache, deterministic from its seed, resumable to the bit."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unloc.config import Recipe
from unloc.data.cache import Cache
from unloc.data.cache_writer import write_atomically
from unloc.data.collate import Batch, choose_classes, collate, collate_class_pairs
from unloc.data.dataset import InstanceExamples, QueryExamples, WindowExamples
from unloc.data.schema import Manifest
from unloc.errors import InputError
from unloc.inference.device import computing
from unloc.inference.load import CheckpointInfo, build_model
from unloc.inference.texts import ClassTexts
from unloc.tasks import task_named
from unloc.training.checkpoint import load_state, save_checkpoint
from unloc.training.objective import Losses, compute_losses
from unloc.training.optim import build_optimizer, clip_gradients, lr_factor
from unloc.training.validate import validate

logger = logging.getLogger(__name__)
Examples = QueryExamples | InstanceExamples | WindowExamples


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the loop reports after each step."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    lr: float
    steps_per_second: float


def build_examples(recipe: Recipe, manifest: Manifest, cache: Cache) -> Examples:
    """The examples of the recipe's task over one split."""
    task = task_named(recipe.task)
    if task.text_kind == "query":
        return QueryExamples(manifest, cache, recipe.data)
    return (
        InstanceExamples(manifest, cache, recipe.data)
        if task.localizes
        else WindowExamples(manifest, cache, recipe.data)
    )


def epoch_batches(videos: list[str], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Example indices of one epoch in ceil(n / batch_size) batches of nearly equal size, shuffled.

    No video stands twice in a batch (as far as there are more batches than examples of one video): with in-batch
    negatives another caption of the same video would be a false negative. The order depends on (seed, epoch) only.
    """
    rng = np.random.default_rng([seed, epoch])
    by_video: dict[str, list[int]] = {}
    for index in rng.permutation(len(videos)):
        by_video.setdefault(videos[index], []).append(int(index))
    dealt = [index for indices in by_video.values() for index in indices]
    num_batches = -(-len(videos) // batch_size)
    batches = [dealt[start::num_batches] for start in range(num_batches)]
    return [batches[number] for number in rng.permutation(num_batches)]


class Trainer:
    """Model, optimiser and data of one run; `fit` does the steps."""

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        cache: Cache,
        run: Path,
        *,
        device: torch.device | str = "cpu",
        on_step: Callable[[Progress], None] | None = None,
    ) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe, self.cache, self.run, self.device = recipe, cache, run, torch.device(device)
        self.task = task_named(recipe.task)
        self.on_step = on_step or (lambda progress: None)
        require_task(manifest, recipe.task)
        self.train_manifest = manifest.select(recipe.data.train_split)
        self.val_manifest = manifest.select(recipe.data.val_split) if recipe.data.val_split else None
        self.examples = build_examples(recipe, self.train_manifest, cache)
        if self.val_manifest is not None:
            build_examples(recipe, self.val_manifest, cache)  # what it lacks is told now, not after an epoch
        self.class_texts = ClassTexts(manifest.classes, cache, recipe.data) if self.task.text_kind == "class" else None
        self.info = self._describe(manifest)
        self.model = build_model(self.info).to(self.device)
        self.averaged = self._averaged_model()
        self.optimizer = build_optimizer(self.model, recipe.optim)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.steps_per_epoch = len(self._batches(0))
        self.total_steps = max(1, round(recipe.train.epochs * self.steps_per_epoch))
        self.factor = lr_factor(recipe.optim, self.steps_per_epoch, self.total_steps)
        self.step, self.best = 0, float("-inf")

    def _describe(self, manifest: Manifest) -> CheckpointInfo:
        example = self.examples.example(0)
        text = self.class_texts.sample(None)[0] if self.class_texts is not None else example.text
        return CheckpointInfo(
            recipe=self.recipe,
            classes=manifest.classes if self.task.text_kind == "class" else (),
            frame_dim=example.frames.shape[-1],
            text_dim=text.shape[-1],
            fingerprint=self.cache.fingerprint,
            step=0,
        )

    def _averaged_model(self) -> AveragedModel | None:
        decay = self.recipe.train.ema_decay
        return AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay > 0 else None

    def _batches(self, epoch: int) -> list[list[int]]:
        return epoch_batches(self.examples.videos, self.recipe.train.batch_size, self.recipe.train.seed, epoch)

    @property
    def predictor(self) -> torch.nn.Module:
        """The weights that predict: the moving average where one is kept."""
        return self.averaged.module if self.averaged is not None else self.model

    def start_from(self, weights: dict[str, torch.Tensor]) -> None:
        """Begin with these weights instead of fresh ones, as far as they go."""
        self.model.load_state_dict(weights, strict=False)
        self.averaged = self._averaged_model()

    def resume(self) -> bool:
        """Go on from the last checkpoint exactly as if the run had not been interrupted; False where there is none."""
        state = load_state(self.run)
        if state is None:
            return False
        self.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.step, self.best = state["step"], state["best"]
        return True

    def _state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
            **({"cuda_rng": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}),
            "step": self.step,
            "best": self.best,
        }

    def fit(self) -> dict[str, float]:
        """Train to the end; returns the best validation metrics (the last losses where there is no validation)."""
        every = max(1, round(self.recipe.train.eval_every_epochs * self.steps_per_epoch))
        started, first_step = time.perf_counter(), self.step
        metrics: dict[str, float] = dict(self.info.metrics)
        with MetricsLog(self.run, self.step) as log:
            for batch in self._remaining_batches():
                losses = self._train_step(batch)
                rate = (self.step - first_step) / (time.perf_counter() - started)
                self._report(losses, rate, log)
                if self.step % every == 0 or self.step == self.total_steps:
                    metrics = self._checkpoint(log)
        return metrics

    def _remaining_batches(self) -> Iterator[Batch]:
        while self.step < self.total_steps:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            for indices in self._batches(epoch)[position : position + self.total_steps - self.step]:
                yield self._batch(indices, epoch)

    def _batch(self, indices: list[int], epoch: int) -> Batch:
        seed = self.recipe.train.seed
        examples = [self.examples.example(index, np.random.default_rng([seed, epoch, index])) for index in indices]
        if self.class_texts is None:
            return collate(examples, max_text_tokens=self.recipe.data.max_text_tokens)
        rng = np.random.default_rng([seed, epoch, indices[0], 1])
        class_texts = self.class_texts.sample(rng)
        count = min(self.recipe.train.classes_per_video, len(class_texts[0]))
        if not count:
            return collate(examples, max_text_tokens=self.recipe.data.max_text_tokens, class_texts=class_texts)
        present = [e.segment_classes if e.step_classes is None else e.step_classes for e in examples]
        classes = np.stack([choose_classes(found, len(class_texts[0]), count, rng) for found in present])
        return collate_class_pairs(examples, class_texts, classes)

    def _train_step(self, batch: Batch) -> Losses:
        self.model.train()
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * self.factor(self.step)
        with computing(self.device, self.recipe.train.precision):
            losses = compute_losses(self.model, batch.to(self.device), self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        clip_gradients(self.model, self.recipe.optim.clip_norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.step += 1
        return losses

    def _report(self, losses: Losses, rate: float, log: "MetricsLog") -> None:
        values = {key: float(value.detach()) for key, value in losses.parts.items()}
        total = float(losses.total.detach())
        if not np.isfinite(total):
            raise InputError(
                f"{self.run}: loss is {total} at step {self.step}; the last checkpoint is kept: lower optim.lr "
                f"(now {self.recipe.optim.lr}) or check the cache with `unloc cache verify`"
            )
        epoch = self.step / self.steps_per_epoch
        lr = self.optimizer.param_groups[0]["lr"]
        log.write("train", self.step, {"epoch": epoch, "loss": total, "lr": lr, **values})
        self.on_step(
            Progress(
                step=self.step, total_steps=self.total_steps, epoch=epoch, loss=total, lr=lr, steps_per_second=rate
            )
        )

    def _checkpoint(self, log: "MetricsLog") -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self.val_manifest is not None:
            metrics = validate(self.predictor, self.info, self.val_manifest, self.cache)
            log.write("val", self.step, metrics)
        score = metrics.get(self.task.headline, float(self.step))
        is_best = score > self.best
        self.best = max(self.best, score)
        info = replace(self.info, step=self.step, metrics=metrics)
        save_checkpoint(self.run, info, self.predictor.state_dict(), self._state(), is_best=is_best)
        shown = ", ".join(f"{key} {value:.2f}" for key, value in list(metrics.items())[:4])
        logger.info("step %d/%d: %s (best %s %.2f)", self.step, self.total_steps, shown, self.task.headline, self.best)
        return metrics


def require_task(manifest: Manifest, task: str) -> None:
    """Raise InputError unless the manifest serves the task."""
    if task not in manifest.tasks:
        served = ", ".join(manifest.tasks)
        raise InputError(
            f"manifest {manifest.name!r} serves {served}, not {task}; give the manifest of a {task} dataset"
        )


class MetricsLog:
    """metrics.jsonl, and TensorBoard where it is installed (extra `track`); rows of steps to come are taken out."""

    def __init__(self, run: Path, step: int) -> None:
        self.run, self.step = run, step

    def __enter__(self) -> "MetricsLog":
        path = self.run / "metrics.jsonl"
        if path.is_file():  # a killed run went on after its last checkpoint; those steps are done again
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_atomically(path, "".join(line for line in lines if _is_row_until(self.step, line)))
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(self.run, self.step)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One row of kind train or val."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(f"{kind}/{key}", value, step)


def _is_row_until(step: int, line: str) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):  # half a line
        return False


def _tensorboard(run: Path, step: int) -> object | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("tensorboard is not installed (extra `track`): metrics go to metrics.jsonl only")
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
