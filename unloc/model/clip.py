"""CLIP models of open_clip, and toy: architecture, weights, and the settings that the weights were trained with.

open_clip keeps these apart: a model's config has its sizes, the entry of a pretrained tag has activation and
preprocessing, and where they disagree (`ViT-B-16` is GELU, its tag `openai` QuickGELU) it builds the config. Here a
model is always built with the settings of its weights.
"""

import json
import logging
import socket
import warnings
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import huggingface_hub
import open_clip
import torch
from open_clip import factory
from open_clip.model import CLIP, resize_pos_embed, resize_text_pos_embed, set_model_preprocess_cfg
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transformer import QuickGELU
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unloc.errors import TowerError, one_line
from unloc.plugins import added_names
from unloc.synth import TOWER_FOLDER

RANDOM = "none"
SHIPPED = "shipped"  # with toy, or with the package of a tower
CARRIED = "unloc_clip"  # key of what `save_clip` states
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives, next to the weights
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, UnpicklingError, SafetensorError),  # damaged, or of another format
    *(AttributeError, KeyError, StopIteration, TypeError, ValueError),  # tensors, but not a model's by name
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSettings:
    """What weights were trained with; the defaults are open_clip's."""

    activation: str = "gelu"  # gelu or quick_gelu, of the transformers' MLPs
    mean: tuple[float, float, float] = open_clip.OPENAI_DATASET_MEAN
    std: tuple[float, float, float] = open_clip.OPENAI_DATASET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


def tag_settings(name: str, tag: str) -> WeightSettings:
    """The settings of one of open_clip's pretrained tags of a model."""
    return _settings(get_pretrained_cfg(name, tag))


def _settings(stated: dict) -> WeightSettings:
    return WeightSettings(
        activation="quick_gelu" if stated.get("quick_gelu") else "gelu",
        **{key: tuple(stated[key]) for key in ("mean", "std") if key in stated},
        **{key: stated[key] for key in ("interpolation", "resize_mode") if key in stated},
    )


def architecture(name: str) -> dict:
    """`embed_dim`, `vision_cfg` and `text_cfg` of toy or a CLIP of open_clip.

    Raises TowerError for an unknown name, and for models whose texts are not CLIP's: another class (CoCa, SigLIP, text
    towers of Hugging Face) or another tokenizer and attention (CLIPA, the worldwide models).
    """
    if name == "toy":
        stated = json.loads((TOWER_FOLDER / "config.json").read_text(encoding="utf-8"))
    elif name in open_clip.list_models():
        stated = open_clip.get_model_config(name)
    elif name in (others := added_names("towers")):
        raise TowerError(f"tower {name!r}: of another package, and stays frozen; `unloc extract` makes a cache with it")
    else:
        known = f"(such as {', '.join(open_clip.list_models()[:4])}, ViT-B-16)"
        of_others = f"one of other packages ({', '.join(others) or 'none is installed'})"
        raise TowerError(f"tower {name!r}: is neither `toy`, a model of open_clip {known} nor {of_others}")
    texts = stated["text_cfg"]
    is_other = stated.get("custom_text") or "multimodal_cfg" in stated or texts.get("no_causal_mask")
    if is_other or {"hf_model_name", "hf_tokenizer_name"} & texts.keys():
        supported = "only open_clip's CLIP class with CLIP's own tokenizer and causal attention is supported"
        raise TowerError(f"tower {name!r}: has another class, tokenizer or attention of texts than CLIP; {supported}")
    return {key: stated[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}


def clip_model(name: str, settings: WeightSettings) -> CLIP:
    """The CLIP of that name with fresh weights, on torch's current device. Raises TowerError as `architecture`."""
    model = CLIP(**architecture(name), quick_gelu=settings.activation == "quick_gelu")
    preprocessing = {key: value for key, value in asdict(settings).items() if key != "activation"}
    set_model_preprocess_cfg(model, preprocessing | {"size": model.visual.image_size})
    return model


def activation_of(model: nn.Module) -> str:
    """gelu or quick_gelu: what the model computes."""
    return "quick_gelu" if any(isinstance(part, QuickGELU) for part in model.modules()) else "gelu"


def image_config(model: nn.Module) -> dict:
    """image_size, mean, std, interpolation and resize_mode that open_clip states for a CLIP or its image tower."""
    settings = asdict(_settings(open_clip.get_model_preprocess_cfg(model)))
    size = getattr(model, "visual", model).image_size
    del settings["activation"]
    return {"image_size": int(size[0] if isinstance(size, tuple | list) else size)} | settings


def pretrained_clip(name: str, pretrained: str | None, like: str | None) -> tuple[CLIP, str, str | None]:
    """A CLIP with weights, and the `pretrained` and `like` that name them in the fingerprint.

    `pretrained` is a tag of open_clip, a weights file, or `none`: random weights of a fixed seed, for smoke tests.
    Activation and preprocessing are those of the tag; of a file those of the tag that it is `like`, which may be left
    out where all tags of the model agree or the file is OpenAI's own archive.

    Raises TowerError where the name is unknown or no plain CLIP, the weights are neither on disk nor to be downloaded,
    a file's settings are not known, or `like` contradicts the tag.
    """
    if name == "toy":
        if pretrained not in (None, SHIPPED) or like is not None:
            raise TowerError("--tower toy: ships its own weights and settings; leave --pretrained and --like out")
        model = clip_model("toy", WeightSettings())
        weights = factory.load_state_dict(str(TOWER_FOLDER / "weights.safetensors"))
        model.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in weights.items()})
        return model, SHIPPED, None
    architecture(name)
    tags, plain = open_clip.list_pretrained_tags_by_model(name), _settings(open_clip.get_model_config(name))
    listed = ", ".join(tags[:6]) or "none"
    if pretrained is None:
        choices = f"one of open_clip's tags ({listed}), a weights file, or none: random weights for a smoke test"
        raise TowerError(f"--tower {name}: give --pretrained: {choices}")
    if like not in (None, *tags):
        raise TowerError(f"--like: {like!r} is not a tag of {name} (its tags: {', '.join(tags) or 'none'})")
    kinds = {tag_settings(name, tag): tag for tag in reversed(tags)}  # with the first tag of each
    settings = tag_settings(name, like) if like is not None else next(iter(kinds), plain) if len(kinds) < 2 else None
    if pretrained == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = clip_model(name, settings or plain)
        return model, RANDOM, kinds[settings] if like is not None and len(kinds) > 1 else None

    if (carried := _carried_clip(name, Path(pretrained))) is not None:
        return carried
    file, own = Path(pretrained), pretrained  # the tag whose settings these weights are known to have
    if pretrained not in tags:
        if not file.is_file():
            problem = f"{pretrained!r} is neither a file here nor a tag of {name} (its tags: {listed})"
            raise TowerError(f"--pretrained: {problem}; give the path of the weights file")
        if file.name in (*tags, RANDOM):
            raise TowerError(f"--pretrained {file}: has the name of a tag, and a cache records only names; rename it")
        weights, is_openai = _read_weights(name, file)
        own = "openai" if is_openai and "openai" in tags else like
    if own is None and settings is None:
        problem = f"does not say how its weights were trained, and the tags of {name} disagree ({_disagreement(kinds)})"
        raise TowerError(f"--pretrained {file}: {problem}; give the tag that it is, or was finetuned from: --like TAG")
    if like is not None and settings != tag_settings(name, own):
        whose = "a tag has its own settings" if own == pretrained else "it is OpenAI's own archive"
        problem = f"contradicts --pretrained {pretrained} ({_disagreement(kinds)})"
        raise TowerError(f"--like {like}: {problem}; {whose}, leave --like out")
    settings = settings if own is None else tag_settings(name, own)
    if own == pretrained:
        file = _downloaded(name, own)
        weights, _ = _read_weights(name, file)
    model = clip_model(name, settings)
    try:
        resize_pos_embed(weights, model)
        resize_text_pos_embed(weights, model)
        model.load_state_dict(weights)
    except UNREADABLE as error:
        raise TowerError(f"--pretrained {file}: not weights of {name} ({one_line(error)})") from None
    # A file's is the first tag with its settings, so that equal tokens have equal fingerprints.
    needs_like = own not in (None, pretrained) and len(kinds) > 1
    return model, Path(pretrained).name, kinds[settings] if needs_like else None


def save_clip(file: Path, clip: CLIP, name: str, pretrained: str, like: str | None) -> None:
    """Write a CLIP with its settings and the names of its weights, as `pretrained_clip` gives them back."""
    settings = {key: value for key, value in image_config(clip).items() if key != "image_size"}
    stated = {"name": name, "pretrained": pretrained, "like": like}
    stated["settings"] = settings | {"activation": activation_of(clip)}
    weights = {key: value.contiguous() for key, value in clip.state_dict().items()}
    file.write_bytes(save(weights, {CARRIED: json.dumps(stated)}))


def _carried_clip(name: str, file: Path) -> tuple[CLIP, str, str | None] | None:
    """What `save_clip` wrote, None for another file. Raises TowerError where it is of another model or damaged."""
    try:
        with safe_open(file, "pt") as opened:
            stated = json.loads((opened.metadata() or {}).get(CARRIED, "null"))
    except (OSError, SafetensorError):
        stated = None
    if stated is None:
        return None
    try:
        if stated["name"] != name:
            raise ValueError(f"of {stated['name']}")
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in stated["settings"].items()}
        model = clip_model(name, WeightSettings(**settings))
        model.load_state_dict(load_file(file))
    except UNREADABLE as error:
        raise TowerError(f"--pretrained {file}: not weights of {name} ({one_line(error)})") from None
    return model, stated["pretrained"], stated["like"]


def hub_is_offline() -> bool:
    """Whether the Hugging Face Hub cannot be reached; its client would retry for most of a minute before it says so."""
    try:
        if not huggingface_hub.constants.HF_HUB_OFFLINE:
            socket.getaddrinfo(urlparse(huggingface_hub.constants.ENDPOINT).hostname, 443)
        return huggingface_hub.constants.HF_HUB_OFFLINE
    except OSError:
        return True


def _disagreement(kinds: dict[WeightSettings, str]) -> str:
    """What tags disagree on: the first tag of every kind with its values."""
    stated = {tag: asdict(settings) for settings, tag in kinds.items()}
    keys = [key for key in asdict(WeightSettings()) if len({values[key] for values in stated.values()}) > 1]
    return "; ".join(f"{tag}: " + ", ".join(f"{key} {values[key]}" for key in keys) for tag, values in stated.items())


def _downloaded(name: str, tag: str) -> Path:
    """The weights file of a tag. Raises TowerError with the ways out where it cannot be had."""
    huggingface_hub.constants.HF_HUB_OFFLINE = hub_is_offline()
    try:
        logging.disable(logging.ERROR)  # open_clip logs a failed download before it raises; the error is enough
        return Path(factory.download_pretrained(get_pretrained_cfg(name, tag)))
    except (OSError, RuntimeError, ValueError) as error:
        problem = f"weights not on disk and not to be downloaded ({one_line(error)})"
        advice = "connect to the internet once, copy open_clip's download cache from another machine, give a weights "
        advice += "file (--pretrained FILE), or random weights for a smoke test (--pretrained none)"
        raise TowerError(f"--tower {name} --pretrained {tag}: {problem}; {advice}") from None
    finally:
        logging.disable(logging.NOTSET)


def _read_weights(name: str, file: Path) -> tuple[dict[str, Tensor], bool]:
    """A file's tensors by name, and whether OpenAI wrote it: its TorchScript archives state more than weights."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch deprecates TorchScript; these files are of 2021
            members = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else []
            is_script = any(Path(member).name == "constants.pkl" for member in members)
            weights = torch.jit.load(file, "cpu").state_dict() if is_script else factory.load_state_dict(str(file))
        stated = [weights.pop(key) for key in OPENAI_MARKS if key in weights]
    except UNREADABLE as error:
        raise TowerError(f"--pretrained {file}: not weights of {name} ({one_line(error)})") from None
    return weights, len(stated) == len(OPENAI_MARKS)
