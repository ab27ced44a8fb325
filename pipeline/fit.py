"""`unloc fit` in several processes, under Ray Train: each has a trainer of its own, gradients are averaged.

This process checks and prepares the run as if it trained alone (`fit_recipe`), starts the others and shows what they
report. The main one of them (rank 0) validates and writes. When a process is lost or hangs, all are started again and
resume from the run's last checkpoint, with the same result; an error that a user can do something about ends the run.
"""

import hashlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError
from ray.train import RunConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.torch.config import _TorchBackend
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import ExtractOptions, connected, live_nodes
from pipeline.link import Link
from pipeline.workers import last_line
from unloc.config import Recipe
from unloc.errors import InputError, StoppedError, UnlocError
from unloc.files import file_lock, url_of
from unloc.inference.device import described
from unloc.recipes import dump_recipe
from unloc.training.distributed import from_all, process_rank
from unloc.training.folder import logged
from unloc.training.inputs import Places
from unloc.training.run import Processes, fit_recipe, rebuild_trainer
from unloc.training.trainer import OnStep, StopSignal, Trainer

logger = logging.getLogger("unloc.fit")  # whose records the run's log.txt has
RESTARTS = 3  # after failures without a step further than before
LOOK_SECONDS = 0.25
WRITER = ".writer"  # the lock of the main process: one whose command was killed may live for some seconds
RAY_TRAIN = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
STOP = StopSignal()  # of a training process: SIGTERM came to it, or to the command


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each process needs. Paths are absolute: it may have another working folder."""

    rebuild: Callable[..., Trainer]  # `rebuild_trainer` of the run
    run: Path
    env: str  # content of the run's env.json
    on_gpu: bool
    threads: int
    wandb: str | None


def fit(
    recipe: Recipe,
    manifest: Places,
    data: Places,
    run: Path,
    *,
    workers: int,
    address: str | None = None,
    timeout: float = 600.0,
    kind: str = "cache",
    device: str = "auto",
    threads: int = 0,
    loader_workers: int | None = None,
    wandb: str | None = None,
    on_step: OnStep = lambda step, total, values: None,
    **options: bool | Path | None,
) -> dict[str, float]:
    """`fit_recipe` in `workers` processes on a local Ray, or on the cluster at `address`; one that does not answer for
    `timeout` seconds is lost. Raises as `fit_recipe`; InputError where the cluster has no room for them or its machines
    do not share the run folder; UnlocError where they fail `RESTARTS` times without a step further.
    """
    os.environ.update(RAY_TRAIN | {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(timeout)})
    with connected(ExtractOptions(workers=workers, encoders=0, address=address)):
        on_gpu = _on_gpu(workers, device)
        used = torch.device("cuda:0" if on_gpu else "cpu"), recipe.train.precision
        describe = ray.remote(num_cpus=0, num_gpus=1)(described)
        device_used = ray.get(describe.remote(*used)) if on_gpu else described(*used)

        def fit_processes(trainer: Trainer) -> dict[str, float]:
            paths = _absolute(manifest), _absolute(data), run.absolute()
            rebuild = partial(rebuild_trainer, recipe, *paths, kind=kind, loader_workers=loader_workers)
            env = (run / "env.json").read_text(encoding="utf-8")
            job = Job(rebuild=rebuild, run=run.absolute(), env=env, on_gpu=on_gpu, threads=threads, wandb=wandb)
            return _Group(job, trainer, workers, timeout, on_step).fit()

        processes = Processes(workers, device_used, fit_processes)
        options |= {"kind": kind, "device": "cpu", "wandb": wandb, "processes": processes}
        return fit_recipe(recipe, manifest, data, run, **options)


def _absolute(place: Places) -> Places:
    """A file or folder, or that of each task, as other processes find it; a URL as it is."""
    if isinstance(place, Mapping):
        return {task: _absolute(one) for task, one in place.items()}
    return place if url_of(place) else Path(place).absolute()


def _on_gpu(workers: int, device: str) -> bool:
    """Whether each process gets a GPU of the connected cluster. Raises InputError where it has no room for all."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device: got {device!r}, but of several processes each gets a device: auto, cpu or cuda")
    nodes = live_nodes()
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    on_gpu = device == "cuda" or (device == "auto" and gpus > 0)
    for name, found in (("GPU", gpus), ("CPU", cpus)):
        if found < workers and (on_gpu or name == "CPU"):
            advice = f"--workers {found}" if found else "machines that have some"
            advice += ", or --device cpu" if name == "GPU" else ""
            raise InputError(f"--workers: {workers} processes need a {name} each, but Ray has {found}; give {advice}")
    return on_gpu


class _Group:
    """The processes of a run, started again as long as they get further."""

    def __init__(self, job: Job, trainer: Trainer, workers: int, timeout: float, on_step: OnStep) -> None:
        self.job, self.workers, self.timeout, self.on_step = job, workers, timeout, on_step
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.link = ray.remote(num_cpus=0, scheduling_strategy=here)(Link).remote()
        self.start = ray.put(trainer.model.state_dict())
        # Ray Train resumes what it finds under an equal name: neither another run nor another attempt has it.
        data = hashlib.sha256(f"{job.run}{job.env}{dump_recipe(trainer.recipe)}".encode()).hexdigest()[:12]
        self.name, self.step = f"{trainer.recipe.name}-{data}", trainer.step

    def fit(self) -> dict[str, float]:
        """Train to the end; returns the last validation metrics."""
        failures, attempt, furthest = 0, 0, self.step
        with tempfile.TemporaryDirectory() as storage, StopSignal() as stop:
            while True:
                try:
                    return self._attempt(storage, attempt, stop)
                except (TrainingFailedError, RayError) as error:
                    if (cause := ray.get(self.link.ended.remote())) is not None:
                        raise cause from None
                    failures, attempt = (failures + 1 if self.step <= furthest else 1), attempt + 1
                    furthest = max(furthest, self.step)
                    lost = last_line(error)
                    if failures > RESTARTS:
                        problem = f"its processes failed {failures} times at step {furthest}, no further ({lost})"
                        raise UnlocError(f"{self.job.run}: {problem}; use --resume to continue") from None
                    logger.warning("a process was lost near step %d (%s): all start again", self.step, lost)

    def _attempt(self, storage: str, attempt: int, stop: StopSignal) -> dict[str, float]:
        on_gpu, backend = self.job.on_gpu, "cpu:gloo,cuda:nccl" if self.job.on_gpu else "gloo"
        trainer = TorchTrainer(
            _train,
            train_loop_config={"job": self.job, "link": self.link, "start": [self.start]},
            scaling_config=ScalingConfig(num_workers=self.workers, use_gpu=on_gpu, resources_per_worker={"CPU": 1}),
            torch_config=_Gathered(backend=backend, timeout_s=int(self.timeout) or 1),
            run_config=RunConfig(name=f"{self.name}-{attempt}", storage_path=storage),
        )
        # In the main thread Ray would handle Ctrl-C. The thread of a pool is a daemon: nothing waits for its end.
        with ThreadPool(1) as pool:
            result = pool.apply_async(trainer.fit)
            while True:
                result.wait(LOOK_SECONDS)
                is_over = result.ready()
                step, is_training = ray.get(self.link.look.remote(stop.requested))
                if step is not None and step[0] != self.step:
                    self.step = step[0]
                    self.on_step(*step)
                if is_over:
                    return result.get().return_value
                if stop.requested and not is_training:
                    raise StoppedError(f"{self.job.run}: stopped by SIGTERM before its processes trained; use --resume")


def catch_sigterm() -> None:
    """SIGTERM stops the training of this process after a step."""
    signal.signal(signal.SIGTERM, lambda *_: setattr(STOP, "requested", True))


class _Backend(_TorchBackend):
    """Ray's, in processes that a SIGTERM does not end at once."""

    def on_start(self, worker_group: object, backend_config: TorchConfig) -> None:
        worker_group.execute(catch_sigterm)
        super().on_start(worker_group, backend_config)


class _Gathered(TorchConfig):
    """The process group that `unloc.training.distributed` needs."""

    backend_cls = _Backend


def _train(config: dict) -> dict[str, float]:
    """Train in one of the processes; returns the last validation metrics."""
    job, link = config["job"], config["link"]
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(job.threads or max(1, cores // get_context().get_local_world_size()))
    is_main, last, is_over = process_rank() == 0, [None], threading.Event()

    def report() -> None:
        while not is_over.wait(LOOK_SECONDS):
            STOP.requested |= ray.get(link.report.remote(last[0]))

    def on_step(*step: object) -> None:
        last[0] = step

    def report_error(kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, UnlocError | OSError):
            ray.get(link.fail.remote(process_rank(), error))

    with ExitStack() as stack:
        stack.push(report_error)
        if is_main:
            path = job.run / "env.json"
            if not path.is_file() or path.read_text(encoding="utf-8") != job.env:
                problem = f"{os.uname().nodename}, which writes checkpoints, does not see this folder as prepared"
                advice = "give a folder on storage that all machines of the cluster share"
                raise InputError(f"--work-dir {job.run}: {problem}; {advice}")
            stack.enter_context(file_lock(job.run / WRITER, wait=True))
            stack.enter_context(logged())(job.run / "log.txt")
            reporter = threading.Thread(target=report, daemon=True)
            reporter.start()
            stack.callback(reporter.join)
            stack.callback(is_over.set)
        start = ray.get(config["start"][0]) if is_main else None
        trainer = job.rebuild(device=get_device() if job.on_gpu else "cpu", start=start)
        running = from_all(f"process {os.getpid()} on {os.uname().nodename}")
        logger.info("processes: %s", ", ".join(running))
        metrics = trainer.fit(on_step, wandb=job.wandb, stop=STOP)
    if is_main:
        ray.get(link.report.remote(last[0]))
    return metrics
