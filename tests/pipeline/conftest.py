"""Shared by the tests of the pipeline: one small Ray for all of them."""

import pytest


@pytest.fixture(scope="session")
def one_ray():
    """A local Ray of four CPUs and two simulated GPUs, which jobs of this process use instead of starting their own."""
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
