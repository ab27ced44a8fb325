"""Shared by the tests of the pipeline: one small Ray for all of them."""

import pytest


@pytest.fixture(scope="session")
def one_ray():
    """A local Ray of three CPUs that jobs of this process use instead of starting their own."""
    import ray

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
