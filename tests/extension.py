"""The package of docs/extending.md, as if it were installed."""

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, points: str | None = None) -> None:
    """Write the files of the page and a dist-info with its entry points, or others, into a folder on sys.path."""
    blocks = dict(re.findall(r"^```(text|python\n# \S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    (stated,) = [text for kind, text in blocks.items() if kind == "text"]
    for kind, text in blocks.items():
        if kind != "text":
            file = folder / kind.removeprefix("python\n# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    info = folder / "my_unloc-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-unloc\nVersion: 1.2\n")
    found = points or re.sub(r'"|project\.entry-points\.', "", stated)
    (info / "entry_points.txt").write_text(found)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_unloc"]:
        monkeypatch.delitem(sys.modules, name)
