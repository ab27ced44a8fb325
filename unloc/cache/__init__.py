"""The cache: tokens on disk, read, written, checked, here or in a bucket."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""
