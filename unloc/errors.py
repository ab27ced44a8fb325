"""Every error a user can meet, as one tree.

    UnlocError
    ├── InputError        (ValueError)          an argument, option or value that cannot be meant
    │   ├── ConfigError                         a recipe or override: unknown key, wrong type, impossible value
    │   ├── ManifestError                       a manifest or annotation file, with file and line
    │   └── PredictionError                     a prediction file, with file and place
    ├── MissingError      (FileNotFoundError)   a file, folder, split or video that is not there
    ├── VideoError        (RuntimeError)        a video that does not decode; `reason` is what the ledger keeps
    ├── TowerError        (RuntimeError)        a tower that cannot be built or whose weights cannot be had
    ├── CacheError        (RuntimeError)        a cache that is broken or locked
    │   └── FingerprintError                    a cache made by another tower or another preprocessing
    ├── CoverageError     (RuntimeError)        a job that ended with more failures than its coverage allows
    ├── DivergedError     (RuntimeError)        a training whose loss, gradient or weights are no longer finite
    └── StoppedError      (RuntimeError)        a job that was told to stop and can be resumed

A message says what, where, what was got, what was expected and what to do, on one line.
The command line prints it without a traceback and exits with code 2 (`--debug` shows the traceback).
"""


class UnlocError(Exception):
    """Root of all errors that a user can do something about."""


class InputError(UnlocError, ValueError):
    """An argument, option or value that cannot be meant."""


class ConfigError(InputError):
    """A recipe or an override that names an unknown key or an impossible value."""


class ManifestError(InputError):
    """A manifest or annotation file with a row that cannot be read."""


class PredictionError(InputError):
    """A prediction file with a row that cannot be scored."""


class MissingError(UnlocError, FileNotFoundError):
    """A file, folder, split or video that is not there."""

    def __str__(self) -> str:
        # FileNotFoundError would print errno fields; the message is all there is.
        return str(self.args[0]) if self.args else ""


class VideoError(UnlocError, RuntimeError):
    """A video that does not decode; `reason` is the short word kept in the ledger."""

    def __init__(self, message: str, *, reason: str = "decode_error") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:
        # Keyword arguments are lost by the default pickling; Ray sends this error between processes.
        return (_rebuild_video_error, (str(self), self.reason))


def _rebuild_video_error(message: str, reason: str) -> VideoError:
    return VideoError(message, reason=reason)


class TowerError(UnlocError, RuntimeError):
    """A tower that cannot be built, or whose weights are neither on disk nor to be downloaded."""


class CacheError(UnlocError, RuntimeError):
    """A cache that is broken, locked or incomplete."""


class FingerprintError(CacheError):
    """A cache made by another tower or another preprocessing than the one asked for."""


class CoverageError(UnlocError, RuntimeError):
    """A job that ended with more failures than the stated coverage allows."""


class DivergedError(UnlocError, RuntimeError):
    """A training whose loss, gradient, weights or outputs are no longer finite."""


class StoppedError(UnlocError, RuntimeError):
    """A job that was told to stop (SIGTERM) and can be resumed."""
