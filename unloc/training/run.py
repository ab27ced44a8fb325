"""A run folder: what it holds, how it starts, how it goes on (interface: `Run folder`)."""

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import MemoryHandler
from pathlib import Path

import torch

from unloc.config import Recipe, dump_recipe
from unloc.data.cache import open_cache
from unloc.data.cache_writer import write_atomically
from unloc.data.schema import Manifest, load_manifest
from unloc.errors import ConfigError, FingerprintError, InputError, MissingError
from unloc.inference.device import described, resolve_device
from unloc.inference.load import load_model, require_same_cache
from unloc.tasks import task_named
from unloc.training.trainer import Progress, Trainer, require_task

logger = logging.getLogger(__name__)
FREE_PARTS = ("encoder.levels", "encoder.norm", "relevance_head", "displacement_head", "saliency_head", "logit_")
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

    `init` names a run or checkpoint whose weights are the start (`start_from`), as the official recipes start from a
    pretrained UnLoc.

    Raises InputError where the folder holds a run and neither resume nor overwrite is asked for, ConfigError where a
    resumed run was started with another recipe.
    """
    device_ = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    loaded, opened = load_manifest(manifest), open_cache(cache)
    require_data(loaded, recipe)
    require_cache_of(recipe, opened.fingerprint, cache)
    require_folder(run, recipe, resume=resume, overwrite=overwrite)
    with _logged() as log_to:
        if resume and (run / "checkpoints").is_dir():
            require_same_cache(_noted(run, "cache.json"), opened.fingerprint, cache)
        # All that can be wrong is found before anything is written, or deleted by overwrite.
        trainer = Trainer(recipe, loaded, opened, run, device=device_, on_step=on_step)
        require_full_batch(recipe, len(trainer.examples))
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


def require_full_batch(recipe: Recipe, num_examples: int) -> None:
    """Raise ConfigError where the training split does not fill one batch: the recipe's batches and rates would not be
    what it says.
    """
    if num_examples < recipe.train.batch_size:
        kind = "queries" if task_named(recipe.task).text_kind == "query" else "videos"
        raise ConfigError(
            f"train.batch_size: {recipe.train.batch_size}, but split {recipe.data.train_split!r} has {num_examples} "
            f"{kind} in the cache; set train.batch_size={num_examples} or less"
        )


def require_cache_of(recipe: Recipe, fingerprint: dict, cache: Path | str) -> None:
    """Refuse a cache whose tower or sampling is not what the recipe names, and a recipe that finetunes a tower: a cache
    holds the tokens of towers that do not train.

    Raises FingerprintError or ConfigError naming every key that differs, and the overrides with which the recipe names
    this cache; the run then keeps them, and its name says which towers do not train (`config.untrained_towers`).
    """
    towers, data = recipe.towers, recipe.data
    if towers.text_name != "clip":
        raise ConfigError(
            f"towers.text_name: got {towers.text_name}, but a cache holds CLIP's text tokens only; set it to clip, or "
            "take the row of CLIP"
        )
    named = [
        ("tower.name", "towers.name", towers.name),
        ("tower.pretrained", "towers.pretrained", towers.pretrained),
        ("tower.frame_token", "towers.frame_token", towers.frame_token if "tower.frame_token" in fingerprint else ""),
    ]
    if data.num_frames is not None or data.fps is not None:
        named += [
            ("sampling.num_frames", "data.num_frames", data.num_frames),
            ("sampling.fps", "data.fps", data.fps),
        ]
    held = [(key, option, value, fingerprint.get(key)) for key, option, value in named]
    other = [(key, option, value, found) for key, option, value, found in held if value not in ("", found)]
    trained = [tower for tower in ("image", "text") if getattr(towers, tower) == "finetune"]
    if not other and not trained:
        return
    differing = [f"{key}: recipe {value!r}, cache {found!r}" for key, _, value, found in other]
    differing += [
        f"towers.{tower}: recipe 'finetune', but a cache holds the tokens of frozen towers" for tower in trained
    ]
    options = [f"{option}={'null' if found is None else found}" for _, option, _, found in other]
    options += [f"towers.{tower}=cached" for tower in trained]
    raise (FingerprintError if other else ConfigError)(
        f"{cache}: not what recipe {recipe.name} names ({'; '.join(differing)}); extract such a cache, or train what "
        f"lies above these tokens by adding: {' '.join(options)}"
    )


def start_from(trainer: Trainer, init: Path) -> None:
    """Copy the weights of another run, and say which were taken.

    Projections, positions and fusion layers must all fit. Pyramid levels and heads may be others where the run was of
    another task or, with fusion none, of other classes; those that do not fit start fresh. Raises InputError naming
    what should fit and does not; FingerprintError for tokens of another tower (sampled as they may be).
    """
    loaded = load_model(init)
    sampled = {key: value for key, value in trainer.info.fingerprint.items() if key.startswith("sampling.")}
    require_same_cache(loaded.info.fingerprint | sampled, trainer.info.fingerprint, init)
    own, other = trainer.model.state_dict(), loaded.model.state_dict()
    taken = {key: value for key, value in other.items() if key in own and own[key].shape == value.shape}
    if trainer.recipe.model.fusion == "none" and loaded.info.classes != trainer.info.classes:  # outputs are the classes
        taken = {key: value for key, value in taken.items() if "_head." not in key or ".linear." not in key}
    unfit = [f"{key} {_shapes(own, other, key)}" for key in own | other if key not in taken]
    is_free = loaded.info.recipe.task != trainer.recipe.task or trainer.recipe.model.fusion == "none"
    wrong = [words for words in unfit if not (is_free and words.startswith(FREE_PARTS))]
    if wrong:
        raise InputError(
            f"--init {init}: {len(wrong)} tensors do not fit this recipe's model (its shape, --init's): "
            f"{_shortened(wrong)}; give the recipe the sizes of the run (its recipe.yaml), or another --init"
        )
    trainer.start_from(taken)
    told = f"init from {init}: {len(taken)} of {len(own)} tensors taken"
    if unfit:
        logger.warning("%s; fresh or left out (this model's shape, --init's): %s", told, _shortened(unfit, most=40))
    else:
        logger.info(told)


def _shapes(own: dict[str, torch.Tensor], other: dict[str, torch.Tensor], key: str) -> str:
    one, two = ("x".join(map(str, state[key].shape)) or "scalar" if key in state else "none" for state in (own, other))
    return f"({one}, {two})"


def _shortened(items: list[str], most: int = 8) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


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
