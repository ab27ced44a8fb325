"""What a shipped recipe says: its resolved values and its comment lines."""

import re
from functools import cache

from unloc.config import Recipe
from unloc.recipes import load_recipe, shipped_recipes

NAMES = [name for name in shipped_recipes() if not name.startswith(("synth", "kinetics", "cotrain"))]
ABLATIONS = [name for name in NAMES if name.startswith("ablations/")]
PAPER = [name for name in NAMES if "/" not in name]


@cache
def loaded(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides)


@cache
def header(name: str) -> list[str]:
    """The comment lines above the recipe's row, then those on top of its file, continued lines joined."""
    text = shipped_recipes()[name].file.read_text()
    row = re.search(rf"((?:^  #.*\n)+)^  {re.escape(name)}:$", text, re.M)[1]
    on_top = re.match(r"(?:#.*\n)+", text)[0]
    lines = re.sub(r"\n *#   ", " ", re.sub("^  ", "", row, flags=re.M) + on_top).splitlines()
    return [line.removeprefix("# ") for line in lines]


def stated(name: str, word: str) -> str:
    found = [line for line in header(name) if line.startswith(word)]
    assert len(found) == 1, (name, word)
    return found[0].removeprefix(word).strip()


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![@\w.])\d+\.\d\b", text)]
