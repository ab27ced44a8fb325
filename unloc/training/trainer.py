"""The loop: deterministic from its seed, resumable to the bit.

A step on a GPU waits for nothing: what it computed is read every `train.log_every` steps, and before weights are used
or saved.
"""

import copy
import logging
import math
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unloc.callbacks import OnProgress
from unloc.errors import DivergedError, LoaderError, StoppedError, one_line
from unloc.examples.batches import Batch
from unloc.examples.loader import Loader
from unloc.inference.device import computing
from unloc.inference.load import CheckpointInfo
from unloc.model.build import compile_core, models_by_task
from unloc.recipes import task_recipes
from unloc.tasks import task_named
from unloc.training.distributed import average, from_main, process_count, process_rank
from unloc.training.folder import WriteMetrics, draw_curves, load_state, metrics_log, save_checkpoint
from unloc.training.objective import part_losses, split_batch
from unloc.training.optim import build_optimizer, lr_factor
from unloc.training.replay import replay

logger = logging.getLogger(__name__)
STOPPED = "stopped by SIGTERM"
COUNTERS = ("step", "best", "best_step", "validated", "metrics")  # of a checkpoint's state

LOG_EVERY_ON_GPU = 10
COMPILED_FROM = 1000  # steps of a run for which compiling pays
MEAN_HEADLINE = "mean_headline"  # of several tasks: the mean of their headline metrics, all in percent

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each step with the steps done, all steps, and epoch, lr, and the loss that was read last."""
Validate = Callable[[nn.Module, OnProgress], dict[str, float]]
"""Metrics of a model, which may be left in evaluation mode; what is told how much is done may stop the validation."""


class Trainer:
    """Model and optimizer of one run; `fit` does the steps. Without `validate` the last checkpoint is best. Of several
    tasks the model is a `SeveralTasks` and the loader a `MixedLoader`; each step is of one task.
    """

    def __init__(
        self,
        model: nn.Module,
        info: CheckpointInfo,
        loader: Loader,
        run: Path,
        *,
        validate: Validate | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.recipe, self.info, self.loader, self.run, self.validate = info.recipe, info, loader, run, validate
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.recipes = task_recipes(self.recipe)
        self.models = models_by_task(self.model, self.recipe)
        self.averaged = copy.deepcopy(self.model) if self.recipe.train.ema_decay > 0 else None
        self.predictor = self.model if self.averaged is None else self.averaged  # whose weights predict
        self.optimizer = build_optimizer(self.model, self.recipe.optim)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.total_steps = max(1, round(self.recipe.train.epochs * len(loader)))
        is_long = self.device.type == "cuda" and self.total_steps >= COMPILED_FROM
        if self.recipe.train.compile == "on" or (self.recipe.train.compile == "auto" and is_long):
            for one in self.models.values():
                compile_core(one)
        self.step = self.validated = 0
        self.best, self.best_step, self.metrics = float("-inf"), -1, {}
        self.saved: tuple[int, int] | None = None  # of the last checkpoint: its step, and that of the last validation
        self.log_every = self.recipe.train.log_every or (1 if self.reads_at_once else LOG_EVERY_ON_GPU)
        self.unread: list[tuple[int, dict[str, torch.Tensor]]] = []  # steps before each batch, its values on the device
        self.values: dict[str, float] = {}  # what was read last
        self.drawn_from = float("-inf")

    def resume(self) -> bool:
        """Continue from the last checkpoint as if the run had not been interrupted; False where there is none."""
        state = from_main(load_state(self.run) if process_rank() == 0 else None)
        if state is None:
            return False
        self.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        # Rates, decay and momentum are those of the recipe, which may have changed since.
        of_recipe = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, values in zip(self.optimizer.param_groups, of_recipe, strict=True):
            group.update(values)
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.saved = self.step, self.validated
        return True

    def fit(
        self, on_step: OnStep = lambda *step: None, *, wandb: str | None = None, stop: "StopSignal | None" = None
    ) -> dict[str, float]:
        """Train to the end; returns the last validation metrics (none without a validation split). `wandb` names a
        project of Weights & Biases to log to as well; `stop` ends the training as SIGTERM does.

        A checkpoint is written at the start, after each validation, every `train.checkpoint_minutes` and on SIGTERM;
        only once the loss and gradient of the next batch are finite, so that a run that diverges keeps a good one. Of
        processes that train together the main one validates and writes, and all stop after the same step. Raises
        DivergedError before a step whose loss or gradient is not finite, and StoppedError on SIGTERM.
        """
        self.on_step, self.stop = on_step, stop or StopSignal()
        self.saved_at, self.speed = time.monotonic(), Speed(self.device)
        every = max(1, round(self.recipe.train.eval_every_epochs * len(self.loader)))
        with ExitStack() as stack:
            log = nullcontext(lambda kind, step, values: None)
            if process_rank() == 0:
                log = metrics_log(self.run, self.recipe, self.step, self.validated, wandb)
            write = stack.enter_context(log)
            stack.enter_context(self.stop)
            try:
                batches = stack.enter_context(closing(self.loader.batches(self.step, self.total_steps)))
                while True:
                    if self.validated < self.step and (self.step % every == 0 or self.step == self.total_steps):
                        with self.speed.spent("paused"):
                            self._validate(write)
                    with self.speed.spent("waiting"):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    is_stopping = self._gradients(batch)
                    is_validated = self.validated == self.step and self.saved != (self.step, self.validated)
                    if is_validated or time.monotonic() - self.saved_at >= 60 * self.recipe.train.checkpoint_minutes:
                        with self.speed.spent("paused"):
                            self._save()  # also before the very first step
                    if is_stopping:
                        raise StoppedError(STOPPED)
                    self._update(write)
                self._save()
                self._draw(at_end=True)
            except StoppedError as error:
                self._save()
                message = f"{self.run}: {error} after step {self.step}, which is saved; use --resume"
                raise StoppedError(message) from None
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                advice = "use --resume with fewer --loader-workers, or 0"
                raise LoaderError(f"{self.run}: {one_line(error)} after step {self.step}; {advice}") from None
        return self.metrics

    def _gradients(self, batch: Batch) -> bool:
        """Put the clipped gradients of a batch into the parameters; nothing else changes. Returns whether to stop."""
        self.model.train()
        seeds = np.random.SeedSequence([self.recipe.train.seed, self.step, process_rank()])
        torch.manual_seed(int(seeds.generate_state(1)[0]))  # of dropout
        self.optimizer.zero_grad(set_to_none=True)
        batch, towers, train = batch.to(self.device), self.recipe.towers, self.recipe.train
        model, recipe = self.models[batch.task], self.recipes[batch.task]
        chunked = towers.frame_chunk > 0 and batch.frames.ndim == 5
        replays = chunked and towers.image == "finetune"
        (first, total), sums = batch.place or (0, len(batch.frames)), Counter()
        for part in split_batch(batch, recipe, train.accumulate):
            frames = part.batch.frames
            with computing(self.device, train.precision):
                if chunked:
                    tokens = model.encode_in_chunks(frames, towers.frame_chunk).requires_grad_(replays)
                    part = replace(part, batch=replace(part.batch, frames=tokens))
                losses = part_losses(model, part, recipe)
            losses["loss"].backward()
            if replays:
                generator = torch.Generator().manual_seed(train.seed + self.step)
                options = {"share": towers.replay_share, "generator": generator, "place": (first, total)}
                with computing(self.device, train.precision):
                    replay(model, frames, tokens.grad, towers.frame_chunk, **options)
            first += len(frames)
            for key, value in losses.items():
                sums[key] += value.detach()
            for level, count in enumerate(part.positives):
                sums[f"positives_{level}"] += count * process_count()
        if self.recipe.tasks:
            sums = {f"{batch.task}/{key}": value for key, value in sums.items()} | {"loss": sums["loss"]}
        sums, is_stopping = average(self.model, dict(sums), self.stop.requested)
        limit = self.recipe.optim.clip_norm or math.inf
        sums["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.unread.append((self.step, sums))
        self.speed.samples += total
        if self.reads_at_once:
            self._read()
        return is_stopping

    @property
    def reads_at_once(self) -> bool:
        """Whether reading a value does not wait for the device."""
        return self.device.type == "cpu"

    def _read(self) -> None:
        """Read the values of all batches since the last time. Raises DivergedError for one that is not finite."""
        unread, self.unread = self.unread, []
        found = [value for _, values in unread for value in values.values()]
        read = iter(torch.stack(found).tolist() if found else [])
        for step, values in unread:
            self.values = {key: next(read) for key in values}
            loss, norm = self.values["loss"], self.values["grad_norm"]
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"loss {loss}, gradient norm {norm} after step {step}, in the batch of videos "
                raise self._diverged(what + ", ".join(dict.fromkeys(self.loader.videos(step))))

    def _diverged(self, what: str) -> DivergedError:
        advice = "nothing was trained yet: check the cache with `unloc cache verify`, the manifest and --init"
        if self.saved is not None:
            advice = f"the checkpoint of step {self.saved[0]} is good: continue from it with --resume --change-optim"
            advice += f" and a lower optim.lr (now {self.recipe.optim.lr})"
        return DivergedError(f"{self.run}: training diverged: {what}; {advice}")

    def _update(self, write: WriteMetrics) -> None:
        rate = lr_factor(self.recipe.optim, len(self.loader), self.total_steps, self.step)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * rate
        self.optimizer.step()
        if self.averaged is not None:  # by hand: torch's AveragedModel waits for a GPU at each step
            weight = 1 - self.recipe.train.ema_decay if self.step else 1.0
            pair = (list(one.parameters()) for one in (self.averaged, self.model))
            with torch.no_grad():
                torch._foreach_lerp_(*pair, weight)
        self.step += 1
        groups = self.optimizer.param_groups[::2]  # each without and with decay
        rates = {name: group["lr"] for name, group in zip(("lr", "tower_lr"), groups, strict=False)}
        now = {"epoch": self.step / len(self.loader), "loss": self.values.get("loss", math.nan), **rates}
        if self.step % self.log_every == 0 or self.step == self.total_steps:
            self._read()
            now["loss"] = self.values["loss"]
            write("train", self.step, now | self.values)
            write("speed", self.step, self.speed.values())
            self.speed = Speed(self.device)
        self.on_step(self.step, self.total_steps, now)

    def _validate(self, write: WriteMetrics) -> None:
        self._read()
        metrics: dict[str, float] | None = {}
        if self.validate is not None:
            if process_rank() == 0:
                try:
                    self.stop.check()
                    with torch.compiler.set_stance("force_eager"):  # its shapes and modes would be compiled, too
                        found = self.validate(self.predictor, lambda done, total: self.stop.check())
                    metrics = {key: float(value) for key, value in found.items()}
                except StoppedError:
                    metrics = None
            metrics = from_main(metrics)
            if metrics is None:
                raise StoppedError(STOPPED)
            write("val", self.step, metrics)
            self._draw()
        headline = MEAN_HEADLINE if self.recipe.tasks else task_named(self.recipe.task).headline
        score = metrics.get(headline, float(self.step))
        if score > self.best:
            self.best, self.best_step = score, self.step
        self.metrics, self.validated = metrics, self.step
        shown = ", ".join(f"{key} {value:.2f}" for key, value in list(metrics.items())[:4])
        logger.info("step %d/%d: %s (best %s %.2f)", self.step, self.total_steps, shown, headline, self.best)

    def _draw(self, *, at_end: bool = False) -> None:
        """Draw the curves so far, before the end only as often as it takes little of the time."""
        began = time.perf_counter()
        if process_rank() == 0 and (at_end or began >= self.drawn_from):
            draw_curves(self.run)
            done = time.perf_counter()
            self.drawn_from = done + 20 * (done - began)

    def _save(self) -> None:
        """Write a checkpoint of this step, unless there is one. Raises DivergedError where a weight is not finite."""
        if self.saved == (self.step, self.validated):
            return
        self._read()
        if not bool(torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all()):
            raise self._diverged(f"a weight is not finite after step {self.step}")
        if process_rank() == 0:
            state = {
                "model": self.model.state_dict(),
                "averaged": self.averaged.state_dict() if self.averaged is not None else {},
                "optimizer": self.optimizer.state_dict(),
                **{name: getattr(self, name) for name in COUNTERS},
            }
            info = replace(self.info, step=self.step, metrics=self.metrics if self.validated == self.step else {})
            save_checkpoint(self.run, info, self.predictor.state_dict(), state, is_best=self.best_step == self.step)
        self.saved, self.saved_at = (self.step, self.validated), time.monotonic()


class Speed:
    """Samples a second, share of time waiting for data, and memory, since this object was made."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began, self.samples, self.seconds = device, time.perf_counter(), 0, Counter()

    @contextmanager
    def spent(self, how: str) -> Iterator[None]:
        """Time in this block was spent `waiting` for data, or `paused`: it does not count."""
        began = time.perf_counter()
        yield
        self.seconds[how] += time.perf_counter() - began

    def values(self) -> dict[str, float]:
        """For the log; memory is the most that tensors took on a GPU, or this process on a CPU."""
        seconds = time.perf_counter() - self.began - self.seconds["paused"]
        if self.device.type == "cuda":
            num_bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            num_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        shares = {"samples_per_second": self.samples / seconds, "data_wait": self.seconds["waiting"] / seconds}
        return shares | {"memory_gib": num_bytes / 2**30}


class StopSignal:
    """Records that SIGTERM came, or whoever else sets `requested`."""

    requested = False

    def __enter__(self) -> "StopSignal":
        self._is_main = threading.current_thread() is threading.main_thread()  # only that one can handle signals
        if self._is_main:
            self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "requested", True))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)

    def check(self) -> None:
        """Raise StoppedError if SIGTERM came."""
        if self.requested:
            raise StoppedError(STOPPED)
