"""Converters, towers and heads of other installed packages, by their entry points (docs/extending.md)."""

from importlib.metadata import entry_points
from typing import Any

from unloc.errors import InputError, one_line

BROKEN = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError, RuntimeError)


def added_names(kind: str) -> list[str]:
    """The names that packages add to the "converters", "towers" or "heads"."""
    return sorted({point.name for point in entry_points(group=f"unloc.{kind}")})


def added_by(kind: str, name: str) -> str | None:
    """The package that adds a name, `PACKAGE==VERSION`."""
    dists = [point.dist for point in entry_points(group=f"unloc.{kind}", name=name) if point.dist is not None]
    return f"{dists[0].name}=={dists[0].version}" if dists else None


def added(kind: str, name: str) -> Any:
    """What a package adds under a name, None where none does. Raises InputError for several, or one that is broken."""
    points = list(entry_points(group=f"unloc.{kind}", name=name))
    if len(points) > 1:
        packages = ", ".join(str(point.dist and point.dist.name) for point in points)
        raise InputError(f"{name!r} of unloc.{kind}: several packages add it ({packages}); uninstall all but one")
    try:
        return points[0].load() if points else None
    except BROKEN as error:
        where = f"{points[0].dist and points[0].dist.name}, {points[0].value}"
        problem = f"cannot be imported ({one_line(error)}); mend or uninstall it"
        raise InputError(f"{name!r} of unloc.{kind} ({where}): {problem}") from None
