"""Checkpoints, written whole or not at all.

    RUN/checkpoints/step-00000120/  model.safetensors  checkpoint.json  state.pt
    RUN/checkpoints/last, best      links to two of them

A checkpoint folder is written under a temporary name, flushed and renamed; `best` and then `last` are links that are
replaced in one step each, so a kill at any moment leaves both pointing at whole checkpoints. One between the two leaves
`best` ahead: resuming goes on from there. Folders that no link names are deleted.
"""

import json
import pickle
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from unloc.data.cache_writer import flush
from unloc.errors import InputError
from unloc.inference.load import CheckpointInfo

NAMES = ("best", "last")  # in this order: with `last` a step is done


def save_checkpoint(run: Path, info: CheckpointInfo, weights: dict[str, Tensor], state: dict, *, is_best: bool) -> Path:
    """Write a checkpoint and point `last` at it, and `best`. `weights` is what predicts, `state` what resumes."""
    folder = run / "checkpoints" / f"step-{info.step:08d}"
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in weights.items()}, temporary / "model.safetensors"
    )
    torch.save(state, temporary / "state.pt")
    (temporary / "checkpoint.json").write_text(json.dumps(info.to_dict(), indent=1), encoding="utf-8")
    for item in [*temporary.iterdir(), temporary]:
        flush(item)
    shutil.rmtree(folder, ignore_errors=True)  # what no link names: a rest of a killed run
    temporary.rename(folder)
    for name in NAMES if is_best else NAMES[1:]:
        _point(run / "checkpoints" / name, folder.name)
    _delete_unnamed(run / "checkpoints")
    return folder


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    temporary.replace(link)
    flush(link.parent)


def _delete_unnamed(folder: Path) -> None:
    named = {link.readlink().name for link in folder.iterdir() if link.is_symlink()}
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
