"""Which CLIP a tower's name stands for: open_clip's architecture, and the settings that its weights were trained with.

open_clip keeps the two apart: a model's config states its sizes, the entry of a pretrained tag states activation and
preprocessing, and where they disagree (`ViT-B-16` is GELU, its tag `openai` QuickGELU) it builds the config. Here the
settings are settled first, and there is one builder, which cannot be asked for a CLIP without them.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import open_clip
from open_clip.model import CLIP, set_model_preprocess_cfg
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transformer import QuickGELU
from torch import nn

from unloc.errors import TowerError

TOY_FOLDER = Path(__file__).parent.parent / "synth" / "toy_tower"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSettings:
    """What weights were trained with, beside the architecture; the defaults are open_clip's."""

    activation: str = "gelu"
    """gelu or quick_gelu, of the transformers' MLPs."""
    mean: tuple[float, float, float] = open_clip.OPENAI_DATASET_MEAN
    std: tuple[float, float, float] = open_clip.OPENAI_DATASET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


def tag_settings(name: str, tag: str) -> WeightSettings:
    """The settings of one of open_clip's pretrained tags of a model, as its entry states them."""
    return _settings(get_pretrained_cfg(name, tag))


def known_settings(name: str, like: str | None) -> WeightSettings | None:
    """The settings of weights that are no tag of a model: those of the tag that they are `like`.

    Without `like` those on which all tags of the model agree, or of a model without tags its config's; None where the
    tags disagree. Raises TowerError where `like` is not a tag of the model.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    if like is not None:
        if like not in tags:
            raise TowerError(f"--like: {like!r} is not a tag of {name} (its tags: {', '.join(tags) or 'none'})")
        return tag_settings(name, like)
    found = {tag_settings(name, tag) for tag in tags} or {config_settings(name)}
    return found.pop() if len(found) == 1 else None


def config_settings(name: str) -> WeightSettings:
    """What a model's config states: the activation; the preprocessing is open_clip's default."""
    return _settings(open_clip.get_model_config(name))


def told_disagreement(name: str) -> str:
    """What the tags of a model disagree on, the first tag of every kind with its values."""
    first_tags = {tag_settings(name, tag): tag for tag in reversed(open_clip.list_pretrained_tags_by_model(name))}
    stated = {tag: asdict(settings) for settings, tag in first_tags.items()}
    keys = [key for key in asdict(WeightSettings()) if len({values[key] for values in stated.values()}) > 1]
    return "; ".join(f"{tag}: " + ", ".join(f"{key} {values[key]}" for key in keys) for tag, values in stated.items())


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
        stated = json.loads((TOY_FOLDER / "config.json").read_text(encoding="utf-8"))
        return {key: stated[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    stated = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if stated is None:
        known = ", ".join(open_clip.list_models()[:4])
        raise TowerError(f"tower {name!r}: is neither `toy` nor a model of open_clip (such as {known}, ViT-B-16)")
    texts = stated["text_cfg"]
    if stated.get("custom_text") or "hf_model_name" in texts or "multimodal_cfg" in stated:
        kind = "CoCa" if "multimodal_cfg" in stated else "CustomTextCLIP"
        raise TowerError(f"tower {name!r}: open_clip builds a {kind}; only its CLIP class is supported")
    if "hf_tokenizer_name" in texts or texts.get("no_causal_mask"):
        raise TowerError(
            f"tower {name!r}: its texts go through {texts.get('hf_tokenizer_name', 'another tokenizer')}; only models "
            "with CLIP's own tokenizer and causal attention are supported"
        )
    return {key: stated[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}


def clip_model(name: str, settings: WeightSettings) -> CLIP:
    """The CLIP of that name with fresh weights, on torch's current device. Raises TowerError as `architecture`."""
    model = CLIP(**architecture(name), quick_gelu=settings.activation == "quick_gelu")
    preprocessing = {key: value for key, value in asdict(settings).items() if key != "activation"}
    set_model_preprocess_cfg(model, preprocessing | {"size": model.visual.image_size})
    return model


def activation_of(model: nn.Module) -> str:
    """gelu or quick_gelu: what the model computes, whatever was asked for."""
    return "quick_gelu" if any(isinstance(part, QuickGELU) for part in model.modules()) else "gelu"
