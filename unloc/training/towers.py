"""Towers that train within the model, from the weights that made the cache (UnLoc §3.1, Table 4)."""

from pathlib import Path

import torch
from open_clip.model import CLIP

from unloc.config import TowersConfig
from unloc.errors import ConfigError, FingerprintError
from unloc.model.clip import pretrained_clip
from unloc.model.towers import weights_sha256


def clip_of_cache(towers: TowersConfig, fingerprint: dict, cache: Path | str) -> CLIP:
    """The CLIP with whose weights a cache was made. A weights file is found by its path in `towers.pretrained`.

    Raises ConfigError where the file is not given, FingerprintError where the weights are others, TowerError where they
    cannot be had.
    """
    name, pretrained = fingerprint["tower.name"], fingerprint["tower.pretrained"]
    if Path(towers.pretrained).is_file():
        pretrained = towers.pretrained
    elif Path(pretrained).suffix:
        raise ConfigError(
            f"towers.pretrained: {cache} was made with the weights file {pretrained!r}; finetuning starts from it: "
            "give its path, towers.pretrained=PATH, or set towers.text=cached"
        )
    with torch.random.fork_rng(devices=[]):  # the weights above the tower do not depend on how it is made
        clip, *_ = pretrained_clip(name, pretrained, fingerprint.get("tower.like"))
    if weights_sha256(clip) != fingerprint.get("tower.weights_sha256"):
        raise FingerprintError(
            f"towers.pretrained: the weights of {name} {pretrained} are not those that made {cache} (their "
            "tower.weights_sha256 differs); give the same weights, or extract a cache with these"
        )
    return clip
