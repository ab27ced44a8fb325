import pytest


@pytest.fixture(scope="session")
def golden(shared):
    """The official scorers' answers."""
    return shared / "golden" / "metrics"
