"""What a shipped recipe says: its resolved values and its comment lines."""

import re
from functools import cache

from unloc.config import Recipe, load_recipe
from unloc.recipe_files import shipped_recipes

NAMES = [name for name in shipped_recipes() if not name.startswith("synth")]
ABLATIONS = [name for name in NAMES if name.startswith("ablations/")]
PAPER = [name for name in NAMES if "/" not in name]


@cache
def loaded(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides)


@cache
def header(name: str) -> list[str]:
    """The comment lines on top, continued lines joined."""
    text = shipped_recipes()[name].read_text()
    lines = text[: re.search(r"^[^#]", text, re.M).start()].replace("\n#   ", " ").splitlines()
    return [line.removeprefix("# ") for line in lines]


def stated(name: str, word: str) -> str:
    found = [line for line in header(name) if line.startswith(word)]
    assert len(found) == 1, (name, word)
    return found[0].removeprefix(word).strip()


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![@\w.])\d+\.\d\b", text)]
