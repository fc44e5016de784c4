import pytest

from ollm_rl.cluster.pool import start_ray


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster on this machine."""
    import ray

    start_ray("local", num_cpus=4)
    yield
    ray.shutdown()
