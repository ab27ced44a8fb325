"""Videos: facts of a stream, frames at wanted times, and their preprocessing for a tower."""

from collections.abc import Callable

Heartbeat = Callable[[], None]
"""Called repeatedly while a file is read, so that a long reading can be told from one that hangs."""
