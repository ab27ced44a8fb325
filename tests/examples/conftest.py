"""The small world of tokens that the tests of training use."""

from tests.training.conftest import token_world  # noqa: F401 (a fixture)
