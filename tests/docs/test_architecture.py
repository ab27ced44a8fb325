"""The page of the architecture names files and functions that exist, and every package."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_function_of_the_page_is_where_it_says():
    named = re.findall(r"`((?:unloc|pipeline)/[\w/]+\.py):(\w+)`", PAGE)
    assert len(named) >= 15
    for file, name in named:
        assert re.search(rf"^ *(?:def|class) {name}\b", (ROOT / file).read_text(), re.M), f"{file}:{name}"


def test_every_package_is_in_the_table():
    packages = {f"unloc/{path.parent.name}/" for path in (ROOT / "unloc").glob("*/__init__.py")} | {"pipeline/"}
    assert packages == set(re.findall(r"^\| `((?:unloc/)?\w+/)` \|", PAGE, re.M))


def test_the_page_fits_on_a_screen():
    assert len(PAGE.splitlines()) <= 70
