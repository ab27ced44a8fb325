"""`unloc package`: a model folder that travels, without the run, its cache and this machine.

    FOLDER/  checkpoint.json (recipe, classes, tower, preprocessing, sampling)  model.safetensors  calibration.json
             README.md (`unloc.training.card`)  tower/ (if asked for: what its towers were before this training)

It is a checkpoint folder without the state that resumes a training: whatever loads a checkpoint loads it.
"""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

from unloc.errors import FingerprintError, InputError
from unloc.evaluation.reopening import run_folder
from unloc.files import commit_folder, disk_full_errors
from unloc.inference.existence import CALIBRATION
from unloc.inference.load import LoadedModel, load_model, local_run, read_info
from unloc.inference.run_tower import run_of_tower
from unloc.inference.video_model import load
from unloc.model.clip import SHIPPED, pretrained_clip, save_clip
from unloc.training.card import card

logger = logging.getLogger(__name__)
PARTS = {"README.md", "checkpoint.json", "model.safetensors", CALIBRATION, "tower"}


def package(
    run: Path | str, out: Path, *, with_tower: bool = False, pretrained: str | None = None, overwrite: bool = False
) -> None:
    """Write the model folder of a run (its best checkpoint, else its last) or checkpoint, whole or not at all.

    `with_tower` adds the weights that its towers had before this training, unless unloc ships them: of the recipe's
    file, `pretrained`, or the run that made the cache. `overwrite` replaces a model folder. What a user should know is
    logged. Raises InputError where `out` may not be written; as `load_model`, and with the tower as
    `unloc.inference.video_model.load`.
    """
    run = local_run(run)
    loaded, home = load_model(run), run_folder(run)
    if pretrained and not with_tower:
        raise InputError("--pretrained: belongs to --with-tower, which puts these weights into the folder")
    if (loaded.folder / "README.md").is_file():
        raise InputError(f"{run}: is a model folder already; copy it as it is")
    if out.resolve().is_relative_to(home.resolve()):
        raise InputError(f"--out {out}: is in the run itself; name a folder outside of it")
    found = {one.name for one in out.iterdir()} if out.is_dir() else {"a file"} if out.exists() else set()
    if found and not (overwrite and {"README.md", "checkpoint.json"} <= found <= PARTS):
        advice = "has more in it than a model folder" if overwrite else "exists; --overwrite replaces a model folder"
        raise InputError(f"--out {out}: {advice}; name another folder")
    out = out.resolve()
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with disk_full_errors(out):
        try:
            _write_model(loaded, part)
            if with_tower:
                weights = pretrained or loaded.tower_weights
                _write_tower(loaded, part, weights, run)
                try:
                    load(part, device="cpu")  # as another machine does
                except FingerprintError:
                    raise FingerprintError(
                        f"--pretrained {weights}: not the weights of its training; give those"
                    ) from None
            text, notes = card(read_info(part), part, home, out.name)
            (part / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")
            commit_folder(part, out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for note in notes:
        logger.warning(note)


def _write_model(loaded: LoadedModel, folder: Path) -> None:
    """The checkpoint without paths of this machine."""
    info = read_info(loaded.folder)
    towers = replace(info.recipe.towers, pretrained=Path(info.recipe.towers.pretrained).name)
    info = replace(info, recipe=replace(info.recipe, towers=towers))
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(json.dumps(info.to_dict(), indent=1), encoding="utf-8")
    for name in ("model.safetensors", CALIBRATION):
        if (loaded.folder / name).is_file():
            shutil.copyfile(loaded.folder / name, folder / name)


def _write_tower(loaded: LoadedModel, folder: Path, weights: str | None, where: Path) -> None:
    stated = loaded.info.fingerprint
    if "tower.pretrained" not in stated:
        raise InputError(f"{where}: --with-tower: was trained on imported features, whose tower is not known")
    if (run := run_of_tower(loaded.info, weights, where)) is not None:
        of_run, own = load_model(run), folder / "tower" / stated["tower.pretrained"].rpartition("+")[2]
        _write_model(of_run, own)
        _write_tower(of_run, own, of_run.tower_weights, run)
    elif weights != SHIPPED:
        (folder / "tower").mkdir()
        clip, *names = pretrained_clip(stated["tower.name"], weights, stated["tower.like"])
        save_clip(folder / "tower" / "clip.safetensors", clip, stated["tower.name"], *names)
