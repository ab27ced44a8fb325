"""A run folder: what it holds, how it starts, how it goes on (interface: `Run folder`)."""

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import MemoryHandler
from pathlib import Path

import torch

from unloc.config import Recipe, dump_recipe
from unloc.data.cache import open_cache
from unloc.data.cache_writer import write_atomically
from unloc.data.schema import Manifest, load_manifest
from unloc.errors import ConfigError, InputError, MissingError
from unloc.inference.device import described, resolve_device
from unloc.inference.load import load_model, require_same_cache
from unloc.training.trainer import Progress, Trainer, require_task

logger = logging.getLogger(__name__)
RECORDED = ("unloc", "torch", "open_clip_torch", "zarr", "numpy", "pandas", "decord", "av", "ray")


def fit_recipe(
    recipe: Recipe,
    manifest: Path,
    cache: Path | str,
    run: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    threads: int = 0,
    init: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> dict[str, float]:
    """Train a recipe into a run folder; returns the last validation metrics.

    `init` names a run or checkpoint whose weights are the start where name and shape agree (the heads of another task
    may differ), as the official recipes start from a pretrained UnLoc.

    Raises InputError where the folder holds a run and neither resume nor overwrite is asked for, ConfigError where a
    resumed run was started with another recipe.
    """
    device_ = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    loaded, opened = load_manifest(manifest), open_cache(cache)
    require_data(loaded, recipe)
    recipe, note = on_cached_tokens(recipe, opened.fingerprint)
    require_folder(run, recipe, resume=resume, overwrite=overwrite)
    with _logged() as log_to:
        if note:
            logger.warning(note)
        if resume and (run / "checkpoints").is_dir():
            require_same_cache(_noted(run, "cache.json"), opened.fingerprint, cache)
        # All that can be wrong is found before anything is written, or deleted by overwrite.
        trainer = Trainer(recipe, loaded, opened, run, device=device_, on_step=on_step)
        if not (resume and trainer.resume()):
            init = init or _noted_init(run, resume)
            if init is not None:
                start_from(trainer, init)
            make_folder(run, recipe, opened.fingerprint, init, device_, overwrite=overwrite)
        log_to(run / "log.txt")
        return trainer.fit()


def require_data(manifest: Manifest, recipe: Recipe) -> None:
    """Raise InputError where the manifest serves another task, MissingError where it lacks a split of the recipe."""
    require_task(manifest, recipe.task)
    for key in ("train_split", "val_split"):
        split = getattr(recipe.data, key)
        if split and split not in manifest.splits:
            known = ", ".join(manifest.splits)
            raise MissingError(f"data.{key}: split {split!r} is not in manifest {manifest.name!r}; it has: {known}")


def on_cached_tokens(recipe: Recipe, fingerprint: dict) -> tuple[Recipe, str]:
    """The recipe as a run on a cache can follow it, and a sentence on what it thereby does not (or nothing).

    A cache holds tokens of frozen towers: no tower trains, and the image tower is the one that made the cache. The run
    keeps the recipe returned. Raises ConfigError for a text tower whose tokens no cache holds.
    """
    towers = recipe.towers
    if towers.text not in ("clip", "none"):
        raise ConfigError(f"towers.text: got {towers.text}, a cache holds CLIP's text tokens only; set it to clip")
    name = fingerprint.get("tower.name", "")
    held = {"train_image": False, "train_text": False, "image": name if towers.image else ""}
    if fingerprint.get("tower.frame_token") in ("cls", "gap"):
        held["frame_token"] = fingerprint["tower.frame_token"]
    changed = {key: value for key, value in held.items() if value != getattr(towers, key)}
    if not changed:
        return recipe, ""
    told = ", ".join(f"towers.{key} {value!r} (recipe: {getattr(towers, key)!r})" for key, value in changed.items())
    return replace(recipe, towers=replace(towers, **changed)), f"trains on the tokens of a cache: {told}"


def start_from(trainer: Trainer, init: Path) -> None:
    """Copy the weights of another run where name and shape agree. Raises InputError where none do.

    Its tokens may have been more or fewer a second, but are of the same tower. Raises FingerprintError otherwise.
    """
    loaded = load_model(init)
    sampled = {key: value for key, value in trainer.info.fingerprint.items() if key.startswith("sampling.")}
    require_same_cache(loaded.info.fingerprint | sampled, trainer.info.fingerprint, init)
    own, other = trainer.model.state_dict(), loaded.model.state_dict()
    taken = {key: value for key, value in other.items() if key in own and own[key].shape == value.shape}
    if not taken:
        raise InputError(f"--init {init}: none of its {len(other)} tensors fits this recipe's model; use its widths")
    trainer.start_from(taken)
    logger.info("init from %s: %d of %d tensors taken", init, len(taken), len(own))


def require_folder(run: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Raise InputError unless the folder may become a run, be gone on with or be deleted; nothing is touched."""
    stated = run / "recipe.yaml"
    if resume and overwrite:
        raise InputError("--resume and --overwrite: one goes on with the run, the other deletes it; give one")
    if resume:
        if not stated.is_file():
            raise InputError(f"{run}: nothing to resume (no recipe.yaml here); start without --resume")
        if stated.read_text(encoding="utf-8") != dump_recipe(recipe):
            raise ConfigError(
                f"{run}: was started with another recipe (see recipe.yaml); resume with the same overrides"
            )
        return
    if run.exists() and not run.is_dir():
        raise InputError(f"--work-dir {run}: is a file; expected a folder to write")
    # Only what is a run is written to or deleted: a mistyped --work-dir must not cost a folder of videos.
    items = [item.name for item in run.iterdir() if not item.name.endswith(".part")] if run.exists() else []
    if items and not {"recipe.yaml", "env.json"} & set(items):
        raise InputError(
            f"{run}: not empty and not a run folder (no recipe.yaml); nothing was touched, give a new folder"
        )
    # Without these it stopped before its first step: nothing is lost by starting again.
    if stated.exists() and {"metrics.jsonl", "checkpoints"} & set(items) and not overwrite:
        raise InputError(f"{run}: holds a run already; --resume goes on with it, --overwrite deletes it")


def make_folder(
    run: Path, recipe: Recipe, fingerprint: dict, init: Path | None, device: torch.device, *, overwrite: bool
) -> None:
    """The folder with what describes the run; what was there goes, by overwrite, its recipe last."""
    if run.exists() and overwrite:
        for item in sorted(run.iterdir(), key=lambda item: item.name == "recipe.yaml"):
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
    run.mkdir(parents=True, exist_ok=True)
    used = described(device, recipe.train.precision) | {"threads": torch.get_num_threads()}
    noted = environment(recipe.train.seed) | used | {"init": str(init) if init is not None else None}
    write_atomically(run / "env.json", json.dumps(noted, indent=1))
    write_atomically(run / "cache.json", json.dumps(fingerprint, indent=1))
    write_atomically(run / "recipe.yaml", dump_recipe(recipe))


def _noted(run: Path, name: str) -> dict:
    """What `make_folder` wrote. Raises InputError where it is gone or damaged."""
    try:
        return json.loads((run / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{run / name}: gone or damaged; start again with --overwrite") from None


def _noted_init(run: Path, resume: bool) -> Path | None:
    """Where a run began that was killed before its first checkpoint."""
    stated = _noted(run, "env.json").get("init") if resume else None
    return Path(stated) if stated else None


def environment(seed: int) -> dict:
    """Versions, revision and seed of this run."""
    return {
        "versions": {name: _version(name) for name in RECORDED},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "revision": _revision(),
        "seed": seed,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine: an installed wheel has no revision to tell
        return None
    return done.stdout.strip() or None


@contextmanager
def _logged() -> Iterator[Callable[[Path], None]]:
    """Keep what unloc logs; gives what names the file, which has it all from then on."""
    held, root, files = MemoryHandler(1000, logging.CRITICAL + 1), logging.getLogger("unloc"), []

    def log_to(path: Path) -> None:
        files.append(logging.FileHandler(path, encoding="utf-8"))
        files[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        held.setTarget(files[0])
        held.flush()
        root.removeHandler(held)
        root.addHandler(files[0])

    root.setLevel(logging.INFO)
    root.addHandler(held)
    try:
        yield log_to
    finally:
        for handler in (held, *files):
            root.removeHandler(handler)
            handler.close()
