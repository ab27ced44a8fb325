"""The run folder: who may write to it, what a resumed run may change, and its files.

    RUN/  recipe.yaml (resolved)  env.json (versions, revision, seed, data)  cache.json (fingerprint)  log.txt
          metrics.jsonl  curves.png  tensorboard/  wandb/
          checkpoints/step-00000120/  model.safetensors  checkpoint.json  state.pt
          checkpoints/last, best      links to two of them; best has calibration.json (`unloc.inference.existence`)

A checkpoint is written under a temporary name, flushed and renamed; `best` and then `last` are links, replaced in one
step each, so a kill at any moment leaves both at whole checkpoints. A kill between the two leaves `best` ahead:
resuming continues from there. Checkpoints without a link are deleted.
"""

import io
import json
import logging
import os
import pickle
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from logging.handlers import MemoryHandler
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from unloc.config import Recipe
from unloc.errors import ConfigError, InputError, one_line
from unloc.files import LOCK, commit_folder, folder_lock, replacing, write_file
from unloc.inference.load import CheckpointInfo
from unloc.recipes import dump_recipe, load_recipe
from unloc.training.curves import read_rows, training_curves

logger = logging.getLogger(__name__)
LINKS = ("best", "last")  # in this order: `last` completes a step

WriteMetrics = Callable[[str, int, dict[str, float]], None]
"""Called with a kind (train, val or speed), a step and its values; those of `speed` alone depend on time."""


@contextmanager
def locked_run(
    run: Path, recipe: Recipe, *, resume: bool, overwrite: bool, change_optim: bool
) -> Iterator[dict[str, list]]:
    """The run folder for this process alone; folders that stay empty are removed again. Yields which values of the
    recipe a resumed run changes: key to (before, now). Raises InputError, before anything is touched, unless the folder
    may become a run, be resumed or be deleted.
    """
    is_new, stated = not run.exists(), run / "recipe.yaml"
    if resume and overwrite:
        raise InputError("--resume and --overwrite: one continues the run, the other deletes it; give one")
    if change_optim and not resume:
        raise InputError("--change-optim: belongs to --resume; a new run uses optim.* as given")
    if resume and not stated.is_file():
        raise InputError(f"{run}: nothing to resume (no recipe.yaml here); start without --resume")
    if not is_new and not run.is_dir():
        raise InputError(f"--work-dir {run}: is a file; expected a folder to write")
    # Only a run is written to or deleted: a mistyped --work-dir must not cost a folder of videos.
    names = set() if is_new else {item.name for item in run.iterdir()}
    items = {name for name in names if name != LOCK and not name.endswith(".part")}
    if items and not {"recipe.yaml", "env.json"} & items:
        raise InputError(f"{run}: not empty and not a run folder (no recipe.yaml); nothing was changed, give a new one")
    # Without these it stopped before its first step: nothing is lost by starting again.
    if stated.exists() and {"metrics.jsonl", "checkpoints"} & items and not (overwrite or resume):
        raise InputError(f"{run}: has a run already; --resume continues it, --overwrite deletes it")
    changes = _changes(run, load_recipe(str(stated)), recipe, change_optim) if resume else {}
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(run, "training into this run folder"):
            yield changes
    finally:
        with suppress(OSError):  # the first that is not empty, with all above it
            for folder in made:
                folder.rmdir()


def _leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        yield from _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


def _changes(run: Path, before: Recipe, now: Recipe, change_optim: bool) -> dict[str, list]:
    one, other = (dict(_leaves(asdict(replace(recipe, name="")))) for recipe in (before, now))
    changes = {key: [one.get(key), other.get(key)] for key in one | other if one.get(key) != other.get(key)}
    changeable = {key for key in changes if key.startswith("optim.") and key != "optim.name"}
    allowed = {f"train.{key}" for key in ("checkpoint_minutes", "log_every", "accumulate", "compile")}
    allowed |= changeable if change_optim else set()
    refused = [key for key in changes if key not in allowed]
    if refused:
        shown = "; ".join("{}: run {}, now {}".format(key, *changes[key]) for key in refused)
        advice = "accept these with --change-optim" if changeable.issuperset(refused) else "start a new run with --init"
        raise ConfigError(f"{run}: was started with another recipe ({shown}); resume with the same values, or {advice}")
    return changes


def make_folder(run: Path, recipe: Recipe, fingerprint: dict, env: dict, *, overwrite: bool) -> None:
    """Write what describes the run. With overwrite the folder's old content is deleted, its recipe last."""
    if overwrite:
        for item in sorted(run.iterdir(), key=lambda item: item.name == "recipe.yaml"):
            if item.name != LOCK:
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
    write_file(run / "env.json", json.dumps(env, indent=1))
    write_file(run / "cache.json", json.dumps(fingerprint, indent=1))
    write_file(run / "recipe.yaml", dump_recipe(recipe))


def read_json(path: Path) -> dict:
    """What `make_folder` wrote. Raises InputError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path}: missing or damaged; start again with --overwrite") from None


def environment(seed: int) -> dict:
    """Versions, git revision and seed of this run."""
    versions = dict.fromkeys(("unloc", "torch", "open_clip_torch", "zarr", "numpy", "pandas", "decord", "av", "ray"))
    for name in versions:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    revision, command = None, ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with suppress(FileNotFoundError):  # no git here
        revision = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    return {"versions": versions, **machine, "revision": revision, "seed": seed}


def save_checkpoint(run: Path, info: CheckpointInfo, weights: dict[str, Tensor], state: dict, *, is_best: bool) -> None:
    """Write a checkpoint and point `last` at it, and `best`. `weights` predict, `state` resumes."""
    links = run / "checkpoints"
    folder, description = links / f"step-{info.step:08d}", json.dumps(info.to_dict(), indent=1)
    links.mkdir(parents=True, exist_ok=True)
    if folder.name in _delete_unlinked(links):  # it was saved before its validation: only the metrics are new
        write_file(folder / "checkpoint.json", description)
    else:
        temporary = folder.with_name(f".{folder.name}.part")
        try:
            temporary.mkdir()
            on_cpu = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
            # As bytes: the libraries' own writers hide which error of the disk it was.
            (temporary / "model.safetensors").write_bytes(save(on_cpu))
            buffer = io.BytesIO()
            torch.save(state, buffer)
            (temporary / "state.pt").write_bytes(buffer.getbuffer())
            (temporary / "checkpoint.json").write_text(description, encoding="utf-8")
            commit_folder(temporary, folder)
        except OSError:
            _delete_unlinked(links)  # half a checkpoint may be what fills the disk
            raise
    for name in LINKS if is_best else LINKS[1:]:
        _point(links / name, folder.name)
    _delete_unlinked(links)


def _point(link: Path, target: str) -> None:
    with replacing(link) as temporary:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=True)


def _delete_unlinked(links: Path) -> set[str]:
    """Delete checkpoints without a link, which a killed run leaves; returns those with one."""
    linked = {link.readlink().name for link in links.iterdir() if link.is_symlink()}
    for folder in [*links.glob("step-*"), *links.glob(".step-*")]:
        if folder.name not in linked:
            shutil.rmtree(folder)
    return linked


def load_state(run: Path) -> dict | None:
    """The training state of the last checkpoint, None before the first. Raises InputError where it is damaged."""
    links = run / "checkpoints"
    steps = {name: (links / name).readlink().name for name in LINKS if (links / name).is_symlink()}
    if not steps:
        return None
    if steps.get("last", "") < max(steps.values()):  # killed between the two links
        _point(links / "last", steps["best"])
    path = links / "last" / "state.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); start again with --overwrite") from None


def draw_curves(run: Path) -> None:
    """Write RUN/curves.png from the rows of metrics.jsonl."""
    from matplotlib.figure import Figure  # here: it takes 0.7 s, which each process of a run would wait for

    figure = Figure(figsize=(15, 4), dpi=80, layout="constrained")
    curves = training_curves(read_rows(run))
    for axes, (title, lines) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        for key, (steps, values) in lines.items():
            values = [float("nan") if value is None else value for value in values]
            axes.plot(steps, values, label=key, marker="." if len(steps) < 50 else "")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if lines:
            axes.legend(fontsize="small")
    with replacing(run / "curves.png", sync=False) as part:
        figure.savefig(part, format="png")


def require_wandb() -> None:
    """Raise InputError where Weights & Biases is not installed."""
    if find_spec("wandb") is None:
        raise InputError("--wandb: needs wandb, which is not installed: pip install 'unloc[wandb]'")


@contextmanager
def wandb_log(run: Path, recipe: Recipe, project: str) -> Iterator[WriteMetrics]:
    """Write rows to a run of Weights & Biases, the same after each resume. Raises InputError where it cannot start."""
    import wandb

    name = run / "wandb_id"
    if not name.is_file():
        write_file(name, secrets.token_hex(8))
    options = {"project": project, "name": run.name, "config": asdict(recipe), "dir": str(run), "resume": "allow"}
    try:
        logged_run = wandb.init(**options, id=name.read_text(encoding="utf-8"))
    except wandb.Error as error:
        raise InputError(f"--wandb {project}: {one_line(error)}; WANDB_MODE=offline works without an account") from None
    logged_run.define_metric("*", step_metric="step")  # a resumed run does some of its steps again

    def write(kind: str, at_step: int, values: dict[str, float]) -> None:
        logged_run.log({"step": at_step} | {f"{kind}/{key}": value for key, value in values.items()})

    try:
        yield write
    finally:
        logged_run.finish()


@contextmanager
def metrics_log(
    run: Path, recipe: Recipe, step: int, validated: int, wandb: str | None = None
) -> Iterator[WriteMetrics]:
    """Write rows to metrics.jsonl, and as `kind/name` to TensorBoard where it is installed (extra `track`, written in
    this thread: its own writer hides a full disk in another one) and to a project of Weights & Biases. Rows after
    `step` and `validated`, which a killed run left, are removed.
    """
    path, last = run / "metrics.jsonl", {"train": step, "speed": step, "val": validated}
    if path.is_file():
        done = [row for row in read_rows(run) if row["step"] <= last[row["kind"]]]
        write_file(path, "".join(json.dumps(row) + "\n" for row in done))
    with ExitStack() as stack:
        rows = stack.enter_context(path.open("a", encoding="utf-8"))
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            logger.info("tensorboard is not installed (extra `track`): metrics go to metrics.jsonl only")
            events = None
        else:
            (run / "tensorboard").mkdir(exist_ok=True)
            file = run / "tensorboard" / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
            events = RecordWriter(stack.enter_context(file.open("wb")))

        def write_event(**fields: object) -> None:
            if events is not None:
                events.write(Event(wall_time=time.time(), **fields).SerializeToString())
                events.flush()

        def write(kind: str, at_step: int, values: dict[str, float]) -> None:
            """Write one row everywhere."""
            rows.write(json.dumps({"kind": kind, "step": at_step, **values}) + "\n")
            rows.flush()
            scalars = [{"tag": f"{kind}/{key}", "simple_value": value} for key, value in values.items()]
            write_event(step=at_step, summary={"value": scalars})
            if wandb is not None:
                write_to_wandb(kind, at_step, values)

        if events is not None:
            write_event(file_version="brain.Event:2")
            # TensorBoard drops what it has of later steps: they are done again.
            write_event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        if wandb is not None:
            write_to_wandb = stack.enter_context(wandb_log(run, recipe, wandb))
        yield write


class _LogFile(logging.FileHandler):
    """A log whose disk errors are raised; logging itself only prints their traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Raise the current error."""
        raise


@contextmanager
def logged() -> Iterator[Callable[[Path], None]]:
    """Keep unloc's log records until the given callback names their file; later ones go there directly."""
    buffer, root = MemoryHandler(1000, logging.CRITICAL + 1, flushOnClose=False), logging.getLogger("unloc")
    with ExitStack() as stack:

        def log_to(path: Path) -> None:
            """Write the records so far, and later ones, into a file."""
            file = _LogFile(path, encoding="utf-8")
            stack.callback(file.close)
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            buffer.setTarget(file)
            buffer.flushLevel = logging.NOTSET
            buffer.flush()

        root.setLevel(logging.INFO)
        root.addHandler(buffer)
        stack.callback(root.removeHandler, buffer)
        yield log_to
