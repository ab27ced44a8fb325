"""Recipe files: YAML into a `Recipe` and back, over bases and `key=value` overrides.

A file holds one recipe; a shipped file may hold several by name, under `rows`: a table of the paper. A recipe may name
another as its `base` (a shipped name, or a YAML path relative to the file) and then states only what differs. Sections
merge key by key, lists are replaced as a whole, `name` is not inherited. Unknown keys are refused with a suggestion.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unloc.config import Recipe
from unloc.errors import ConfigError, MissingError

MANIFEST_FOLDERS = (
    Path(__file__).parent / "manifests",  # installed from a wheel
    Path(__file__).parent.parent / "manifests",  # a checkout
)


@dataclass(frozen=True)
class StatedRecipe:
    """What one recipe states, before its base."""

    name: str
    file: Path
    values: dict
    is_shipped: bool

    @property
    def where(self) -> str:
        """File, and row where the file has several recipes, for messages."""
        return f"{self.file}: {self.name}" if self.is_shipped and self.name != self.file.stem else str(self.file)


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or a YAML path over its bases, with `key=value` overrides on top.

    The override `base=NAME` puts the recipe on another base than its own. Raises MissingError where a file does not
    exist, ConfigError naming the file and the key that is unknown or impossible.
    """
    try:
        changes = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"override: {' '.join(overrides)}: expected key=value pairs ({reason})") from None
    stated = find_recipe(name_or_path)
    chain = _base_chain(stated, changes.pop("base", None))
    layers = [*((one.where, one.values, one.is_shipped) for one in chain), ("override", changes, False)]
    for where, values, _ in layers:  # each by itself, so that the message names the one that is wrong
        _typed(values, where)
    merged = OmegaConf.to_container(OmegaConf.merge({"name": stated.name}, *(values for _, values, _ in layers)))
    # Where a run does not train a tower that its recipe finetunes, its name says so: it is not that row of the paper's
    # table. A shipped recipe over another (Table 4) is a row of its own.
    for tower in ("image", "text"):
        finetuned, state = False, ""
        for _, values, is_shipped in layers:
            if tower in values.get("towers", {}):
                state = values["towers"][tower]
                finetuned = state == "finetune" or (finetuned and not is_shipped)
        if finetuned and state != "finetune":
            merged["name"] += f"+{tower}_{state}"
    return recipe_from_dict(merged, where=stated.where)


def recipe_from_dict(values: dict, *, where: str = "recipe") -> Recipe:
    """A recipe from nested dictionaries. Raises ConfigError for unknown keys and wrong types."""
    return OmegaConf.to_object(_typed(values, where))


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key stated."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


@cache
def shipped_recipes() -> dict[str, StatedRecipe]:
    """Shipped recipes by name, such as `charades_b` or `scenic/charades_b`."""
    found = {}
    folder = next((folder / "recipes" for folder in MANIFEST_FOLDERS if (folder / "recipes").is_dir()), None)
    for file in sorted(folder.glob("*.yaml")) if folder else ():
        values = _read(file)
        rows = values.get("rows", {file.stem: values})
        found |= {name: StatedRecipe(name, file, row, is_shipped=True) for name, row in rows.items()}
    return found


def find_recipe(name_or_path: str, folder: Path = Path()) -> StatedRecipe:
    """The recipe of a shipped name, or of a file (relative to `folder`). Raises MissingError listing close names."""
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        file = folder / name_or_path
        if not file.is_file():
            raise MissingError(f"recipe file {file} does not exist")
        return StatedRecipe(file.stem, file, _read(file), is_shipped=False)
    shipped = shipped_recipes()
    if name_or_path not in shipped:
        close = difflib.get_close_matches(name_or_path, shipped, n=3) or [name for name in shipped if "/" not in name]
        raise MissingError(
            f"no shipped recipe is called {name_or_path!r}; close: {', '.join(close)} (or give a .yaml path)"
        )
    return shipped[name_or_path]


def dataset_description(name: str) -> dict:
    """The shipped description of a dataset. Raises MissingError where there is none of that name."""
    for folder in MANIFEST_FOLDERS:
        file = folder / "datasets" / f"{name}.yaml"
        if file.is_file():
            return _read(file)
    raise MissingError(f"no description of dataset {name!r} in {' or '.join(map(str, MANIFEST_FOLDERS))}")


def _base_chain(stated: StatedRecipe, replacement: str | None) -> list[StatedRecipe]:
    """The recipe and its bases without their `base` and inherited `name`, the outermost base first.

    Raises MissingError for a base that does not exist, ConfigError where bases form a circle.
    """
    chain: list[StatedRecipe] = []
    following: StatedRecipe | None = stated
    while following is not None:
        if (following.file.resolve(), following.name) in [(one.file.resolve(), one.name) for one in chain]:
            circle = " → ".join(one.name for one in [*chain, following])
            raise ConfigError(f"{stated.where}: base: goes in a circle ({circle}); let one of them stand alone")
        dropped = {"base"} | ({"name"} if chain else set())
        own = {key: value for key, value in following.values.items() if key not in dropped}
        base = replacement if replacement is not None and not chain else following.values.get("base")
        chain.append(StatedRecipe(following.name, following.file, own, following.is_shipped))
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"{following.where}: base: got {base!r}, expected the name of a recipe or a YAML path")
        try:
            following = (
                None if base is None else find_recipe(base, Path() if replacement is base else following.file.parent)
            )
        except MissingError as error:
            raise MissingError(f"{following.where}: base: {error}") from None
    return chain[::-1]


def _read(file: Path) -> dict:
    """The keys of a file. Raises ConfigError where it is not YAML or not a mapping."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(file))
    except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as a recipe: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: not a recipe: got a {type(values).__name__}, expected keys and sections")
    return values


def _typed(values: dict, where: str) -> DictConfig:
    """The values over the defaults of `Recipe`, with types checked. Raises ConfigError naming the key."""
    known = _known(Recipe, values, where)
    try:
        schema = OmegaConf.structured(Recipe)
        for section in (schema, *filter(OmegaConf.is_config, schema.values())):
            OmegaConf.set_readonly(section, False)
        return OmegaConf.merge(schema, known)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or "?"
        raise ConfigError(f"{where}: {key}: {str(error).splitlines()[0]}") from None


def _known(cls: type, values: dict, where: str, prefix: str = "") -> dict:
    """The values, with an empty text (`key=`, `key=null`) as the empty string. Raises ConfigError for unknown keys."""
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
            found[key] = _known(known[key].type, value, where, f"{prefix}{key}.")
    return found
