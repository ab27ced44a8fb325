"""Command lines that must succeed or fail."""

import pytest


@pytest.fixture
def told(unloc):
    """Runs a command line that must succeed: what it prints."""

    def run(*words):
        code, out, errors = unloc(*words)
        assert code == 0, errors
        return out + errors

    return run


@pytest.fixture
def fails(unloc):
    """Runs a command line that must fail with exit code 2 and an error of one line that has these words: the line.

    The error is all that is on stderr, unless it may come after other lines.
    """

    def run(*words, saying, after_others=False):
        code, _, errors = unloc(*words)
        *others, line = errors.splitlines()
        assert code == 2 and line.startswith("error: ") and saying in line, errors
        assert "Traceback" not in errors and (after_others or not others), errors
        return line

    return run
