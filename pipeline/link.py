"""Between the command of `unloc fit --workers N` and its processes; apart, as its process needs no PyTorch."""


class Link:
    """What the command and the main process tell each other; a Ray actor."""

    def __init__(self) -> None:
        self.step: tuple[int, int, dict[str, float]] | None = None
        self.is_stopping = self.is_training = False
        self.errors: dict[int, Exception] = {}

    def report(self, step: tuple[int, int, dict[str, float]] | None) -> bool:
        """From the main process: the last step. Returns whether to stop."""
        self.step, self.is_training = step or self.step, True
        return self.is_stopping

    def fail(self, rank: int, error: Exception) -> None:
        """From a process: an error that a restart would meet again."""
        self.errors[rank] = error

    def look(self, is_stopping: bool) -> tuple[tuple[int, int, dict[str, float]] | None, bool]:
        """From the command: whether to stop. Returns the last step, and whether the main process has begun."""
        self.is_stopping = is_stopping
        return self.step, self.is_training

    def ended(self) -> Exception | None:
        """From the command, after the processes have ended: the error of the lowest rank."""
        self.is_training = False
        return self.errors[min(self.errors)] if self.errors else None
