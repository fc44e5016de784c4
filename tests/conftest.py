"""Shared fixtures: a tiny random option LM for speed, and the real SmolLM2 for the tests marked `slow`."""

import os
import sys
from pathlib import Path

import pytest
import torch

from ollm_rl.common.cache import cache_dir
from ollm_rl.models.loading import load_backbone
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.session.local import Session, make_session


def pytest_configure(config: pytest.Config) -> None:
    """Equal numbers to the last bit are a CPU's: other tests than those of GPUs do not see one."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs Ray comes last: each process that runs tests starts it once."""
    items.sort(key=lambda item: "cluster" in getattr(item, "fixturenames", ()))


REAL_CACHE = cache_dir()  # before tests redirect it: the real model is downloaded once per machine
# The equalities hold with any reader: READER_DEPTH=1 and READER_DEPTH=2 run all tests with one.
DEPTH = int(os.environ.get("READER_DEPTH", PlugInConfig.reader_depth))
QUICK = ConversionConfig(
    num_solutions=120, num_heldout=30, epochs=2, prior_epochs=2, reader_epochs=2, batch_size=256,
    plugin=PlugInConfig(reader_depth=DEPTH, reader_width=16),
)  # fmt: skip
QUICK_KEYS = [
    "backbone=tiny", "backbone.dtype=float32", "convert.num_solutions=60", "convert.num_heldout=20",
    "convert.epochs=1", "convert.prior_epochs=1", "convert.reader_epochs=1", f"plugin.reader_depth={DEPTH}",
    "plugin.reader_width=16", "evaluate.num_problems=6", "evaluate.samples=8",
    "oracle.num_problems=6", "oracle.budget=60", "engine.num_slots=32", "engine.max_new_tokens=16",
]  # fmt: skip


SIDE_BY_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
THREADS = max(1, torch.get_num_threads() // SIDE_BY_SIDE)  # for the real model, before tests are held to one


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Conversions of tests go to a scratch directory."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["OLLM_RL_CACHE"] = str(folder)
    (folder / "backbones").symlink_to(_made(REAL_CACHE / "backbones"))
    torch.set_num_threads(1)  # of models this small, two take twice as long as one
    yield folder


@pytest.fixture(autouse=True)
def nobody_elses_modules():
    """Modules of a user that a test wrote and imported: another test has its own under the same name."""
    yield
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def tiny() -> Session:
    """A converted tiny backbone in float32; shared, so tests must not change it."""
    session = make_session("tiny", "chain_sum", dtype="float32", convert=QUICK)
    session.engine_settings = {"num_slots": 16, "max_new_tokens": 20}
    return session


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster on this machine, the same for all tests."""
    import ray

    from ollm_rl.cluster.pool import start_ray

    start_ray("local", num_cpus=16)  # it does not look whether they exist
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def loaded_smollm2():
    return load_backbone("smollm2", dtype="float32")


@pytest.fixture
def smollm2(loaded_smollm2):
    """The real pretrained backbone in float32, on all threads that there are for a test."""
    torch.set_num_threads(THREADS)
    yield loaded_smollm2
    torch.set_num_threads(1)
