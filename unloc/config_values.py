"""Nested values into dataclasses: overrides, layers merged, unknown keys refused with a suggestion, types checked."""

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unloc.errors import ConfigError


def dotted_values(overrides: Sequence[str]) -> dict:
    """`["optim.lr=0.1"]` as nested dictionaries. Raises ConfigError for what is not a pair."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"override: {' '.join(overrides)}: expected key=value pairs ({words})") from None


def merged_values(cls: type, layers: Sequence[tuple[object, dict]]) -> dict:
    """Values of layers (where they stand, values), later over earlier.

    Each layer is checked by itself, so that the message names the one that is wrong. Raises ConfigError for keys
    unknown to `cls` and for wrong types.
    """
    for where, values in layers:
        _typed(cls, values, where=str(where))
    return OmegaConf.to_container(OmegaConf.merge(*(values for _, values in layers)))


def built(cls: type, values: dict, *, where: str) -> Any:
    """A dataclass of dataclasses from nested dictionaries. Raises ConfigError for unknown keys and wrong types."""
    return OmegaConf.to_object(_typed(cls, values, where=where))


def _typed(cls: type, values: dict, *, where: str) -> DictConfig:
    known = _known(cls, values, where=where)
    try:
        schema = OmegaConf.structured(cls)
        for section in (schema, *filter(OmegaConf.is_config, schema.values())):
            OmegaConf.set_readonly(section, False)
        return OmegaConf.merge(schema, known)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or "?"
        raise ConfigError(f"{where}: {key}: {str(error).splitlines()[0]}") from None


def _known(cls: type, values: dict, *, where: str, prefix: str = "") -> dict:
    """The values, in which an empty text (`key=`, `key=null`) is the empty string. Refuses keys unknown to `cls`."""
    known, found = {item.name: item for item in fields(cls)}, {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {prefix}{key}; {hint}")
        found[key] = "" if value is None and known[key].type is str else value
        if is_dataclass(known[key].type):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {prefix}{key}: got {value!r}, expected a section of keys")
            found[key] = _known(known[key].type, value, where=where, prefix=f"{prefix}{key}.")
    return found
