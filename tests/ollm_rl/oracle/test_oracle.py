"""The oracle against enumeration, and its budgets."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from ollm_rl.common.config_files import members
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.replay import replay
from ollm_rl.models.loading import load_backbone
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.oracle.config import SEARCHES, TREES
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.search import FRONTIERS
from ollm_rl.oracle.summary import summarize_searches
from ollm_rl.session.local import Session
from ollm_rl.tasks import ChainSum


@pytest.fixture
def prior(tiny):
    def log_probs(hidden, mask):
        return tiny.plugin.prior_logits(hidden).masked_fill(~mask, -1e9).log_softmax(-1)

    return log_probs


def every_text(session, problem) -> set[tuple[int, ...]]:
    """All texts that some sequence of latents gives, one engine step at a time."""
    engine, texts, eos = session.new_engine(num_slots=4096), set(), session.backbone.eos_ids
    beginnings: list[list[int]] = [[]]
    while beginnings:
        engine.clear()
        engine.admit([session.prompter.encode(problem) + b for b in beginnings])
        grown = [
            [*b, int(token)]
            for b, tokens, mask in zip(beginnings, engine.options.tokens, engine.options.mask, strict=True)
            for token in tokens[mask]
        ]
        texts |= {tuple(t) for t in grown if len(t) == 3 or t[-1] in eos}
        beginnings = [t for t in grown if len(t) < 3 and t[-1] not in eos]
    return texts


@pytest.mark.parametrize("search", FRONTIERS)
@pytest.mark.parametrize("width", [1, 5])
def test_a_tree_search_judges_every_text_once(short, prior, monkeypatch, search, width):
    problem = short.problems("test", 1)[0]
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(short, "judge", lambda episodes, prompter=None: seen.extend(tuple(e.tokens) for e in episodes))
    found = Oracle(short, prior, search, budget=100_000, width=width).solve([problem])[0]
    assert found.tried == len(seen)
    assert len(seen) == len(set(seen)) > 10
    assert set(seen) == every_text(short, problem)


def test_best_first_finds_what_enumeration_finds(short, prior, monkeypatch):
    problem = short.problems("test", 1)[0]
    wanted = sorted(every_text(short, problem))[::7]
    for text in wanted:

        def judge(episodes, prompter=None, text=text):
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


@pytest.mark.parametrize("search", [s for s in SEARCHES if s != "teacher_forced"])
@pytest.mark.parametrize("budget", [7, 60])
def test_no_search_spends_more_than_its_budget(tiny, prior, search, budget):
    problems = tiny.problems("test", 5)
    found = Oracle(tiny, prior, search, budget=budget, width=3).solve(problems)
    assert all(0 < s.spent <= budget for s in found)
    row, curve = summarize_searches(found, search, budget)
    assert row.accuracy == curve[-1].solved


@pytest.mark.parametrize("search", ["best_first", "puct", "beam", "best_of_n"])
def test_more_budget_solves_more(tiny, prior, search, monkeypatch):
    def judge(episodes, prompter=None):
        for e in episodes:
            e.reward = float(sum(e.tokens) % 13 == 0)

    monkeypatch.setattr(tiny, "judge", judge)
    problems = tiny.problems("test", 8)
    solved = [
        {s.problem.id for s in Oracle(tiny, prior, search, budget, 2).solve(problems, seed=3) if s.solution}
        for budget in (20, 200, 2000)
    ]
    assert solved[0] <= solved[1] <= solved[2] and len(solved[2]) > len(solved[0])


def random_space(seed: int) -> Session:
    """A random option LM: 2 to 4 options, texts of 2 to 6 tokens."""
    draw = np.random.default_rng(seed)
    backbone = load_backbone("tiny", "float32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = PlugInConfig(
            int(draw.integers(2, 5)),
            shortlist=16,
            encoder_width=16,
            decoder_width=16,
            prior_width=16,
            init_scale=0.3,
            reader_width=16,
        )
        plugin = PlugIn.beside(backbone, sizes).eval()
        torch.nn.init.normal_(plugin.decoder.writes.weight, std=float(draw.uniform(0.2, 1.0)))
    return Session(backbone, plugin, ChainSum(), engine={"num_slots": 64, "max_new_tokens": int(draw.integers(2, 7))})


def finds_what_exhaustive_finds(seed: int, monkeypatch) -> tuple[bool, int]:
    """Every tree search solves the problem exactly if `exhaustive` does; whether it does, and the number of texts."""
    session = random_space(seed)
    problem = session.problems("test", 1, seed)[0]
    chance = np.random.default_rng(seed)

    def judge(episodes, prompter=None):
        for e in episodes:  # one text in `rare` is right, whichever search asks
            e.reward = float(hash((rare, *e.tokens)) % rare == 0)

    def log_probs(hidden, mask):
        return session.plugin.prior_logits(hidden).masked_fill(~mask, -1e9).log_softmax(-1)

    monkeypatch.setattr(session, "judge", judge)
    rare = int(chance.choice([2, 10, 50, 10**9]))
    solved, tried = {}, 0
    for search in FRONTIERS:
        width = int(chance.integers(1, 65))
        found = Oracle(session, log_probs, search, budget=10**9, width=width).solve([problem])[0]
        solved[search] = found.solution is not None
        tried = max(tried, found.tried)
        assert found.solution is None or hash((rare, *found.solution.tokens)) % rare == 0
        assert len({solved[s] for s in solved}) == 1, (seed, solved)
    return solved["exhaustive"], tried


@pytest.mark.slow
@pytest.mark.parametrize("models", [range(12), range(12, 120)])
def test_every_tree_search_finds_what_exhaustive_finds(models, monkeypatch):
    found = [finds_what_exhaustive_finds(seed, monkeypatch) for seed in models]
    assert {solvable for solvable, _ in found} == {True, False}
    assert max(texts for _, texts in found) > 50


def facts(search) -> dict:
    """A search without its log-probabilities, whose last digits depend on the size of a batch."""
    return {**search.record(), "choices": [(c.position, c.rank) for c in search.choices]}


@pytest.mark.slow
def test_a_search_does_not_depend_on_its_neighbours(tiny, prior, monkeypatch):
    monkeypatch.setattr(tiny, "judge", accept_one_in(40))
    problems = tiny.problems("test", 9)
    for i, search in enumerate(("best_first", "puct", "beam")):
        together = Oracle(tiny, prior, search, 300, 4).solve(problems)
        alone = [Oracle(tiny, prior, search, 300, 4).solve([p])[0] for p in problems[i::3]]
        assert [facts(s) for s in together[i::3]] == [facts(s) for s in alone]


def test_resumed_it_gives_the_same_searches(tiny, prior, monkeypatch, tmp_path):
    monkeypatch.setattr(tiny, "judge", accept_one_in(40))
    problems = tiny.problems("test", 9)
    for search in ("best_first", "best_of_n"):
        store = tmp_path / f"{search}.jsonl"
        whole = Oracle(tiny, prior, search, 300, 4).solve(problems, 3, store)
        lines = store.read_text().splitlines(keepends=True)
        assert len(lines) == 9
        for written in (4, 0):  # killed while it wrote the fifth, or the first
            store.write_text("".join(lines[:written]) + lines[written][:20])
            resumed = Oracle(tiny, prior, search, 300, 4).solve(problems, 3, store)
            assert [facts(s) for s in resumed] == [facts(s) for s in whole]
        assert summarize_searches(resumed, search, 300)[1] == summarize_searches(whole, search, 300)[1]
        assert {json.loads(line)["problem_id"] for line in store.read_text().splitlines()} == {p.id for p in problems}


def accept_one_in(rare: int):
    def judge(episodes, prompter=None):
        for e in episodes:
            e.reward = float(sum(e.tokens) % rare == 0)

    return judge


def test_without_memory_beginnings_are_computed_again_and_counted(tiny, prior, monkeypatch):
    monkeypatch.setattr(tiny, "judge", lambda episodes, prompter=None: None)
    problems = tiny.problems("test", 4)
    kept = Oracle(tiny, prior, "best_first", 200, 4).solve(problems)
    poor = Oracle(tiny, prior, "best_first", 200, 4, keep_gib=0).solve(problems)
    assert sum(s.recomputed for s in kept) == 0 < sum(s.recomputed for s in poor)
    row, _ = summarize_searches(poor, "best_first", 200)
    assert row.search.computed_over_distinct == pytest.approx(1 + row.search.recomputed_tokens / row.search.mean_tokens)


def test_a_verdict_that_times_out_is_counted_and_stops_nothing(tiny, prior, monkeypatch):
    def judge(episodes, prompter=None):
        for e in episodes:
            e.verdict = "timeout"

    monkeypatch.setattr(tiny, "judge", judge)
    row, _ = summarize_searches(
        Oracle(tiny, prior, "best_first", 100, 2).solve(tiny.problems("test", 3)), "best_first", 100
    )
    assert row.search.verifier_timeouts == pytest.approx(3 * row.search.mean_tried) and row.search.verifier_timeouts > 3


def test_limits_on_verdicts_and_time_end_a_search_with_what_it_has(tiny, prior, monkeypatch):
    monkeypatch.setattr(tiny, "judge", lambda episodes, prompter=None: None)
    problems = tiny.problems("test", 3)
    assert all(s.tried <= 5 for s in Oracle(tiny, prior, "best_first", 10**6, 1, max_tries=5).solve(problems))
    start = time.monotonic()
    found = Oracle(tiny, prior, "best_first", 10**6, 4, max_seconds=0.5).solve(problems)
    assert time.monotonic() - start < 5 and all(0 < s.spent < 10**6 for s in found)


def test_a_search_that_goes_on_finds_shorter_texts(tiny, prior, monkeypatch):
    monkeypatch.setattr(tiny, "judge", accept_one_in(3))
    found = Oracle(tiny, prior, "best_first", 1500, 8, stop_when_solved=False).solve(tiny.problems("test", 6))
    assert all(len(s.shortest.tokens) <= len(s.solution.tokens) for s in found)
    assert any(len(s.shortest.tokens) < len(s.solution.tokens) for s in found)


def test_deviations_are_those_of_the_solution(tiny, prior, monkeypatch):
    monkeypatch.setattr(tiny, "judge", accept_one_in(40))
    solved = [s for s in Oracle(tiny, prior, "best_first", 500, 4).solve(tiny.problems("test", 9)) if s.solution]
    for search in solved:
        latents = search.solution.latents
        assert [c.position for c in search.choices] == [i for i, z in enumerate(latents) if z >= 0]
    first = [s for s in solved if s.tried == 1]
    assert all(c.rank == 0 for s in first for c in s.choices)
    assert any(c.rank > 0 for s in solved if s.tried > 1 for c in s.choices)


def test_the_configuration_knows_the_searches():
    """It names them apart, for checking a key should not import torch."""
    assert set(members("oracle")) == set(SEARCHES)
    assert set(FRONTIERS) == set(TREES)


def test_an_unknown_search_is_refused(tiny, prior):
    with pytest.raises(ConfigurationError, match="best_first, .*best_of_n"):
        Oracle(tiny, prior, "bestfirst")


def test_a_beam_wider_than_the_engine_is_as_wide_as_the_engine(tiny, prior, monkeypatch):
    monkeypatch.setattr(tiny, "judge", lambda episodes, prompter=None: None)
    slots = tiny.engine.num_slots
    found = Oracle(tiny, prior, "beam", 600, 4 * slots).solve(tiny.problems("test", 2))
    narrow = Oracle(tiny, prior, "beam", 600, slots).solve(tiny.problems("test", 2))
    assert [facts(s) for s in found] == [facts(s) for s in narrow]


@pytest.mark.parametrize("search", ["best_first", "best_of_n"])
def test_problems_with_one_id_are_searched_each_by_itself(tiny, prior, monkeypatch, tmp_path, search):
    monkeypatch.setattr(tiny, "judge", accept_one_in(40))
    problems = tiny.problems("test", 6)
    same = [replace(p, id="1" if i % 2 else p.id) for i, p in enumerate(problems)]
    store = tmp_path / "searches.jsonl"
    found = Oracle(tiny, prior, search, 300, 4).solve(same, 3, store)
    assert all(s.tried > 0 for s in found)
    assert [s.problem.problem for s in found] == [p.problem for p in problems]
    if search == "best_first":  # which knows nothing of ids
        apart = Oracle(tiny, prior, search, 300, 4).solve(problems, 3)
        assert [s.shortest.tokens if s.shortest else None for s in found] == [
            s.shortest.tokens if s.shortest else None for s in apart
        ]
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:4]))
    resumed = Oracle(tiny, prior, search, 300, 4).solve(same, 3, store)
    assert [facts(s) for s in resumed] == [facts(s) for s in found]
    assert sorted(json.loads(line)["position"] for line in store.read_text().splitlines()) == list(range(6))


def test_searches_that_an_earlier_release_stored_are_read(tiny, prior, monkeypatch, tmp_path):
    """Without places: an id says which problem is meant, unless two have it."""
    monkeypatch.setattr(tiny, "judge", accept_one_in(40))
    problems = tiny.problems("test", 4)
    problems[3] = replace(problems[3], id=problems[2].id)
    store = tmp_path / "searches.jsonl"
    whole = Oracle(tiny, prior, "best_first", 300, 4).solve(problems, 3, store)
    records = [json.loads(line) for line in store.read_text().splitlines()]
    for record in records:
        del record["position"]
    store.write_text("".join(json.dumps(record) + "\n" for record in reversed(records)))
    searched = []
    spread = tiny.map
    monkeypatch.setattr(tiny, "map", lambda f, items, *args: searched.extend(items) or spread(f, items, *args))
    again = Oracle(tiny, prior, "best_first", 300, 4).solve(problems, 3, store)
    assert [at for at, _ in searched] == [2, 3]
    assert [facts(s) for s in again] == [facts(s) for s in whole]


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"texts": 0}, {"budget": 0}, {"width": 0}])
def test_a_search_that_could_not_begin_is_refused(tiny, prior, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ConfigurationError, match=f"{name}={value}; expected (null or )?(an integer from 1|at least 1)"):
        Oracle(tiny, prior, **wrong)
