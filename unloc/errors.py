"""Every error a user can meet, as one tree.

A message says what, where, what was found, what was expected and what to do, on one line. The command line prints it
without a traceback and exits with code 2 (`--debug` shows the traceback).
"""


def one_line(error: Exception) -> str:
    """The error's message without line breaks, at most 160 characters; its class where it has none."""
    return " ".join(str(error).split())[:160] or type(error).__name__


class UnlocError(Exception):
    """Root of all errors that a user can do something about."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # FileNotFoundError would print errno fields


class InputError(UnlocError, ValueError):
    """An invalid argument, option or value."""


class ConfigError(InputError):
    """A recipe or an override with an unknown key or an impossible value."""


class ManifestError(InputError):
    """A manifest or annotation file with an invalid row; names file and line."""


class PredictionError(InputError):
    """A prediction file with an invalid row; names file and place."""


class MissingError(UnlocError, FileNotFoundError):
    """A file, folder, split or video that does not exist."""


class VideoError(UnlocError, RuntimeError):
    """A video that cannot be decoded; `reason` is the short word kept in the ledger."""

    def __init__(self, message: str, reason: str = "decode_error") -> None:
        super().__init__(message, reason)  # both, so that the error can be pickled
        self.reason = reason


class TowerError(UnlocError, RuntimeError):
    """A tower that cannot be built, or whose weights cannot be found or downloaded."""


class CacheError(UnlocError, RuntimeError):
    """A cache that is broken, locked or incomplete."""


class FingerprintError(CacheError):
    """A cache made by another tower or preprocessing than the one asked for."""


class CoverageError(UnlocError, RuntimeError):
    """A job with more failures than the stated coverage allows."""


class LoaderError(UnlocError, RuntimeError):
    """A process that prepares batches died, for example for lack of memory."""


class DivergedError(UnlocError, RuntimeError):
    """A training whose loss, gradients, weights or outputs are no longer finite."""


class StoppedError(UnlocError, RuntimeError):
    """A job stopped by SIGTERM that can be resumed."""
