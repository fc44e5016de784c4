"""Searches without any verdict."""

import pytest
import torch

import ollm_rl as ol
from agents.controls import BestPrefix
from agents.prior import Prior
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.evaluation.replay import shown
from ollm_rl.options.config import ValueConfig
from ollm_rl.options.policies import Sampling
from ollm_rl.options.value import Value, fit_value
from ollm_rl.oracle.deployed import Deployed
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.search import Frontier
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.local import Session
from ollm_rl.session.value import give_values
from ollm_rl.tasks import Problem

PROBLEM = Problem("", "", "2")


def a_value(session, seed=0):
    torch.manual_seed(seed)
    value = Value(2 * session.plugin.state_size + 4, 8)
    for parameter in value.net.parameters():
        torch.nn.init.normal_(parameter)
    return value.eval().requires_grad_(False)


class Raises:
    """A judge that nobody may ask for a verdict."""

    def __init__(self, judge):
        self.judge = judge

    def __call__(self, episodes, prompter=None):
        raise AssertionError("a deployed search asked for a verdict")

    def read(self, episodes):
        self.judge.read(episodes)


@pytest.fixture
def no_verdict(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "judge", Raises(tiny.judge))
    return tiny


@pytest.mark.parametrize("search", ["best_first", "puct", "beam", "exhaustive", "best_of_n"])
@pytest.mark.parametrize("judge", ["value", "vote", "weighted_vote"])
def test_no_verdict_reaches_a_deployed_search(no_verdict, search, judge):
    oracle = Oracle(
        no_verdict, Prior(no_verdict).policy, search, budget=500, judge=judge, value=a_value(no_verdict), max_tries=6
    )
    problems = no_verdict.problems("test", 4)
    found = oracle.solve(problems)
    assert all(s.solution is not None and s.solution.tokens and not s.solution.reward for s in found)
    assert all(s.spent <= 500 and 1 <= s.tried <= 6 for s in found)
    again = oracle.solve(problems)
    assert [s.solution.tokens for s in again] == [s.solution.tokens for s in found]


def test_the_verdict_needs_a_judge_and_is_refused_without_one(no_verdict):
    with pytest.raises(AssertionError, match="asked for a verdict"):
        Oracle(no_verdict, Prior(no_verdict).policy, budget=50).solve(no_verdict.problems("test", 2))
    with pytest.raises(ConfigurationError, match="oracle.judge=value needs a learned verifier"):
        Oracle(no_verdict, Prior(no_verdict).policy, judge="value")


def test_trees_read_texts_as_rollouts_do(tiny):
    """The features of a text are the same whether it was sampled or found by a search."""
    policy, problems = Prior(tiny).policy, tiny.problems("test", 4)
    seen = {}

    class Keeps(Value):
        def forward(self, features):
            seen.setdefault("features", []).append(features)
            return super().forward(features)

    value = Keeps(2 * tiny.plugin.state_size + 4, 8)
    found = Oracle(tiny, policy, "best_first", budget=1000, judge="value", value=value, max_tries=1).solve(problems)
    [mine] = [torch.cat(seen["features"])]
    greedy = tiny.rollout([ol.Request(p) for p in problems], Sampling(policy, True), keep_hidden=False)
    assert [s.solution.tokens for s in found] == [e.tokens for e in greedy]
    theirs = torch.stack([e.features for e in greedy])
    order = [next(i for i, m in enumerate(mine) if torch.allclose(m, t, atol=1e-3)) for t in theirs]
    assert sorted(order) == list(range(len(problems)))


def test_what_is_read_of_a_text_does_not_depend_on_what_is_kept(tiny):
    problems = tiny.problems("test", 4)
    few = Session(tiny.backbone, tiny.plugin, tiny.task, tiny.judge, {**tiny.engine_settings, "kept_decisions": 3})
    requests = [ol.Request(p, i) for i, p in enumerate(problems)]
    one, other = (s.rollout(requests, PolicyAdapter(Prior(s), False)) for s in (tiny, few))
    assert any(e.dropped_decisions for e in other)
    for a, b in zip(one, other, strict=True):
        assert a.log_prob == pytest.approx(float(a.log_probs.sum()), abs=1e-4)
        assert torch.allclose(a.features, b.features, atol=1e-4)


def test_a_verifier_of_another_plug_in_is_refused(tiny, tmp_path):
    value = a_value(tiny)
    value.save_pretrained(tmp_path, fingerprint=tiny.backbone.fingerprint, plugin="another")
    with pytest.raises(CheckpointError, match="reads the states of another plug-in"):
        ol.make_agent("search", tiny, value=str(tmp_path))
    Value(7, 4).save_pretrained(tmp_path, fingerprint=tiny.backbone.fingerprint)
    with pytest.raises(CheckpointError, match="reads the states of another plug-in"):
        ol.make_agent("search", tiny, value=str(tmp_path))


def text(answer, value=0.5, log_prob=-1.0):
    found = Episode(PROBLEM, answer=answer, tokens=[1], value=value)
    found.log_prob = log_prob
    return found


def deployed(judge, *texts, most=8, accept=0.9):
    search = Deployed(PROBLEM, Frontier(), judge=judge, most=most, accept=accept)
    for each in texts:
        search.found(each, [])
    return search


def test_who_is_chosen():
    texts = [text("3", 0.6), text("3", 0.1), text("2", 0.8), text("3", 0.05), text("5", 0.7, -9.0), text("2", 0.2)]
    assert deployed("value", *texts).solution is texts[2]
    assert deployed("vote", *texts).solution is texts[0]
    assert deployed("weighted_vote", *texts).solution is texts[2]  # 1.0 for 2, 0.75 for 3
    even = [text("3", None, -5.0), text("2", None, -4.0)]
    assert deployed("vote", *even).solution is even[1]  # the likelier
    assert deployed("vote", text(None)).solution.answer is None
    assert deployed("vote").solution is None


def test_a_vote_ends_when_the_rest_cannot_change_it():
    votes = deployed("vote", most=8)
    asked = []
    while not votes.is_settled(1, True):
        asked.append(n := votes.wave(100))
        for _ in range(n):
            votes.found(text("2"), [])
    assert asked == [5]  # 5 of 8 are a majority, and no fewer are
    close = deployed("vote", *[text(a) for a in "2223"], most=8)
    assert not close.is_settled(1, True) and close.wave(100) == 2 and close.wave(1) == 1  # 5 to 1 with 2 left
    assert deployed("weighted_vote", *[text("2", 0.9)] * 5, most=8).is_settled(1, True)
    assert not deployed("weighted_vote", *[text("2", 0.5)] * 5, most=8).is_settled(1, True)


def test_a_text_that_is_likely_enough_ends_a_search():
    assert deployed("value", text("2", 0.95)).is_settled(1, True)
    assert not deployed("value", text("2", 0.85)).is_settled(1, True)
    assert not deployed("value", text("2", 0.95)).is_settled(1, False)
    assert [deployed("value", *[text("2")] * n, most=100).wave(8) for n in (0, 1, 2, 3, 4, 6, 20)] == [
        1,
        1,
        1,
        1,
        2,
        4,
        8,
    ]


def test_a_stored_search_has_its_text(tiny, tmp_path):
    oracle = Oracle(tiny, Prior(tiny).policy, budget=100, judge="value", value=a_value(tiny))
    problems, store = tiny.problems("test", 3), tmp_path / "searches.jsonl"
    first = oracle.solve(problems, store=store)
    again = oracle.solve(problems, store=store)
    assert [s.solution.text for s in again] == [s.solution.text for s in first]
    assert [s.solution.value for s in again] == [s.solution.value for s in first]


def test_the_search_agent_stands_in_evaluations(tiny, tmp_path):
    Prior(tiny).save(tmp_path / "policy")
    problems = tiny.problems("test", 5)
    with pytest.raises(ConfigurationError, match="agent.judge=value needs a learned verifier"):
        evaluate(tiny, ol.make_agent("search", tiny), "search", problems, 0)
    value = a_value(tiny)
    value.save_pretrained(tmp_path / "policy", fingerprint=tiny.backbone.fingerprint)
    for settings in ({}, {"search": "best_of_n", "judge": "weighted_vote", "max_tries": 4}):
        agent = ol.make_agent("search", tiny, **{"policy": str(tmp_path / "policy"), "budget": 200, **settings})
        found = evaluate(tiny, agent, "search", problems, 8)
        assert found.row.n_problems == 5 and not found.row.sampled and not found.sampled
        assert found.row.search.mean_tried >= 1 and 0 < found.row.search.mean_tokens <= 200
        assert [e.solved for e in found.greedy] == [bool(e.reward) for e in found.greedy]
    greedy = evaluate(tiny, Prior(tiny), "prior", problems, 0)
    nothing = evaluate(tiny, ol.make_agent("search", tiny, judge="vote", budget=1), "search", problems)
    assert nothing.row.accuracy == 0 and not any(e.tokens for e in nothing.greedy) and not shown(nothing.greedy)
    agent.save(tmp_path / "saved")  # with all that it needs
    moved = ol.load_agent(tmp_path / "saved", tiny)
    assert [a.episode.tokens for a in moved.answers(problems, 0)] == [
        a.episode.tokens for a in agent.answers(problems, 0)
    ]
    BestPrefix(tiny).save(tmp_path / "prefix")
    with pytest.raises(ConfigurationError, match="answers in a way of its own"):
        ol.make_agent("search", tiny, policy=str(tmp_path / "prefix"), judge="vote")
    one = ol.make_agent("search", tiny, judge="vote", max_tries=1)
    assert [e.tokens for e in evaluate(tiny, one, "search", problems).greedy] == [e.tokens for e in greedy.greedy]
    assert one.answers(problems, 0)[0].texts == 1


def test_a_verifier_is_learned_from_verdicts(tiny):
    """From features that say the verdict, it learns them; from those of one kind only, nothing can be learned."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(600, 12, generator=draw)
    solved = features[:, 3] > 0
    owner = torch.arange(100).repeat_interleave(6)
    value, found = fit_value(features, solved, owner, ValueConfig(dropout=0.1, epochs=10), 0)
    assert found["loss"] < 0.7 * found["base"]
    assert ((value(features) > 0.5) == solved).float().mean() > 0.9
    with pytest.raises(ol.errors.DataError, match="are wrong: it needs both"):
        fit_value(features, torch.zeros(600), owner, ValueConfig(), 0)


def test_values_see_no_verdict(tiny):
    value = a_value(tiny)
    episodes = tiny.rollout([ol.Request(p) for p in tiny.problems("test", 4)], Sampling(Prior(tiny).policy))
    give_values(value, episodes)
    before = [e.value for e in episodes]
    for e in episodes:
        e.reward = 1.0 - e.reward
    give_values(value, episodes)
    assert [e.value for e in episodes] == before


def gives_up(session):
    """A verifier for whom texts of an even number of decisions so far are wrong, and no whole text is sure."""
    value = a_value(session)
    value.beginnings = a_value(session, 1)
    seen = []

    def likely(features):
        seen.extend(features)
        return (features[:, -1].exp() - 1).round().remainder(2)

    value.beginnings.forward = likely
    return value, seen


@pytest.mark.parametrize("search", ["best_first", "puct", "exhaustive"])
def test_texts_that_will_not_be_right_are_left(tiny, search):
    value, seen = gives_up(tiny)
    settings = dict(budget=400, judge="value", value=value, max_tries=6, accept=1.0)
    problems = tiny.problems("test", 4)
    whole, left = (
        Oracle(tiny, Prior(tiny).policy, search, give_up=give_up, **settings).solve(problems) for give_up in (0, 0.5)
    )
    assert not any(s.given_up for s in whole) and any(s.given_up for s in left)
    for other in left:
        assert other.tried >= 1 and other.tried + other.given_up <= 6 + tiny.engine.num_slots
        assert other.solution is not None  # the first text is never left
    tokens = [sum(s.spent for s in found) / sum(s.tried + s.given_up for s in found) for found in (whole, left)]
    assert tokens[1] < tokens[0]
    assert seen[0].shape == (2 * tiny.plugin.state_size + 4,)


def test_what_is_read_of_a_beginning_is_what_was_learned_from(tiny):
    """Of the same text, the tree reads what `Episode.beginnings` gives."""
    value, seen = gives_up(tiny)
    [problem] = tiny.problems("test", 1)
    Oracle(tiny, Prior(tiny).policy, give_up=0.5, budget=400, judge="value", value=value, max_tries=1).solve([problem])
    [episode] = tiny.rollout([ol.Request(problem)], Sampling(Prior(tiny).policy, deterministic=True))
    rows = episode.beginnings(1000)
    assert len(rows) == episode.num_kept - 1 == len(seen) - 1
    assert torch.allclose(rows, torch.stack(seen[1:]), atol=2e-2)
    few = episode.beginnings(3)
    assert torch.equal(few[0], rows[0]) and torch.equal(few[-1], rows[-1]) and len(few) == 3
    assert not len(
        tiny.rollout([ol.Request(problem)], Sampling(Prior(tiny).policy), keep_hidden=False)[0].beginnings(3)
    )


def test_giving_up_needs_a_verifier_that_has_learned_it(tiny):
    policy = Prior(tiny).policy
    with pytest.raises(ConfigurationError, match="has learned from whole texts only"):
        Oracle(tiny, policy, judge="value", value=a_value(tiny), give_up=0.1)
    for settings in ({"judge": "vote"}, {"judge": "value", "search": "beam"}, {}):
        with pytest.raises(ConfigurationError, match="give_up=0.1; expected 0 for"):
            Oracle(tiny, policy, value=a_value(tiny), give_up=0.1, **settings)
    with pytest.raises(ConfigurationError, match="agent.give_up=0.1; expected 0 for best_of_n"):
        ol.make_agent("search", tiny, search="best_of_n", give_up=0.1)
