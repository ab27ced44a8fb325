"""Recipe files: YAML into a `Recipe` and back, over bases and `key=value` overrides.

A user's file holds one recipe; a shipped file, such as a table of the paper, has several by name, under `rows`. A
recipe may name another as its `base` (a shipped name, or a YAML path relative to the file) and then states only what
differs. Sections merge key by key, lists are replaced as a whole, `name` is not inherited. Unknown keys are refused.
A recipe of several `tasks` has what they share; each takes the rest from its own `base`, then from the recipe, then
from what it states itself.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unloc.config import OF_A_TASK, SEVERAL, TASK_NAMES, Recipe
from unloc.errors import ConfigError, MissingError, one_line

MANIFEST_FOLDERS = (
    Path(__file__).parent / "manifests",  # installed from a wheel
    Path(__file__).parent.parent / "manifests",  # a checkout
)


class StatedRecipe(NamedTuple):
    """What one recipe states, before its base."""

    name: str
    file: Path
    values: dict
    where: str  # file, and the row of a shipped file, for messages
    is_shipped: bool = False


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or a YAML path over its bases, with `key=value` overrides on top.

    The override `base=NAME` puts the recipe on another base than its own. Raises MissingError where a file does not
    exist, ConfigError naming the file and the key that is unknown or impossible.
    """
    changes, stated = stated_values(overrides), find_recipe(name_or_path)
    layers = [*_with_bases(stated, changes.pop("base", None)), StatedRecipe("", Path(), changes, "override")]
    merged = OmegaConf.create()
    for one in layers:
        values = {key: value for key, value in one.values.items() if key != "base"}
        _typed(values, one.where)  # each by itself, so that the message names the one that is wrong
        merged = OmegaConf.merge(merged, values)
    merged["name"] = ({"name": stated.name} | stated.values | changes)["name"]
    # Where a run does not train a tower that its recipe finetunes, its name says so: it is not that row of the paper's
    # table. A shipped recipe over another (Table 4) is a row of its own.
    for tower in ("image", "text"):
        finetuned, state = False, ""
        for one in layers:
            if tower in one.values.get("towers", {}):
                state = one.values["towers"][tower]
                finetuned = state == "finetune" or (finetuned and not one.is_shipped)
        if finetuned and state != "finetune":
            merged["name"] += f"+{tower}_{state}"
    values = OmegaConf.to_container(merged)
    if values.get("tasks"):
        if (task := (stated.values | changes).get("task", SEVERAL)) != SEVERAL:
            raise ConfigError(f"{stated.where}: task: got {task} where tasks are stated; leave it out")
        return _several(values, stated)
    return recipe_from_dict(values, where=stated.where)


def stated_values(overrides: Sequence[str]) -> dict:
    """What `key=value` overrides state, nested by section. Raises ConfigError."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"override: {' '.join(overrides)}: expected key=value pairs ({one_line(error)})") from None


def task_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe of each task, by its name: of one task the recipe itself."""
    if not recipe.tasks:
        return {recipe.task: recipe}
    shared, found = {key: value for key, value in asdict(recipe).items() if key != "tasks"}, {}
    for task, stated in recipe.tasks.items():
        own = {key: value for key, value in stated.items() if key != "weight"}
        try:
            merged = OmegaConf.to_container(OmegaConf.merge(shared, own, {"task": task}))
            found[task] = recipe_from_dict(merged, where=f"tasks.{task}")
        except ConfigError as error:
            raise ConfigError(f"recipe {recipe.name}, task {task}: {error}") from None
    return found


def recipe_from_dict(values: dict, *, where: str = "recipe") -> Recipe:
    """A recipe from nested dictionaries. Raises ConfigError for unknown keys and wrong types."""
    return OmegaConf.to_object(_typed(values, where))


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key stated; of several tasks those that differ from the recipe's."""
    values = OmegaConf.to_container(OmegaConf.structured(recipe))
    return OmegaConf.to_yaml({key: value for key, value in values.items() if key != "tasks" or recipe.tasks})


@cache
def shipped_recipes() -> dict[str, StatedRecipe]:
    """Shipped recipes by name, such as `charades_b` or `scenic/charades_b`."""
    files = (file for folder in MANIFEST_FOLDERS for file in sorted(folder.glob("recipes/*.yaml")))
    rows = ((file, name, row) for file in files for name, row in _read(file)["rows"].items())
    return {name: StatedRecipe(name, file, row, f"{file}: {name}", is_shipped=True) for file, name, row in rows}


def find_recipe(name_or_path: str, folder: Path = Path()) -> StatedRecipe:
    """The recipe of a shipped name, or of a file (relative to `folder`). Raises MissingError listing close names."""
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        file = folder / name_or_path
        if not file.is_file():
            raise MissingError(f"recipe file {file} does not exist")
        return StatedRecipe(file.stem, file, _read(file), str(file))
    shipped = shipped_recipes()
    if name_or_path not in shipped:
        close = difflib.get_close_matches(name_or_path, shipped, n=3) or [name for name in shipped if "/" not in name]
        message = f"no shipped recipe is called {name_or_path!r}; close: {', '.join(close)}"
        raise MissingError(f"{message} (or give a .yaml path)")
    return shipped[name_or_path]


def dataset_description(name: str) -> dict:
    """The shipped description of a dataset."""
    files = (folder / "datasets" / f"{name}.yaml" for folder in MANIFEST_FOLDERS)
    return _read(next(filter(Path.is_file, files)))


def _with_bases(stated: StatedRecipe, replacement: str | None) -> list[StatedRecipe]:
    """The outermost base first, the recipe last; `replacement` takes the place of its own base. Raises MissingError for
    a base that does not exist, ConfigError where bases form a circle.
    """
    chain, folder = [stated], stated.file.parent if replacement is None else Path()
    base = stated.values.get("base") if replacement is None else replacement
    while base is not None:
        where = chain[0].where
        if not isinstance(base, str):
            raise ConfigError(f"{where}: base: got {base!r}, expected the name of a recipe or a YAML path")
        try:
            found = find_recipe(base, folder)
        except MissingError as error:
            raise MissingError(f"{where}: base: {error}") from None
        is_circle = any(found.name == one.name and found.file.samefile(one.file) for one in chain)
        chain.insert(0, found)
        if is_circle:
            circle = " → ".join(one.name for one in reversed(chain))
            raise ConfigError(f"{stated.where}: base: goes in a circle ({circle}); let one of them stand alone")
        base, folder = found.values.get("base"), found.file.parent
    return chain


def _several(values: dict, stated: StatedRecipe) -> Recipe:
    """A recipe of several tasks; of each it keeps what differs from the recipe. Raises ConfigError."""
    entries = {task: entry for task, entry in values["tasks"].items() if entry is not None}
    where = f"{stated.where}: tasks"
    for task, entry in entries.items():
        if task not in TASK_NAMES or not isinstance(entry, dict):
            raise ConfigError(f"{where}.{task}: got {entry!r}, expected keys of one of {', '.join(TASK_NAMES)}")
    weights = [entry.pop("weight", None) for entry in entries.values()]
    is_stated = any(weight is not None for weight in weights)
    if is_stated and not all(isinstance(weight, int | float) and 0 < weight < math.inf for weight in weights):
        raise ConfigError(f"{where}: got weights {weights}, expected a number above 0 for each, or none at all")
    recipe = recipe_from_dict(values | {"task": SEVERAL, "tasks": {task: {} for task in entries}}, where=stated.where)
    layered, shared = {}, asdict(recipe)
    for task, entry in entries.items():
        chain = _with_bases(stated._replace(values=entry, where=f"{where}.{task}"), None)[:-1]
        entry.pop("base", None)
        _typed(entry, f"{where}.{task}")
        own = _of_a_task(entry)
        others = [name for name in entry if name not in OF_A_TASK]
        if others := others or [f"{name}.{key}" for name in own for key in entry[name] if key not in own[name]]:
            advice = "shared by all tasks; state it in the recipe itself"
            raise ConfigError(f"{where}.{task}: {', '.join(others)}: {advice}")
        layers = [*(_of_a_task(one.values) for one in chain), _of_a_task(values), own]
        layered[task] = OmegaConf.to_container(OmegaConf.merge(*layers))
    differing = {task: {"weight": weight} if is_stated else {} for task, weight in zip(entries, weights, strict=True)}
    for task, one in task_recipes(replace(recipe, tasks=layered)).items():
        for name, keys in _of_a_task(asdict(one)).items():
            changed = {key: value for key, value in keys.items() if value != shared[name][key]}
            differing[task] |= {name: changed} if changed else {}
        if recipe.model.pyramid == "fpn" and one.model.num_levels != recipe.model.num_levels:
            advice = "the levels of pyramid fpn are layers: state it in the recipe itself, for all tasks"
            raise ConfigError(f"{where}.{task}: model.num_levels: {advice}")
    return replace(recipe, tasks=differing)


def _of_a_task(values: dict) -> dict:
    """The part of a recipe's values that each of several tasks has of its own."""
    sections = {name: values[name] for name in OF_A_TASK if name in values}
    return {name: {k: v for k, v in keys.items() if k in (OF_A_TASK[name] or keys)} for name, keys in sections.items()}


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
