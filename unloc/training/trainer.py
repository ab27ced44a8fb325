"""The training loop: plain PyTorch over a cache, deterministic from its seed, resumable to the bit."""

import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unloc.annotations.durations import cached_durations, durations_of
from unloc.annotations.schema import Manifest
from unloc.cache.reading import Cache
from unloc.config import Recipe
from unloc.errors import DivergedError, InputError, StoppedError
from unloc.evaluation.evaluator import annotated_queries
from unloc.examples.batches import Batch, choose_classes, collate, collate_class_pairs
from unloc.examples.examples import InstanceExamples, QueryExamples, WindowExamples
from unloc.files import write_file
from unloc.inference.device import computing
from unloc.inference.load import CheckpointInfo, build_model, start_projections
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


def without_hidden(manifest: Manifest, task: str) -> Manifest:
    """Without the queries whose annotations are hidden: trained on, they would say that nothing is to be found."""
    if task_named(task).text_kind == "class":
        return manifest
    return replace(manifest, queries=manifest.queries[annotated_queries(task, manifest.queries)].reset_index(drop=True))


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
        manifest = cached_durations(manifest, cache)
        self.train_manifest = without_hidden(manifest.select(recipe.data.train_split), recipe.task)
        self.val_manifest = manifest.select(recipe.data.val_split) if recipe.data.val_split else None
        self.examples = build_examples(recipe, self.train_manifest, cache)
        if self.val_manifest is not None:
            build_examples(recipe, self.val_manifest, cache)  # what it lacks is told now, not after an epoch
            durations_of(self.val_manifest)
        self.class_texts = ClassTexts(manifest.classes, cache, recipe.data) if self.task.text_kind == "class" else None
        self.info = self._describe(manifest)
        self.model = build_model(self.info)
        start_projections(self.model, self.info, cache)
        self.model.to(self.device)
        self.averaged = self._averaged_model()
        self.optimizer = build_optimizer(self.model, recipe.optim)
        self.peak_rates = [group["lr"] for group in self._groups]
        self.steps_per_epoch = len(self._batches(0))
        self.total_steps = max(1, round(recipe.train.epochs * self.steps_per_epoch))
        self.factor = lr_factor(recipe.optim, self.steps_per_epoch, self.total_steps)
        self.step = self.validated = 0
        self.best, self.best_step, self.metrics = float("-inf"), -1, {}
        self.saved: tuple[int, int] | None = None
        """Step, and step of the last validation, of the last checkpoint."""

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
        """Go on from the last checkpoint exactly as if the run had not been interrupted; False where there is none.

        Rates, decay and momentum are those of the recipe, which may have changed since.
        """
        state = load_state(self.run)
        if state is None:
            return False
        self.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        of_recipe = [{key: value for key, value in group.items() if key != "params"} for group in self._groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, values in zip(self._groups, of_recipe, strict=True):
            group.update(values)
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.step, self.best, self.best_step = state["step"], state["best"], state.get("best_step", -1)
        self.validated, self.metrics = state.get("validated", self.step), state.get("metrics", {})
        self.saved = self.step, self.validated
        return True

    @property
    def _groups(self) -> list[dict]:
        return self.optimizer.param_groups

    def _state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else {},
            "optimizer": self.optimizer.state_dict(),
            **self.rng,
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "validated": self.validated,
            "metrics": self.metrics,
        }

    def _rng(self) -> dict[str, torch.Tensor]:
        of_gpu = {"cuda_rng": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"torch_rng": torch.get_rng_state(), **of_gpu}

    def fit(self) -> dict[str, float]:
        """Train to the end; returns the last validation metrics (none without a validation split).

        A checkpoint is written at the start, after each validation and every `train.checkpoint_minutes`, once the loss
        and gradient of the next batch are known to be finite, so that a run that diverges keeps a good one; and on
        SIGTERM. Raises DivergedError where loss or gradient is not finite, before the optimizer's step, and
        StoppedError on SIGTERM.
        """
        self.rng, self.saved_at, started, first_step = self._rng(), time.monotonic(), time.perf_counter(), self.step
        with MetricsLog(self.run, self.step, self.validated) as log, StopSignal() as stop:
            try:
                batches = self._remaining_batches()
                while True:
                    if self._is_validation_due():
                        with stop.at_once():
                            self._validate(log)
                    batch = next(batches, None)
                    if batch is None:
                        break
                    losses = self._gradients(batch)
                    if self._is_checkpoint_due():
                        self._save()
                    stop.check()
                    self._update()
                    self._report(losses, (self.step - first_step) / (time.perf_counter() - started), log)
                self._save()
            except StoppedError as error:
                self._save()
                raise StoppedError(
                    f"{self.run}: {error} at step {self.step}, which is kept; --resume goes on"
                ) from None
        return self.metrics

    def _is_validation_due(self) -> bool:
        every = max(1, round(self.recipe.train.eval_every_epochs * self.steps_per_epoch))
        return self.validated < self.step and (self.step % every == 0 or self.step == self.total_steps)

    def _is_checkpoint_due(self) -> bool:
        is_new = self.validated == self.step and self.saved != (self.step, self.validated)  # also the very first
        return is_new or time.monotonic() - self.saved_at >= 60 * self.recipe.train.checkpoint_minutes

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

    def _gradients(self, batch: Batch) -> Losses:
        """Losses of a batch, their clipped gradients in the parameters; nothing else has changed."""
        self.model.train()
        with computing(self.device, self.recipe.train.precision):
            losses = compute_losses(self.model, batch.to(self.device), self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm, loss = clip_gradients(self.model, self.recipe.optim.clip_norm), float(losses.total.detach())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            ids = ", ".join(dict.fromkeys(example.video_id for example in batch.examples))
            raise self._diverged(
                f"loss {loss}, gradient norm {norm} after step {self.step}, in the batch of videos {ids}"
            )
        return losses

    def _diverged(self, what: str) -> DivergedError:
        if self.saved is None:
            way_out = "nothing was trained yet: check the cache with `unloc cache verify`, the manifest and --init"
        else:
            way_out = (
                f"the checkpoint of step {self.saved[0]} is good: go on from it with --resume --change-optim and a "
                f"lower optim.lr (now {self.recipe.optim.lr})"
            )
        return DivergedError(f"{self.run}: training diverged: {what}; {way_out}")

    def _update(self) -> None:
        for group, peak in zip(self._groups, self.peak_rates, strict=True):
            group["lr"] = peak * self.factor(self.step)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.step += 1
        self.rng = self._rng()

    def _report(self, losses: Losses, rate: float, log: "MetricsLog") -> None:
        values = {key: float(value.detach()) for key, value in losses.parts.items()}
        total, epoch, lr = float(losses.total.detach()), self.step / self.steps_per_epoch, self._groups[0]["lr"]
        log.write("train", self.step, {"epoch": epoch, "loss": total, "lr": lr, **values})
        self.on_step(
            Progress(
                step=self.step, total_steps=self.total_steps, epoch=epoch, loss=total, lr=lr, steps_per_second=rate
            )
        )

    def _validate(self, log: "MetricsLog") -> None:
        metrics: dict[str, float] = {}
        if self.val_manifest is not None:
            metrics = validate(self.predictor, self.info, self.val_manifest, self.cache)
            log.write("val", self.step, metrics)
        metrics = {key: float(value) for key, value in metrics.items()}
        score = metrics.get(self.task.headline, float(self.step))
        if score > self.best:
            self.best, self.best_step = score, self.step
        self.metrics, self.validated = metrics, self.step
        shown = ", ".join(f"{key} {value:.2f}" for key, value in list(metrics.items())[:4])
        logger.info("step %d/%d: %s (best %s %.2f)", self.step, self.total_steps, shown, self.task.headline, self.best)

    def _save(self) -> None:
        """Write a checkpoint of this step, unless there is one. Raises DivergedError where a weight is not finite."""
        if self.saved == (self.step, self.validated):
            return
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged(f"a weight is not finite after step {self.step}")
        info = replace(self.info, step=self.step, metrics=self.metrics if self.validated == self.step else {})
        is_best = self.best_step == self.step
        save_checkpoint(self.run, info, self.predictor.state_dict(), self._state(), is_best=is_best)
        self.saved, self.saved_at = (self.step, self.validated), time.monotonic()


class StopSignal:
    """SIGTERM ends the loop where `check` stands or, within `at_once`, wherever it is: with a StoppedError."""

    def __init__(self) -> None:
        self._requested = self._at_once = False

    def __enter__(self) -> "StopSignal":
        self._is_main = threading.current_thread() is threading.main_thread()  # others are told no signals
        self._before = signal.signal(signal.SIGTERM, self._note) if self._is_main else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *signal_and_frame: object) -> None:
        self._requested = True
        if self._at_once:
            self.check()

    def check(self) -> None:
        """Raise StoppedError where SIGTERM came."""
        if self._requested:
            self._at_once = False
            raise StoppedError("stopped by SIGTERM")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For what changes nothing and may take long."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False


def require_task(manifest: Manifest, task: str) -> None:
    """Raise InputError unless the manifest serves the task."""
    if task not in manifest.tasks:
        served = ", ".join(manifest.tasks)
        raise InputError(
            f"manifest {manifest.name!r} serves {served}, not {task}; give the manifest of a {task} dataset"
        )


class MetricsLog:
    """metrics.jsonl, and TensorBoard where it is installed (extra `track`).

    Rows of steps and validations to come, which a killed run left behind, are taken out.
    """

    def __init__(self, run: Path, step: int, validated: int) -> None:
        self.run, self.step, self.validated = run, step, validated

    def __enter__(self) -> "MetricsLog":
        path = self.run / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_file(path, "".join(line for line in lines if self._is_done(line)))
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(self.run, self.step)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _is_done(self, line: str) -> bool:
        try:
            row = json.loads(line)
            return row["step"] <= (self.validated if row["kind"] == "val" else self.step)
        except (ValueError, KeyError, TypeError):  # half a line
            return False

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One row of kind train or val."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write(kind, step, values)


def _tensorboard(run: Path, step: int) -> "BoardFile | None":
    try:
        return BoardFile(run / "tensorboard", step)
    except ImportError:
        logger.info("tensorboard is not installed (extra `track`): metrics go to metrics.jsonl only")
        return None


class BoardFile:
    """TensorBoard's event file, written in this thread: its own writer reports a full disk from another one."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        # The steps to come are done again: TensorBoard drops what it has of them.
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, event: "Event") -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """The values of one step, below `kind`."""
        scalars = [self._summary.Value(tag=f"{kind}/{key}", simple_value=value) for key, value in values.items()]
        self._write(self._event(step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()
