"""Recipe files: where they lie, what they are called, and what each takes over from its `base`.

A file may name another recipe as its `base` (a shipped name, or a YAML path relative to the file): it then states only
what differs from that one. Sections merge key by key, lists are replaced as a whole, `name` is never inherited.
"""

import difflib
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unloc.errors import ConfigError, MissingError

MANIFEST_FOLDERS = (
    Path(__file__).parent / "manifests",  # installed from a wheel
    Path(__file__).parent.parent / "manifests",  # a checkout
)
RECIPE_FOLDERS = tuple(folder / "recipes" for folder in MANIFEST_FOLDERS)


def dataset_description(name: str) -> dict:
    """The shipped description of a dataset. Raises MissingError where there is none of that name."""
    for folder in MANIFEST_FOLDERS:
        path = folder / "datasets" / f"{name}.yaml"
        if path.is_file():
            return read_recipe_file(path)
    raise MissingError(f"no description of dataset {name!r} in {' or '.join(map(str, MANIFEST_FOLDERS))}")


def shipped_recipes() -> dict[str, Path]:
    """Shipped recipes: name to file. The name is the path below the folder: `charades_b`, `scenic/charades_b`."""
    for folder in RECIPE_FOLDERS:
        if folder.is_dir():
            files = sorted(folder.rglob("*.yaml"))
            return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    return {}


def recipe_path(name_or_path: str, folder: Path = Path()) -> Path:
    """The file of a shipped recipe name, or of a path (relative to `folder`).

    Raises MissingError listing close names.
    """
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        path = folder / name_or_path
        if path.is_file():
            return path
        raise MissingError(f"recipe file {path} does not exist")
    names = shipped_recipes()
    if name_or_path in names:
        return names[name_or_path]
    close = difflib.get_close_matches(name_or_path, names, n=3) or [name for name in names if "/" not in name]
    raise MissingError(
        f"no shipped recipe is called {name_or_path!r}; close: {', '.join(close)} (or give a .yaml path)"
    )


def recipe_name(path: Path) -> str:
    """The shipped name of a file, or its stem."""
    names = {file: name for name, file in shipped_recipes().items()}
    return names.get(path, path.stem)


def stated_values(path: Path, base: str | None = None) -> list[tuple[Path, dict]]:
    """What each file of a chain of bases states, the outermost base first and `path` last.

    `base` replaces the one that `path` names. Raises MissingError for a base that is not there, ConfigError where the
    bases go in a circle or a file is not a recipe, naming the file.
    """
    chain: list[tuple[Path, dict]] = []
    following: Path | None = path
    while following is not None:
        if following.resolve() in [file.resolve() for file, _ in chain]:
            circle = " → ".join(recipe_name(file) for file in [*(file for file, _ in chain), following])
            raise ConfigError(f"{path}: base: goes in a circle ({circle}); let one of them stand alone")
        values = read_recipe_file(following)
        own = values.pop("base", None)
        if chain:
            values.pop("name", None)
        chain.append((following, values))
        replaced = base is not None and len(chain) == 1
        following = recipe_path(base) if replaced else _base_path(own, following)
    return chain[::-1]


def _base_path(base: object, path: Path) -> Path | None:
    if base is None:
        return None
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: got {base!r}, expected the name of a recipe or a YAML path")
    try:
        return recipe_path(base, path.parent)
    except MissingError as error:
        raise MissingError(f"{path}: base: {error}") from None


def read_recipe_file(path: Path) -> dict:
    """The keys of one file. Raises ConfigError where it is not YAML or not a mapping."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a recipe: got a {type(values).__name__}, expected keys and sections")
    return values
