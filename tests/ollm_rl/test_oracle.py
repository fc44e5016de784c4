"""The oracle against enumeration, and its budgets."""

import pytest

from ollm_rl.oracle import Oracle, summarise
from ollm_rl.replay import replay


@pytest.fixture
def prior(tiny):
    def log_probs(hidden, mask):
        return tiny.plugin.prior_logits(hidden).masked_fill(~mask, -1e9).log_softmax(-1)

    return log_probs


@pytest.fixture
def short(tiny):
    """Texts of at most 3 tokens, so that all of them can be listed."""
    tiny.engine_settings = {"num_slots": 64, "max_new_tokens": 3}
    tiny.__dict__.pop("engine", None)
    yield tiny
    tiny.engine_settings = {"num_slots": 16, "max_new_tokens": 20}
    tiny.__dict__.pop("engine", None)


def every_text(space, problem) -> set[tuple[int, ...]]:
    """All texts that some sequence of latents gives, one engine step at a time."""
    engine, texts, eos = space.new_engine(num_slots=4096), set(), space.backbone.eos_ids
    beginnings: list[list[int]] = [[]]
    while beginnings:
        engine.clear()
        engine.admit([space.prompter.encode(problem) + b for b in beginnings])
        grown = [
            [*b, int(token)]
            for b, tokens, mask in zip(beginnings, engine.options.tokens, engine.options.mask, strict=True)
            for token in tokens[mask]
        ]
        texts |= {tuple(t) for t in grown if len(t) == 3 or t[-1] in eos}
        beginnings = [t for t in grown if len(t) < 3 and t[-1] not in eos]
    return texts


def test_best_first_judges_every_text_once_and_likely_ones_first(short, prior, monkeypatch):
    problem = short.problems("test", 1)[0]
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(short, "judge", lambda episodes: seen.extend(tuple(e.tokens) for e in episodes))
    Oracle(short, prior, "best_first", budget=100_000, width=1).solve([problem])
    assert len(seen) == len(set(seen)) > 10
    assert set(seen) == every_text(short, problem)


def test_best_first_finds_what_enumeration_finds(short, prior, monkeypatch):
    problem = short.problems("test", 1)[0]
    wanted = sorted(every_text(short, problem))[::7]
    for text in wanted:

        def judge(episodes, text=text):
            for e in episodes:
                e.reward = float(tuple(e.tokens) == text)

        monkeypatch.setattr(short, "judge", judge)
        search = Oracle(short, prior, "best_first", budget=100_000, width=4).solve([problem])[0]
        assert search.solution is not None and tuple(search.solution.tokens) == text
        # The latents that it reports do give this text.
        offered = [{z: t for z, t, _ in s["options"]} for s in replay(short, [search.solution])[0]["steps"]]
        decode = short.backbone.tokenizer.decode
        for latent, token, options in zip(search.solution.latents, text, offered, strict=True):
            assert options[max(latent, 0)] == decode([token])


@pytest.mark.parametrize("search", ["best_first", "best_of_n"])
@pytest.mark.parametrize("budget", [7, 60])
def test_no_search_spends_more_than_its_budget(tiny, prior, search, budget):
    problems = tiny.problems("test", 5)
    found = Oracle(tiny, prior, search, budget=budget, width=3).solve(problems)
    assert all(0 < s.spent <= budget for s in found)
    row, curve = summarise(found, search, budget)
    assert row["accuracy"] == curve[-1]["solved"]


@pytest.mark.parametrize("search", ["best_first", "best_of_n"])
def test_more_budget_solves_more(tiny, prior, search, monkeypatch):
    def judge(episodes):
        for e in episodes:
            e.reward = float(sum(e.tokens) % 13 == 0)

    monkeypatch.setattr(tiny, "judge", judge)
    problems = tiny.problems("test", 8)
    solved = [
        {s.problem.id for s in Oracle(tiny, prior, search, budget, 2).solve(problems, seed=3) if s.solution}
        for budget in (20, 200, 2000)
    ]
    assert solved[0] <= solved[1] <= solved[2] and len(solved[2]) > len(solved[0])
