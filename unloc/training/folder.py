"""The run folder: who may write to it, what describes the run, and what a resumed run may change.

RUN/  recipe.yaml (resolved)  env.json (versions, revision, seed, data)  cache.json (fingerprint)  log.txt
      metrics.jsonl  tensorboard/  checkpoints/{last,best}/
"""

import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from unloc.config import Recipe
from unloc.errors import ConfigError, InputError
from unloc.files import LOCK, folder_lock, write_file
from unloc.recipes import dump_recipe, load_recipe

RECORDED = ("unloc", "torch", "open_clip_torch", "zarr", "numpy", "pandas", "decord", "av", "ray")


def require_folder(run: Path, recipe: Recipe, *, resume: bool, overwrite: bool, change_optim: bool) -> dict[str, list]:
    """Raise InputError unless the folder may become a run, be resumed or be deleted; nothing is touched.

    Returns which values of the recipe a resumed run changes: key to (before, now).
    """
    stated = run / "recipe.yaml"
    if resume and overwrite:
        raise InputError("--resume and --overwrite: one continues the run, the other deletes it; give one")
    if change_optim and not resume:
        raise InputError("--change-optim: belongs to --resume; a new run uses optim.* as given")
    if resume:
        if not stated.is_file():
            raise InputError(f"{run}: nothing to resume (no recipe.yaml here); start without --resume")
        return _changes(run, load_recipe(str(stated)), recipe, change_optim)
    if run.exists() and not run.is_dir():
        raise InputError(f"--work-dir {run}: is a file; expected a folder to write")
    # Only a run is written to or deleted: a mistyped --work-dir must not cost a folder of videos.
    names = [item.name for item in run.iterdir()] if run.exists() else []
    items = [name for name in names if name != LOCK and not name.endswith(".part")]
    if items and not {"recipe.yaml", "env.json"} & set(items):
        raise InputError(f"{run}: not empty and not a run folder (no recipe.yaml); nothing was changed, give a new one")
    # Without these it stopped before its first step: nothing is lost by starting again.
    if stated.exists() and {"metrics.jsonl", "checkpoints"} & set(items) and not overwrite:
        raise InputError(f"{run}: has a run already; --resume continues it, --overwrite deletes it")
    return {}


def _changes(run: Path, before: Recipe, now: Recipe, change_optim: bool) -> dict[str, list]:
    one, other = asdict(before), asdict(now)
    changes = {} if before.task == now.task else {"task": [before.task, now.task]}
    for section in [key for key, values in one.items() if isinstance(values, dict)]:
        pairs = {f"{section}.{key}": [value, other[section][key]] for key, value in one[section].items()}
        changes |= {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    changeable = {key for key in changes if key.startswith("optim.") and key != "optim.name"}
    allowed = {"train.checkpoint_minutes"} | (changeable if change_optim else set())
    refused = [key for key in changes if key not in allowed]
    if refused:
        shown = "; ".join("{}: run {}, now {}".format(key, *changes[key]) for key in refused)
        advice = "accept these with --change-optim" if changeable.issuperset(refused) else "start a new run with --init"
        raise ConfigError(f"{run}: was started with another recipe ({shown}); resume with the same values, or {advice}")
    return changes


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """The run folder for this process alone; one that stays empty is removed again."""
    is_new = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(run, "training into this run folder"):
            yield
    finally:
        if is_new and not any(run.iterdir()):
            run.rmdir()


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
    versions, revision = dict.fromkeys(RECORDED), None
    for name in RECORDED:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with suppress(FileNotFoundError):  # no git here
        revision = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    return {"versions": versions, **machine, "revision": revision, "seed": seed}
