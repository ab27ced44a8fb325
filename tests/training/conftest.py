import pytest


@pytest.fixture(autouse=True, scope="session")
def runs_draw_nothing(undrawn):
    """But for those of `test_tracking`."""
