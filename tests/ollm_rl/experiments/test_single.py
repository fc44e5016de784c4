"""Sessions of a driver: what workers sample and convert is what one process does."""

import pytest

from ollm_rl.config.compose import compose
from ollm_rl.experiments.single import open_workers
from ollm_rl.session import collection
from tests.conftest import QUICK_KEYS

KEYS = [
    *QUICK_KEYS, "reward=tests.ollm_rl.cluster.faulty.reward", "convert.solutions=sampled", "convert.rounds=2", "convert.samples_per_problem=4",
    "convert.num_solutions=40", "rollout.num_cpus_per_worker=1", "rollout.chunk=16",
]  # fmt: skip


@pytest.mark.usefixtures("cluster")
def test_workers_sample_solutions_as_one_process_does(own_cache, tmp_path, monkeypatch):
    (own_cache / "reward-failed").touch()
    # A random model hardly ever ends a text.
    monkeypatch.setattr(
        collection, "_record", lambda e: {"text": e.text, "solved": e.solved, "cut": False, "judged": True}
    )
    monkeypatch.setattr(collection, "CHUNK", 8)
    found = []
    for n in (0, 2):
        monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path / str(n)))
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "reward-failed").touch()
        session = open_workers(compose([*KEYS, f"rollout.num_workers={n}"]), 0)
        try:
            report = session.task.sampled
            assert [r["sampler"] for r in report["sft"]["rounds"]] == [
                "the backbone",
                "the prior of what was found so far",
            ]
            found.append((report, session.task.problems("sft", 99), session.plugin.digest()))
        finally:
            session.close()
        assert list((tmp_path / str(n)).glob("solutions/*/texts.jsonl"))
    assert found[0] == found[1]
