"""Checkpoints, written whole or not at all.

    RUN/checkpoints/step-00000120/  model.safetensors  checkpoint.json  state.pt
    RUN/checkpoints/last, best      links to two of them

A checkpoint folder is written under a temporary name, flushed and renamed; `best` and then `last` are links that are
replaced in one step each, so a kill at any moment leaves both pointing at whole checkpoints. One between the two leaves
`best` ahead: resuming goes on from there. Folders that no link names are deleted.
"""

import io
import json
import pickle
import shutil
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from unloc.errors import InputError
from unloc.files import commit_folder, fsync, write_file
from unloc.inference.load import CheckpointInfo

NAMES = ("best", "last")  # in this order: with `last` a step is done


def save_checkpoint(run: Path, info: CheckpointInfo, weights: dict[str, Tensor], state: dict, *, is_best: bool) -> Path:
    """Write a checkpoint and point `last` at it, and `best`. `weights` is what predicts, `state` what resumes.

    The step that `last` names has these weights already, from before their validation: only its metrics are new.
    """
    links = run / "checkpoints"
    folder, described = links / f"step-{info.step:08d}", json.dumps(info.to_dict(), indent=1)
    links.mkdir(parents=True, exist_ok=True)
    if folder.name in _named(links):
        write_file(folder / "checkpoint.json", described)
    else:
        try:
            _write_folder(folder, described, weights, state)
        except OSError:
            _delete_unnamed(links)  # half a checkpoint may be what fills the disk
            raise
    for name in NAMES if is_best else NAMES[1:]:
        _point(links / name, folder.name)
    _delete_unnamed(links)
    return folder


def _write_folder(folder: Path, described: str, weights: dict[str, Tensor], state: dict) -> None:
    temporary = folder.with_name(f".{folder.name}.part")
    for rest in (temporary, folder):  # of a killed run: no link names them
        shutil.rmtree(rest, ignore_errors=True)
    temporary.mkdir()
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    # As bytes: the libraries' own writers hide which error of the disk it was.
    (temporary / "model.safetensors").write_bytes(save(on_cpu))
    held = io.BytesIO()
    torch.save(state, held)
    (temporary / "state.pt").write_bytes(held.getbuffer())
    (temporary / "checkpoint.json").write_text(described, encoding="utf-8")
    commit_folder(temporary, folder)


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    temporary.replace(link)
    fsync(link.parent)


def _named(folder: Path) -> set[str]:
    return {link.readlink().name for link in folder.iterdir() if link.is_symlink()}


def _delete_unnamed(folder: Path) -> None:
    named = _named(folder)
    for item in folder.iterdir():
        stale = item.is_dir() and not item.is_symlink() and item.name not in named
        if stale and item.name.startswith(("step-", ".step-")):
            shutil.rmtree(item)


def load_state(run: Path) -> dict | None:
    """The training state of the last checkpoint, None before the first. Raises InputError where it is damaged."""
    links = run / "checkpoints"
    steps = {name: (links / name).readlink().name for name in NAMES if (links / name).is_symlink()}
    if not steps:
        return None
    if steps.get("last", "") < max(steps.values()):  # killed between the two links
        _point(links / "last", steps["best"])
    path = links / "last" / "state.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        words = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({words}); start again with --overwrite") from None
