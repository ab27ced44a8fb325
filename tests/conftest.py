"""Shared by all tests: shapes are checked, and the folder of references is found or skipped."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# From here on every tensor shape stated in ops and model is checked at each call.
install_import_hook(["unloc.ops", "unloc.model"], "beartype.beartype")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of references beside the project; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here: references, golden values and real videos are not part of the project")
    return SHARED
