"""What the benchmarks compute from what they measure."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import oracle as oracle_benchmark
import rollout as rollout_benchmark
import rollout_long
import rollout_sections as sections
import rollout_step

from ollm_rl.models.loading import load_backbone
from ollm_rl.oracle.search import Frontier, Search
from ollm_rl.tasks import Problem


def test_a_ratio_that_fell_by_more_than_a_tenth_is_named():
    committed = {"ratio_to_generate": 10.0, "ratio_to_limit": 0.9, "ratio_to_rows": 0.8}
    assert (
        rollout_benchmark.worse({"ratio_to_generate": 9.1, "ratio_to_limit": 0.82, "ratio_to_rows": 0.8}, committed)
        == []
    )
    complaints = rollout_benchmark.worse({"ratio_to_generate": 8.9, "ratio_to_limit": 0.9}, committed)
    assert len(complaints) == 1 and "ratio_to_generate is 8.90" in complaints[0]


def test_a_step_that_takes_a_tenth_more_of_its_products_is_named():
    def step(shared):
        return {"step": {"32": {"ratio_to_products": {"shared": shared, "own": 1.0}}}}

    assert rollout_benchmark.worse(step(1.05), step(1.0)) == []
    assert rollout_benchmark.worse({"ratio_to_rows": 0.1}, step(1.0)) == []
    [complaint] = rollout_benchmark.worse(step(1.2), step(1.0))
    assert "step.32.ratio_to_products.shared is 1.20, more than 10% above the committed 1.00" in complaint


def test_steps_and_long_texts_are_measured(tiny):
    [found] = rollout_step.step(tiny, repeats=1, rows=(3,), context=20, steps=1).values()
    assert set(found["ratio_to_products"]) == {"shared", "own", "uncompiled"} and min(found["ms"].values()) > 0
    long = rollout_long.long(tiny, rows_of_budget=2, texts=24, length=64, most=1024, repeats=1)
    assert long["at_once_over_whole"] > 2 and long["episodes"]["whole"]["most_at_once"] == 2


def test_long_tailed_lengths_have_the_mean_and_the_tail():
    lengths = sections.long_tailed(2000, 0)
    assert lengths.mean() == pytest.approx(40, rel=0.01)
    assert lengths.max() == 400 and lengths.min() >= 1 and sorted(lengths)[1000] < 30


def test_sections_measure_the_tiny_model(tiny):
    found = sections.occupancy(tiny, episodes=60, slots=8)
    assert 0.3 < found["occupancy"] <= found["occupancy_while_requests_wait"] <= 1
    envs = sections.environments(tiny, num_envs=4, episodes=16, repeats=1)
    assert envs["env_tokens_per_s"] > 0 and envs["single_over_bare"] > 0
    assert sections.memory(tiny, kv_cache_gib=0.01, episodes=20)["slots"] <= 256
    rates = sections.decode_rates(tiny.lm, 4, 8, steps=6, repeats=1)
    assert set(rates["tokens_per_s"]) == {"prefill", "engine", "without_graphs", "limit", "generate"}
    assert rates["ratio_to_generate"] > 0 and min(rates["tokens_per_s"].values()) > 0


def test_training_is_timed_on_a_backbone_of_its_own():
    assert set(sections.training_rates(load_backbone("tiny", "float32"), length=8, texts=2, repeats=1)) == {
        "forward",
        "lora_update",
    }


def test_tokens_to_reach_a_share_count_what_the_unsolved_spent():
    searches = [Search(Problem(str(i), "", ""), Frontier()) for i in range(4)]
    for search, spent, solved_at in zip(searches, (10, 20, 40, 100), (10, 20, 40, None), strict=True):
        search.spent, search.solved_at = spent, solved_at
    assert oracle_benchmark.tokens_to_reach(searches, 0.5) == (10 + 20 + 20 + 20) / 4
    assert oracle_benchmark.tokens_to_reach(searches, 0.75) == (10 + 20 + 40 + 40) / 4
    assert oracle_benchmark.tokens_to_reach(searches, 1.0) is None
