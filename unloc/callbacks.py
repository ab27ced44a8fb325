"""What long work calls while it runs."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""
Heartbeat = Callable[[], None]
"""Called repeatedly while a file is read, so that a reading that hangs can be distinguished from a long one."""
