"""Checkpoints, written whole or not at all.

    RUN/checkpoints/step-00000120/  model.safetensors  checkpoint.json  state.pt
    RUN/checkpoints/last, best      links to two of them

A checkpoint folder is written under a temporary name and renamed; `last` and `best` are links that are replaced in one
step, so a kill at any moment leaves both pointing at whole checkpoints. Folders that no link names are deleted.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from unloc.errors import MissingError
from unloc.inference.load import CheckpointInfo


def save_checkpoint(
    run: Path, info: CheckpointInfo, weights: dict[str, Tensor], state: dict, *, names: tuple[str, ...]
) -> Path:
    """Write a checkpoint and point `names` (last, best) at it. `weights` is what predicts, `state` what resumes."""
    folder = run / "checkpoints" / f"step-{info.step:08d}"
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in weights.items()}, temporary / "model.safetensors"
    )
    torch.save(state, temporary / "state.pt")
    (temporary / "checkpoint.json").write_text(json.dumps(info.to_dict(), indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    for name in names:
        _point(run / "checkpoints" / name, folder.name)
    _delete_unnamed(run / "checkpoints")
    return folder


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    temporary.replace(link)


def _delete_unnamed(folder: Path) -> None:
    named = {link.readlink().name for link in folder.iterdir() if link.is_symlink()}
    for item in folder.iterdir():
        stale = item.is_dir() and not item.is_symlink() and item.name not in named
        if stale and item.name.startswith(("step-", ".step-")):
            shutil.rmtree(item)


def load_state(run: Path) -> dict:
    """The training state of the last checkpoint. Raises MissingError where there is none to resume."""
    path = run / "checkpoints" / "last" / "state.pt"
    if not path.is_file():
        raise MissingError(f"{run}: no checkpoint to resume from (looked for checkpoints/last); start without --resume")
    return torch.load(path, map_location="cpu", weights_only=True)
