import pytest

from ollm_rl.cluster.pool import start_ray


@pytest.fixture(scope="package")
def cluster():
    """A Ray cluster on this machine."""
    import ray

    start_ray("local", num_cpus=16)  # it does not look whether they exist
    yield
    ray.shutdown()
