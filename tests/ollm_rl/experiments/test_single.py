"""Sessions of a driver: what workers sample and convert is what one process does."""

import pytest

import ollm_rl as ol
from agents.prior import Prior
from ollm_rl.common.run_dir import NoRun
from ollm_rl.config.compose import compose
from ollm_rl.evaluation.rows import Row
from ollm_rl.experiments.single import open_workers, parameters_trained, seconds_from_nothing
from ollm_rl.session import collection
from tests.conftest import QUICK_KEYS

KEYS = [
    *QUICK_KEYS, "reward=tests.ollm_rl.cluster.faulty.reward", "convert.solutions=sampled", "convert.rounds=2", "convert.samples_per_problem=4",
    "convert.num_solutions=40", "rollout.num_cpus_per_worker=1", "rollout.chunk=16",
]  # fmt: skip


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
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


def test_what_was_trained_is_counted(tiny):
    plugin, policy = tiny.plugin.num_parameters, sum(p.numel() for p in Prior(tiny).policy.parameters())
    changed = Prior(tiny)
    assert parameters_trained(tiny, changed) == plugin  # which has the prior
    next(changed.policy.parameters()).data.add_(1)
    assert parameters_trained(tiny, changed) == plugin + policy
    assert parameters_trained(tiny, ol.make_agent("backbone", tiny)) == 0
    lora = ol.make_agent("lora_sft", tiny, rank=2)
    assert parameters_trained(tiny, lora) == lora.num_parameters
    row = Row(agent="prior", n_problems=1, accuracy=0, accuracy_ci95=(0, 1), train_seconds=3.0, setup_seconds=2.0)
    assert seconds_from_nothing(tiny, lora, row) == 5
    assert seconds_from_nothing(tiny, Prior(tiny), row) == 5 + tiny.conversion["seconds"]


def test_a_head_that_reads_what_the_reader_gives_has_its_parameters_and_seconds(tiny):
    """And nothing of the options, among which it does not choose."""
    head, row = (
        ol.make_agent("shortlist_head", tiny, num_solutions=40, sft_epochs=1),
        Row(agent="a", n_problems=1, accuracy=0, accuracy_ci95=(0, 1), train_seconds=5.0),
    )
    head.prepare(NoRun())
    reader = tiny.plugin.reader
    read = 0 if reader is None else sum(p.numel() for p in reader.parameters())
    assert parameters_trained(tiny, head) == read + sum(p.numel() for p in head.policy.parameters())
    assert head.setup_seconds > 0
    row.setup_seconds = head.setup_seconds
    of_reader = tiny.conversion["reader"]["seconds"] if read else 0.0
    assert seconds_from_nothing(tiny, head, row) == pytest.approx(5 + head.setup_seconds + of_reader)
