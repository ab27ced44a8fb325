"""A run folder: what it holds, how it starts, how it goes on (interface: `Run folder`)."""

import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import MemoryHandler
from pathlib import Path

import torch

from unloc.annotations.schema import Manifest, load_manifest, manifest_rows
from unloc.annotations.video_lists import restricted
from unloc.cache.reading import Cache, open_cache
from unloc.config import Recipe, dump_recipe, load_recipe
from unloc.errors import ConfigError, FingerprintError, InputError, MissingError, UnlocError
from unloc.evaluation.evaluator import require_annotations, require_seconds
from unloc.files import LOCK, disk_full_errors, folder_lock, write_file
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
    change_optim: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> dict[str, float]:
    """Train a recipe into a run folder; returns the last validation metrics.

    `init` names a run or checkpoint whose weights are the start (`start_from`), as the official recipes start from a
    pretrained UnLoc. `change_optim` lets a resumed run go on with other values of `optim` than it was started with;
    env.json records from which step on.

    Raises InputError where the folder holds a run and neither resume nor overwrite is asked for, or a resumed run was
    started on other data; ConfigError where it was started with another recipe; CacheError where another process
    trains into the folder, or the disk is full.
    """
    device_ = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    loaded, opened = load_manifest(manifest), open_cache(cache)
    require_data(loaded, opened, recipe)
    require_cache_of(recipe, opened.fingerprint, cache)
    asked = {"resume": resume, "overwrite": overwrite, "change_optim": change_optim}
    require_folder(run, recipe, **asked)
    with disk_full_errors(run), _held(run), _logged() as log_to:
        changes = require_folder(run, recipe, **asked)  # again, now that nobody else writes here
        if opened.note:
            logger.warning(opened.note)
        if resume and (run / "checkpoints").is_dir():
            require_same_cache(_noted(run, "cache.json"), opened.fingerprint, cache)
        # All that can be wrong is found before anything is written, or deleted by overwrite.
        trainer = Trainer(recipe, loaded, opened, run, device=device_, on_step=on_step)
        require_full_batch(recipe, len(trainer.examples))
        used = described(device_, recipe.train.precision) | {"threads": torch.get_num_threads()}
        noted = environment(recipe.train.seed) | used | {"data": data_hashes(trainer), "changes": []}
        before = _noted(run, "env.json") if resume else {}
        if resume:
            require_same_data(run, before, noted)
            _tell_differences(before, used)
            init = init or (Path(before["init"]) if before.get("init") else None)
        if resume and trainer.resume():
            if changes:
                noted = before | {"changes": _with_change(before, trainer.step, changes)}
                write_file(run / "env.json", json.dumps(noted, indent=1))
                write_file(run / "recipe.yaml", dump_recipe(recipe))
        else:
            if init is not None:
                start_from(trainer, init)
            noted |= {"init": str(init) if init is not None else None, "changes": _with_change(before, 0, changes)}
            make_folder(run, recipe, opened.fingerprint, noted, overwrite=overwrite)
        log_to(run / "log.txt")
        try:
            return trainer.fit()
        except UnlocError as error:
            logger.info("ended: %s", error)
            raise


def data_hashes(trainer: Trainer) -> dict[str, str]:
    """sha256 of the annotations that a run trains and validates on, and of the cached videos among them."""
    parts = [part for part in (trainer.train_manifest, trainer.val_manifest) if part is not None]
    rows = [[part.classes, list(manifest_rows(part))] for part in parts]
    ids = [video_id for part in parts for video_id in part.videos["video_id"] if video_id in trainer.cache]
    videos = [(video_id, trainer.cache.row(video_id).get("tokens_sha256")) for video_id in ids]
    return {
        key: hashlib.sha256(json.dumps(values).encode()).hexdigest()
        for key, values in (("manifest_sha256", rows), ("videos_sha256", videos))
    }


def require_same_data(run: Path, before: dict, now: dict) -> None:
    """Raise InputError where a resumed run was started on other annotations or videos."""
    words = {"manifest_sha256": "annotations (--manifest)", "videos_sha256": "cached videos or tokens (--cache)"}
    differing = [
        words[key] for key, value in before.get("data", {}).items() if key in words and now["data"][key] != value
    ]
    if differing:
        raise InputError(
            f"{run}: was started on other {' and '.join(differing)}; resume on the same, or start a new run on these "
            f"with --init {run}"
        )


def _tell_differences(before: dict, used: dict) -> None:
    """Another device, precision or number of threads may change the last bits of what follows."""
    for key, value in used.items():
        if key in before and before[key] != value:
            logger.warning("%s: the run was started with %s, now %s: its bits may differ", key, before[key], value)


def _with_change(noted: dict, step: int, changes: dict[str, list]) -> list[dict]:
    """The changes of recipe that a run has on record, and this one: from which step on, each key before and after."""
    before, change = noted.get("changes", []), {"step": step, "changed": changes}
    return before if not changes or change in before else [*before, change]


@contextmanager
def _held(run: Path) -> Iterator[None]:
    """The run folder for this process alone; one that stays empty is removed again."""
    is_new = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(run, "training into this run folder"):
            yield
    finally:
        if is_new and not any(run.iterdir()):
            run.rmdir()


def require_data(manifest: Manifest, cache: Cache, recipe: Recipe) -> None:
    """Raise InputError where the manifest serves another task, or a split has nothing for it in its cached videos or
    not in seconds; MissingError where it lacks a split of the recipe.
    """
    require_task(manifest, recipe.task)
    for key, way_out in (
        ("train_split", "data.train_split=NAME trains on another"),
        ("val_split", "data.val_split='' trains without validation"),
    ):
        split = getattr(recipe.data, key)
        if split and split not in manifest.splits:
            known = ", ".join(manifest.splits)
            raise MissingError(f"data.{key}: split {split!r} is not in manifest {manifest.name!r}; it has: {known}")
        if split:
            selected = restricted(manifest.select(split), lambda video_id: video_id in cache)
            if len(selected.videos):  # with none, the examples name those that are missing
                require_annotations(recipe.task, selected, split, way_out)
                require_seconds(recipe.task, selected, split, cache.durations_of(selected.videos["video_id"]))


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
    kind = towers.frame_token if "tower.frame_token" in fingerprint else ""
    named = [  # key of the fingerprint, override and option of extract that name it, the recipe's value
        ("tower.name", "towers.name", "--tower", towers.name),
        ("tower.pretrained", "towers.pretrained", "--pretrained", towers.pretrained),
        ("tower.frame_token", "towers.frame_token", "--frame-token", kind),
    ]
    if data.num_frames is not None or data.fps is not None:
        named.append(("sampling.num_frames", "data.num_frames", "--frames", data.num_frames))
        named.append(("sampling.fps", "data.fps", "--fps", data.fps))
    differing, extracted, added = [], [], []
    for key, override, option, value in named:
        held = fingerprint.get(key)
        if value not in ("", held):
            differing.append(f"{key}: recipe {value!r}, cache {held!r}")
            extracted += [] if value is None else [f"{option} {value}"]
            added.append(shlex.quote(f"{override}={'null' if held is None else held}"))
    is_other = bool(differing)
    for tower in ("image", "text"):
        if getattr(towers, tower) == "finetune":
            differing.append(f"towers.{tower}: recipe 'finetune', but a cache holds the tokens of frozen towers")
            added.append(f"towers.{tower}=cached")
    if differing:
        way = f"extract a cache with {' '.join(extracted)}, or " if extracted else ""
        raise (FingerprintError if is_other else ConfigError)(
            f"{cache}: not what recipe {recipe.name} names ({'; '.join(differing)}); {way}train what lies above these "
            f"tokens by adding: {' '.join(added)}"
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


def require_folder(run: Path, recipe: Recipe, *, resume: bool, overwrite: bool, change_optim: bool) -> dict[str, list]:
    """Raise InputError unless the folder may become a run, be gone on with or be deleted; nothing is touched.

    Returns which values of the recipe a resumed run changes: key to (before, now).
    """
    stated = run / "recipe.yaml"
    if resume and overwrite:
        raise InputError("--resume and --overwrite: one goes on with the run, the other deletes it; give one")
    if change_optim and not resume:
        raise InputError("--change-optim: belongs to --resume; a new run takes optim.* as it is given")
    if resume:
        if not stated.is_file():
            raise InputError(f"{run}: nothing to resume (no recipe.yaml here); start without --resume")
        return _changes(run, load_recipe(str(stated)), recipe, change_optim)
    if run.exists() and not run.is_dir():
        raise InputError(f"--work-dir {run}: is a file; expected a folder to write")
    # Only what is a run is written to or deleted: a mistyped --work-dir must not cost a folder of videos.
    names = [item.name for item in run.iterdir()] if run.exists() else []
    items = [name for name in names if name != LOCK and not name.endswith(".part")]
    if items and not {"recipe.yaml", "env.json"} & set(items):
        raise InputError(
            f"{run}: not empty and not a run folder (no recipe.yaml); nothing was touched, give a new folder"
        )
    # Without these it stopped before its first step: nothing is lost by starting again.
    if stated.exists() and {"metrics.jsonl", "checkpoints"} & set(items) and not overwrite:
        raise InputError(f"{run}: holds a run already; --resume goes on with it, --overwrite deletes it")
    return {}


def _changes(run: Path, before: Recipe, now: Recipe, change_optim: bool) -> dict[str, list]:
    one, other = (_flat(asdict(recipe)) for recipe in (before, now))
    changes = {key: [one[key], other[key]] for key in one if key != "name" and one[key] != other[key]}
    refused = [
        key
        for key in changes
        if key != "train.checkpoint_minutes" and not (change_optim and key.startswith("optim.") and key != "optim.name")
    ]
    if refused:
        words = "; ".join(f"{key}: run {one[key]}, now {other[key]}" for key in refused)
        changeable = all(key.startswith("optim.") and key != "optim.name" for key in refused)
        way_out = "or take these from here on with --change-optim" if changeable else "or start a new run with --init"
        raise ConfigError(f"{run}: was started with another recipe ({words}); resume with the same values, {way_out}")
    return changes


def _flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Nested dictionaries with dotted keys."""
    found = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def make_folder(run: Path, recipe: Recipe, fingerprint: dict, noted: dict, *, overwrite: bool) -> None:
    """The folder with what describes the run; what was there goes, by overwrite, its recipe last."""
    if overwrite:
        for item in sorted(run.iterdir(), key=lambda item: item.name == "recipe.yaml"):
            if item.name != LOCK:
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
    write_file(run / "env.json", json.dumps(noted, indent=1))
    write_file(run / "cache.json", json.dumps(fingerprint, indent=1))
    write_file(run / "recipe.yaml", dump_recipe(recipe))


def _noted(run: Path, name: str) -> dict:
    """What `make_folder` wrote. Raises InputError where it is gone or damaged."""
    try:
        return json.loads((run / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{run / name}: gone or damaged; start again with --overwrite") from None


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


class _LogFile(logging.FileHandler):
    """A log whose disk errors are raised: logging itself prints their traceback and goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Raise the error at hand."""
        raise


@contextmanager
def _logged() -> Iterator[Callable[[Path], None]]:
    """Keep what unloc logs; gives what names the file, which has it all from then on."""
    held, root, files = MemoryHandler(1000, logging.CRITICAL + 1), logging.getLogger("unloc"), []

    def log_to(path: Path) -> None:
        files.append(_LogFile(path, encoding="utf-8"))
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
