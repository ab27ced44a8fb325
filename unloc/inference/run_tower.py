"""The towers of a run as they make a cache: those that trained with its weights, the others as they were."""

from dataclasses import replace
from pathlib import Path

import torch
from open_clip.model import CLIP

from unloc.errors import InputError
from unloc.inference.load import CheckpointInfo, load_model, local_run
from unloc.model.clip import WeightSettings, clip_model, pretrained_clip
from unloc.model.towers import Tower, TowerChoice, weights_sha256


def fingerprint_of_run(run: Path, info: CheckpointInfo, fingerprint: dict) -> dict:
    """What a cache states that was made by a run's image tower as it trained, in the dtypes of that `fingerprint`."""
    if "image" not in info.live_towers:
        return info.fingerprint  # of the cache that it trained on
    own = run_tower(run, TowerChoice(tower_dtype=fingerprint.get("tower.dtype", "float32"))).fingerprint
    stated = {"dtype": fingerprint.get("dtype"), "tower.pretrained": fingerprint.get("tower.pretrained")}
    return info.fingerprint | {f"tower.{key}": value for key, value in own.items()} | stated


def run_of_tower(info: CheckpointInfo, weights: str, where: Path | str) -> Path | None:
    """The run whose tower made the tokens that a model was trained on; None where no run did. Raises InputError where
    `weights` is not this run.
    """
    pretrained, plus, name = (info.fingerprint.get("tower.pretrained") or "").rpartition("+")
    if not plus or "image" in info.live_towers or Path(weights).is_file():
        return None
    run = local_run(weights)
    if not run.is_dir():
        problem = f"was trained on tokens of the tower of run {name} ({pretrained}), which is not here"
        raise InputError(f"{where}: {problem}; give its run folder, or a copy of that name, with --pretrained")
    return run


def text_clip_of_run(run: Path) -> tuple[CLIP, str]:
    """A CLIP with a run's text tower, and the checksum of its towers; its image tower is not the run's."""
    tower = run_tower(run, TowerChoice())
    text, stated = tower.text, tower.fingerprint
    clip = clip_model(stated["name"], WeightSettings(activation=stated["activation"]))
    clip.token_embedding, clip.transformer, clip.ln_final = text.token_embedding, text.transformer, text.ln_final
    clip.positional_embedding = text.positions
    if text.projection is not None:
        clip.text_projection = text.projection
    return clip, stated["weights_sha256"]


def run_tower(run: Path, choice: TowerChoice) -> Tower:
    """The tower of a run folder or checkpoint, with the run's kinds of token (`frame_token`, projections) and the
    choice's precision and batch. Raises InputError where no image or text tower of the run trained.
    """
    loaded = load_model(run)
    info, trained = loaded.info, dict(loaded.model.named_children())
    if not info.live_towers:
        raise InputError(f"--tower {run}: no tower of this run trained; give the tower of its cache instead")
    if info.recipe.towers.frame_embeddings and "image" in info.live_towers:
        raise InputError(f"--tower {run}: its image tower has an embedding for each of its frame indices")
    stated = {key.removeprefix("tower."): value for key, value in info.fingerprint.items()}
    kinds = ("frame_token", "projected", "num_layers", "texts_projected")
    choice = replace(choice, tower=stated["name"], **{key: stated[key] for key in kinds})
    clip, pretrained, like = pretrained_clip(stated["name"], choice.pretrained or loaded.tower_weights, stated["like"])
    tower = Tower(clip, choice, pretrained=pretrained, like=like)
    if "image" in info.live_towers:
        tower.image.load_state_dict(trained["image_tower"].state_dict())
    if "text" in info.live_towers:
        state = trained["text_tower"].state_dict()
        with torch.no_grad():  # it has a row for each of the recipe's text tokens, CLIP one for each of its own
            positions = state.pop("positions")
            tower.text.positions[: len(positions)] = positions
        tower.text.load_state_dict(state, strict=False)
    tower.fingerprint |= {"pretrained": f"{pretrained}+{Path(run).name}", "weights_sha256": weights_sha256(tower)}
    return tower
