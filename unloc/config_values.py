"""Nested values into dataclasses: overrides, layers merged, unknown keys refused with a suggestion, types checked."""

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf
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
    """Values of layers (where they stand, values), later over earlier. Raises ConfigError for keys unknown to `cls`."""
    for where, values in layers:
        _refuse_unknown(cls, values, where=str(where))
    return OmegaConf.to_container(OmegaConf.merge(*(values for _, values in layers)))


def built(cls: type, values: dict, *, where: str) -> Any:
    """A dataclass of dataclasses from nested dictionaries. Raises ConfigError for unknown keys and wrong types."""
    _refuse_unknown(cls, values, where=where)
    try:
        schema = OmegaConf.structured(cls)
        OmegaConf.set_readonly(schema, False)
        return OmegaConf.to_object(_merge_writable(schema, values))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or "?"
        raise ConfigError(f"{where}: {key}: {str(error).splitlines()[0]}") from None


def _merge_writable(schema: Any, values: dict) -> Any:
    for value in schema.values():
        if OmegaConf.is_config(value):
            OmegaConf.set_readonly(value, False)
    return OmegaConf.merge(schema, values)


def _refuse_unknown(cls: type, values: dict, *, where: str, prefix: str = "") -> None:
    known = {item.name: item for item in fields(cls)}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {prefix}{key}; {hint}")
        if is_dataclass(known[key].type):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {prefix}{key}: got {value!r}, expected a section of keys")
            _refuse_unknown(known[key].type, value, where=where, prefix=f"{prefix}{key}.")
