"""Intervals, pass@k and degeneration against values worked out by hand."""

import itertools
import json

import pytest
import torch

from agents.prior import Prior
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.comparison import summarize
from ollm_rl.evaluation.config import EvaluateConfig
from ollm_rl.evaluation.evaluator import agent_name, evaluate, evaluate_agent
from ollm_rl.evaluation.metrics import (
    breakdown,
    diversity,
    foreign_script,
    pass_at_k,
    pool_breakdowns,
    repeats,
    sampled_metrics,
    wilson,
)
from ollm_rl.evaluation.records import Changes, Sampled, Share
from ollm_rl.evaluation.replay import changes, replay
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row
from ollm_rl.report.html import write_report
from ollm_rl.report.tables import all_tables
from ollm_rl.rollout.episode import Episode
from ollm_rl.tasks import Problem


def test_wilson():
    low, high = wilson(50, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson(0, 20)[0] == 0.0 and wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(8, 0, 8), (8, 1, 8), (8, 3, 4), (5, 2, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n, c, k):
    tries = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(tries, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_misbehaviour():
    assert repeats("one two three four five six " * 3)
    assert not repeats("6 + 0 = 6\n6 - 1 = 5\nThe answer is 5.")
    assert foreign_script("答え 5") and not foreign_script("α + é = 5")


def test_breakdown():
    """A problem counts in each of its domains; a column in which all are alike is left out."""

    def problem(domain, difficulty):
        return Problem("", "", "", None, {"domain": domain, "difficulty": difficulty, "source": "A"})

    judged = [
        (problem(["Mathematics -> Algebra -> X", "Mathematics -> Algebra -> Y"], 1.5), True),
        (problem(["Mathematics -> Algebra -> X", "Mathematics -> Geometry"], 2.0), False),
        (problem("Geometry", 10), True),
    ]
    found = breakdown(judged)
    assert {k: (v.n, v.accuracy) for k, v in found["domain"].items()} == {
        "Algebra": (2, 0.5),
        "Geometry": (2, 0.5),
    }
    assert list(found["difficulty"]) == ["1.5", "2.0", "10"] and "source" not in found
    many = breakdown([(problem("G", i / 4), i % 2 == 0) for i in range(40)])["difficulty"]
    assert list(many)[:2] == ["0 to 1", "1 to 2"] and many["9 to 10"].n == 4
    twice = pool_breakdowns([found, found])
    assert twice["domain"]["Algebra"].n == 4 and twice["domain"]["Algebra"].accuracy == 0.5


def episodes(*answers: str | None, gold: str = "2") -> list[Episode]:
    return [Episode(Problem("", "", gold), answer=a, reward=float(a in (gold, f"{gold}.0", "4/2"))) for a in answers]


@pytest.mark.parametrize("k", [1, 3, 4, 8, 16])
def test_figures_of_any_number_of_samples(k):
    groups = [["2"] * k, ["3"] * k, ["2"] + ["3"] * (k - 1)]
    [(measured, found)] = sampled_metrics([e for group in groups for e in episodes(*group)], k).items()
    assert measured == k
    assert found.avg == pytest.approx((1 + 0 + 1 / k) / 3)
    assert found.pass_ == pytest.approx(2 / 3)
    assert found.maj == pytest.approx(2 / 3 if k == 1 else 1 / 3)


def test_no_samples_have_no_figures(tiny):
    assert sampled_metrics([], 0) == sampled_metrics(episodes("2"), 0) == {}
    row = evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 3), 0).row
    assert not row.sampled
    assert not [key for key in row.to_dict() if key.startswith(("avg", "pass", "maj"))]
    with pytest.raises(ConfigurationError, match="evaluate.samples=-1; expected an integer from 0"):
        evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 3), -1)


def test_a_reward_that_is_not_about_answers_has_no_majority():
    texts = [Episode(Problem("", "", "2"), reward=1.0)] * 4
    assert sampled_metrics(texts, 4) == {4: Sampled(1.0, 1.0, None, (1.0, 1.0), (1.0, 1.0))}


def test_figures_at_several_numbers_of_samples():
    texts = [e for group in (["2", "3", "4", "3"], ["2", "2", "2", "3"]) for e in episodes(*group)]
    found = sampled_metrics(texts, 4, [4, 1, 2])
    assert list(found) == [1, 2, 4]
    assert found[1].pass_ == found[1].maj == pytest.approx((1 / 4 + 3 / 4) / 2)  # one text is its own majority
    assert found[4].maj == 0.5 and found[4].pass_ == 1.0
    for each in found.values():
        for mean, interval in ((each.pass_, each.pass_ci95), (each.maj, each.maj_ci95), (each.avg, each.avg_ci95)):
            assert interval[0] <= mean <= interval[1]
    with pytest.raises(
        ConfigurationError, match="evaluate.ks: 9 answers of evaluate.samples=8; expected numbers from 1 to 8"
    ):
        EvaluateConfig(ks=[1, 9])


def test_diversity():
    def text(*tokens):
        return Episode(Problem("", "", "2"), answer=str(tokens[-1]), tokens=list(tokens))

    same = [text(1, 2, 3)] * 4
    assert diversity(same, 4) == {"distinct_answers": 1.0, "text_distance": 0.0}
    assert diversity([text(1, 2, 3), text(4, 5, 6)], 2) == {"distinct_answers": 2.0, "text_distance": 1.0}
    half = diversity([text(1, 2), text(1, 3)], 2)  # one pair of neighbours of two is shared
    assert half["text_distance"] == 0.5
    assert diversity(same, 1) == diversity([], 0) == {}


def test_an_agent_is_evaluated_in_one_call(tiny, tmp_path):
    results = evaluate_agent(tiny, Prior(tiny), num_problems=5, samples=2, seed=3)
    assert (results.task, results.backbone, results.directory) == ("chain_sum", tiny.backbone.name, None)
    [row] = results.rows
    whole = evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 5, 3), 2, 3)
    assert row == whole.row and row.agent == "prior" and row.seed == 3 and list(row.sampled) == [2]
    with pytest.raises(ConfigurationError, match="num_problems=0; expected an integer from 1"):
        evaluate_agent(tiny, Prior(tiny), num_problems=0)


def test_texts_that_are_cut_off_are_said(tiny, caplog):
    found = evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 5), 0)
    cut = sum(e.truncated for e in found.greedy)
    said = f"prior: the token budget (engine.max_new_tokens) cut off {cut} of 5 greedy texts"
    assert cut > 2 and said in caplog.text


def test_what_is_evaluated_where_it_was_learned_is_kept_there(tiny, tmp_path):
    agent = Prior(tiny)
    agent.run_dir = tmp_path / "run"
    agent.run_dir.mkdir()
    lines = [{"step": i, "train_episodes": 64 * i, "train_seconds": 2.0 * i, "reward": 0.5} for i in (1, 2)]
    (agent.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = evaluate_agent(tiny, agent, num_problems=3, samples=2)
    [row] = results.rows
    assert (row.train_episodes, row.train_seconds, row.directory) == (128, 4.0, agent.run_dir)
    written = {
        name: (agent.run_dir / "rollouts" / f"{name}.jsonl").read_text().splitlines() for name in ("greedy", "sampled")
    }
    assert [len(lines) for lines in written.values()] == [3, 6]
    assert Results.load(agent.run_dir).rows == results.rows
    page = write_report(agent.run_dir).read_text()
    assert 'class="episode' in page and 'alt="learning_curve"' in page
    evaluate_agent(tiny, agent, num_problems=2, samples=0, directory=tmp_path / "elsewhere")
    assert Results.load(tmp_path / "elsewhere").rows[0].n_problems == 2


def test_an_agent_from_outside_is_called_by_its_class(tiny):
    class Stubborn(Prior):
        pass

    assert agent_name(Stubborn(tiny)) == "Stubborn" and agent_name(Prior(tiny)) == "prior"


def test_where_an_agent_departs_from_the_prior(tiny):
    """Counted again by hand from the replayed texts: by quarter of a text's decisions, and by the token before."""
    agent = Prior(tiny)
    with torch.no_grad():
        agent.policy.net[-1].bias += 3 * torch.randn(10, generator=torch.Generator().manual_seed(0))
    episodes = evaluate(tiny, agent, "other", tiny.problems("test", 12, 0), 0).greedy
    found = changes(tiny, episodes)
    quarters = [[0, 0] for _ in range(4)]
    for record in replay(tiny, episodes):
        asked = [step for step in record["steps"] if step["latent"] >= 0 and len(step["options"]) > 1]
        for number, step in enumerate(asked):
            of = quarters[number * 4 // len(asked)]
            of[0] += 1
            of[1] += max(step["options"], key=lambda option: option[2])[1] != step["token"]
    assert found.decisions == sum(all_ for all_, _ in quarters)
    assert list(found.by_quarter) == [pytest.approx(changed / max(1, all_)) for all_, changed in quarters]
    assert 0 < found.changed == sum(changed for _, changed in quarters) / found.decisions
    assert all(0 < share <= 1 and n >= 1 for _, n, share in found.after)
    same = changes(tiny, evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 12, 0), 0).greedy)
    assert same.changed == 0 and not any(same.by_quarter) and list(same.after) == []


def test_tables_say_where_it_decides_and_what_is_kept():
    def row(agent, accuracy, **more):
        return Row(agent=agent, n_problems=100, accuracy=accuracy, accuracy_ci95=(0, 1), **more)

    kept = {
        "4": Share(n=100, accuracy=0.3, accuracy_ci95=(0.2, 0.4)),
        "0.25": Share(n=100, accuracy=0.35, accuracy_ci95=(0.2, 0.4)),
    }
    moved = Changes(decisions=80, changed=0.1, by_quarter=[0.2, 0.1, 0.05, 0.05], after=[("\n", 40, 0.2)])
    results = Results([row("prior", 0.2), row("grpo", 0.6, hand_over=kept, changes=moved)], "task", "tiny")
    results = Results.from_dict(results.to_dict())
    results.pooled = []
    summarize(results)
    tables = {table.title: table for table in all_tables(results)}
    [cells] = tables["Handing over to the prior"].body
    assert cells[0] == "grpo" and cells[1].endswith("25%") and cells[2].endswith("37%") and cells[3].startswith("0.600")
    [cells] = tables["Where learned latents decide"].body
    assert cells[2:6] == ["20.0%", "10.0%", "5.0%", "5.0%"] and "20% of 40" in cells[6]
