"""Every place in a JSON value, and the value with something else there."""

import copy
from collections.abc import Iterator
from typing import Any

GONE = object()


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every path of keys and indices into a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(content: Any, path: tuple, value: Any) -> Any:
    """The content with another value at a path, or (`GONE`) without what is there."""
    if not path:
        return value
    content = copy.deepcopy(content)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if value is GONE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return content
