"""Weights of open_clip's models, by tag, of a file, or random, in a CLIP of the settings they were trained with."""

import logging
import socket
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import huggingface_hub
import open_clip
import torch
from open_clip import factory
from open_clip.model import CLIP, resize_pos_embed, resize_text_pos_embed
from open_clip.pretrained import get_pretrained_cfg
from safetensors import SafetensorError
from torch import Tensor

from unloc.errors import TowerError
from unloc.model.clip_models import (
    WeightSettings,
    architecture,
    clip_model,
    config_settings,
    known_settings,
    tag_settings,
    told_disagreement,
)

RANDOM = "none"
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's archives state beside the weights
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, UnpicklingError, SafetensorError),  # damaged, or of another format
    *(AttributeError, KeyError, StopIteration, TypeError, ValueError),  # tensors, but not a model's by name
)


def pretrained_model(name: str, pretrained: str | None, like: str | None) -> tuple[CLIP, str, str | None]:
    """A CLIP with weights, and the two words that name them in the fingerprint.

    `pretrained` is a tag of open_clip, a weights file, or `none`: random weights of a fixed seed, for smoke tests.
    Activation and preprocessing are those of the tag. Of a file they are those of the tag that it is `like`; that may
    be left out where all tags of the model agree or the file is OpenAI's own archive.

    Raises TowerError where the name is unknown or no plain CLIP, the weights are neither on disk nor to be downloaded,
    a file's settings are not known, or `like` contradicts the tag.
    """
    architecture(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        known = ", ".join(tags[:6]) or "none listed"
        raise TowerError(
            f"--tower {name}: give --pretrained: one of open_clip's tags ({known}), a weights file, or none: random "
            "weights for a smoke test"
        )
    if pretrained in tags:
        return _of_tag(name, pretrained, like), pretrained, None
    if pretrained == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = clip_model(name, known_settings(name, like) or config_settings(name))
        return model, RANDOM, _first_alike(name, like)
    if not Path(pretrained).is_file():
        raise TowerError(
            f"--pretrained: {pretrained!r} is neither a file nor a tag of {name} "
            f"(its tags: {', '.join(tags[:6]) or 'none'}, …)"
        )
    model, like = _of_file(name, Path(pretrained), like)
    return model, Path(pretrained).name, _first_alike(name, like)


def _of_tag(name: str, tag: str, like: str | None) -> CLIP:
    settings = tag_settings(name, tag)
    if like is not None and known_settings(name, like) != settings:
        raise TowerError(
            f"--like {like}: contradicts --pretrained {tag} ({told_disagreement(name)}); a tag has its own settings, "
            "leave --like out"
        )
    if not _hub_reachable():
        # Without this the hub's client retries for most of a minute before it looks at its own disk.
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        with _quiet_downloads():
            file = factory.download_pretrained(get_pretrained_cfg(name, tag))
    except (OSError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:160]
        raise TowerError(
            f"--tower {name} --pretrained {tag}: weights not on disk and not to be downloaded ({words}); "
            "ways out: connect to the internet once, copy open_clip's download cache from another machine, "
            "give a local weights file (--pretrained FILE), or random weights for a smoke test (--pretrained none)"
        ) from None
    return _with_weights(name, settings, _read_weights(name, Path(file))[0], file)


def _of_file(name: str, file: Path, like: str | None) -> tuple[CLIP, str | None]:
    """The model with a file's weights, and the tag whose settings it has where that had to be said."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if file.name in (*tags, RANDOM):
        raise TowerError(f"--pretrained {file}: is called as a tag is, which the cache could not tell apart; rename it")
    known_settings(name, like)
    weights, is_openai = _read_weights(name, file)
    if is_openai and "openai" in tags:
        if like is not None and tag_settings(name, like) != tag_settings(name, "openai"):
            raise TowerError(f"--like {like}: contradicts {file}, which is OpenAI's own archive; leave --like out")
        like = "openai"
    settings = known_settings(name, like)
    if settings is None:
        raise TowerError(
            f"--pretrained {file}: a file does not say which settings its weights were trained with, and the tags of "
            f"{name} disagree ({told_disagreement(name)}); give the tag that it is, or was finetuned from: --like TAG"
        )
    return _with_weights(name, settings, weights, file), like


def _first_alike(name: str, like: str | None) -> str | None:
    """The first tag with the settings of `like`, so that equal tokens have equal fingerprints; None where all agree."""
    if like is None or known_settings(name, None) is not None:
        return None
    tags = open_clip.list_pretrained_tags_by_model(name)
    return next(tag for tag in tags if tag_settings(name, tag) == tag_settings(name, like))


def _read_weights(name: str, file: Path) -> tuple[dict[str, Tensor], bool]:
    """A file's tensors by name, and whether OpenAI wrote it: its TorchScript archives state more than weights."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch would not have new TorchScript; these files are of 2021
            is_script = _is_torchscript(file)
            weights = torch.jit.load(file, "cpu").state_dict() if is_script else factory.load_state_dict(str(file))
        stated = [weights.pop(key) for key in OPENAI_MARKS if key in weights]
    except UNREADABLE as error:
        raise _not_weights(name, file, error) from None
    return weights, len(stated) == len(OPENAI_MARKS)


def _is_torchscript(file: Path) -> bool:
    return zipfile.is_zipfile(file) and any(
        Path(item).name == "constants.pkl" for item in zipfile.ZipFile(file).namelist()
    )


def _with_weights(name: str, settings: WeightSettings, weights: dict[str, Tensor], file: Path | str) -> CLIP:
    model = clip_model(name, settings)
    try:
        resize_pos_embed(weights, model)
        resize_text_pos_embed(weights, model)
        model.load_state_dict(weights)
    except UNREADABLE as error:
        raise _not_weights(name, file, error) from None
    return model


def _not_weights(name: str, file: Path | str, error: Exception) -> TowerError:
    words = " ".join(str(error).split())[:160]
    return TowerError(f"--pretrained {file}: not weights of {name} ({words})")


def _hub_reachable() -> bool:
    """True where the weights' host has an address from here."""
    try:
        socket.getaddrinfo(urlparse(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def _quiet_downloads() -> Iterator[None]:
    """open_clip logs a failed download before it raises; the error says it all."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
