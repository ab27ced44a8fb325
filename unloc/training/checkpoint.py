"""Checkpoints, written whole or not at all.

    RUN/checkpoints/step-00000120/  model.safetensors  checkpoint.json  state.pt
    RUN/checkpoints/last, best      links to two of them

A checkpoint folder is written under a temporary name, flushed and renamed; `best` and then `last` are links, replaced
in one step each, so a kill at any moment leaves both at whole checkpoints. A kill between the two leaves `best` ahead:
resuming continues from there. Folders without a link are deleted.
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

NAMES = ("best", "last")  # in this order: `last` completes a step


def save_checkpoint(run: Path, info: CheckpointInfo, weights: dict[str, Tensor], state: dict, *, is_best: bool) -> None:
    """Write a checkpoint and point `last` at it, and `best`. `weights` predict, `state` resumes.

    If `last` or `best` is of this step already, it was saved before its validation: only the metrics are new.
    """
    links = run / "checkpoints"
    folder, description = links / f"step-{info.step:08d}", json.dumps(info.to_dict(), indent=1)
    links.mkdir(parents=True, exist_ok=True)
    if folder.name in _delete_unlinked(links):
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
    for name in NAMES if is_best else NAMES[1:]:
        _point(links / name, folder.name)
    _delete_unlinked(links)


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    temporary.replace(link)
    fsync(link.parent)


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
    steps = {name: (links / name).readlink().name for name in NAMES if (links / name).is_symlink()}
    if not steps:
        return None
    if steps.get("last", "") < max(steps.values()):  # killed between the two links
        _point(links / "last", steps["best"])
    path = links / "last" / "state.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); start again with --overwrite") from None
