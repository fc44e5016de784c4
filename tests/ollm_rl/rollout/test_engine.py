"""The rollout engine: equality with `generate`, independence of the batch, forks and forced runs."""

import re
import time

import pytest
import torch

from ollm_rl.errors import ConfigurationError
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.rollout.sampler import Request, rollout
from ollm_rl.tasks import ChainSum, Problem
from ollm_rl.tasks.prompts import Prompter


def uniform(hidden, mask, uniforms):
    """Inverse transform over the allowed latents, from the episode's own random numbers."""
    weights = mask.float() / mask.sum(-1, keepdim=True)
    z = torch.searchsorted(weights.cumsum(-1), uniforms[:, None]).clamp_max(mask.shape[1] - 1)[:, 0]
    return z, weights.gather(1, z[:, None])[:, 0].log()


def episodes(engine, requests, **settings):
    found = dict(rollout(engine, requests, uniform, **settings))
    return [found[i] for i in range(len(requests))]


def zero_decoder(backbone) -> OptionLM:
    plugin = PlugIn.beside(backbone, PlugInConfig(encoder_width=32, decoder_width=32, prior_width=32))
    plugin.decoder.zero_()
    return OptionLM(backbone, plugin.eval())


def greedy_by_generate(backbone, prompter, problems, max_new_tokens) -> list[list[int]]:
    """What `generate` says to each prompt, those of one length in one batch: nothing is padded."""
    by_length: dict[int, list[tuple[int, list[int]]]] = {}
    for i, problem in enumerate(problems):
        prompt = [*prompter.prefix, *prompter.encode(problem)]
        by_length.setdefault(len(prompt), []).append((i, prompt))
    found: list[list[int]] = [[] for _ in problems]
    for length, prompts in by_length.items():
        ids = torch.tensor([prompt for _, prompt in prompts])
        out = backbone.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
            eos_token_id=backbone.eos_ids, pad_token_id=0,
        )  # fmt: skip
        for (i, _), row in zip(prompts, out[:, length:].tolist(), strict=True):
            ends = [row.index(e) + 1 for e in backbone.eos_ids if e in row]
            found[i] = row[: min(ends, default=len(row))]
    return found


def varied_problems(n):
    words = ["short", "a longer question about numbers", "x", "what is the sum of one and two and three and four"]
    return [Problem(str(i), f"{words[i % 4]} {i} " + "7 + " * (i % 9) + "1?", "0") for i in range(n)]


def test_zero_decoder_equals_generate(tiny):
    prompter, problems = tiny.prompter, varied_problems(200)
    engine = RolloutEngine(zero_decoder(tiny.backbone), prompter, num_slots=7, max_new_tokens=12)
    found = episodes(engine, [Request(p, i) for i, p in enumerate(problems)])
    assert [e.tokens for e in found] == greedy_by_generate(tiny.backbone, prompter, problems, 12)
    assert all(e.num_decisions == 0 for e in found)


@pytest.mark.slow
def test_zero_decoder_equals_generate_on_smollm2(smollm2):
    prompter, problems = Prompter.for_task(smollm2, ChainSum()), varied_problems(72)
    engine = RolloutEngine(zero_decoder(smollm2), prompter, num_slots=16, max_new_tokens=16)
    found = episodes(engine, [Request(p, i) for i, p in enumerate(problems)])
    assert [e.tokens for e in found] == greedy_by_generate(smollm2, prompter, problems, 16)


@pytest.mark.parametrize("slots", [1, 7, 64])
def test_trajectories_do_not_depend_on_the_batch(tiny, slots):
    requests = [Request(p, 100 + i) for i, p in enumerate(varied_problems(24))]
    reference = episodes(RolloutEngine(tiny.lm, tiny.prompter, num_slots=3, max_new_tokens=15), requests)
    other = episodes(RolloutEngine(tiny.lm, tiny.prompter, num_slots=slots, max_new_tokens=15), requests)
    assert [e.tokens for e in other] == [e.tokens for e in reference]
    assert [e.latents for e in other] == [e.latents for e in reference]


def test_episodes_that_said_the_same_share_a_row(tiny):
    requests = [Request(p, 100 + i) for p in varied_problems(5) for i in range(6)]
    alone = RolloutEngine(tiny.lm, tiny.prompter, num_slots=1, max_new_tokens=15)
    together = RolloutEngine(tiny.lm, tiny.prompter, num_slots=30, max_new_tokens=15)
    expected, found = episodes(alone, requests), episodes(together, requests)
    assert [e.tokens for e in found] == [e.tokens for e in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.hidden, b.hidden, atol=1e-5, rtol=1e-4)
    # One decode step for each beginning that is continued, however many episodes have it.
    beginnings = {(e.problem.id, tuple(e.tokens[:i])) for e in found for i in range(1, len(e.tokens))}
    assert together.num_tokens == len(beginnings) < alone.num_tokens == sum(len(e.tokens) - 1 for e in expected)


def test_a_request_with_its_own_policy_is_played_by_it(tiny):
    def first(hidden, mask, uniforms):
        return torch.zeros(len(mask), dtype=torch.long), torch.zeros(len(mask))

    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=12, max_new_tokens=15)
    problems = varied_problems(4)
    alone = episodes(engine, [Request(p, i, first) for i, p in enumerate(problems)])
    sampled = episodes(engine, [Request(p, i) for i, p in enumerate(problems)])
    mixed = episodes(engine, [r for i, p in enumerate(problems) for r in (Request(p, i, first), Request(p, i))])
    assert [e.tokens for e in mixed[::2]] == [e.tokens for e in alone] != [e.tokens for e in sampled]
    assert [e.tokens for e in mixed[1::2]] == [e.tokens for e in sampled]


def test_equal_seeds_give_equal_episodes_and_other_seeds_others(tiny):
    problem = varied_problems(1)[0]
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=8, max_new_tokens=15)
    a, b, *rest = episodes(engine, [Request(problem, s) for s in (1, 1, 2, 3, 4, 5)])
    assert a.tokens == b.tokens
    assert any(e.tokens != a.tokens for e in rest)


def test_decisions_are_recorded_where_options_differ(tiny):
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=8, max_new_tokens=15)
    for episode in episodes(engine, [Request(p, i) for i, p in enumerate(varied_problems(8))]):
        assert episode.num_decisions == sum(z >= 0 for z in episode.latents)
        assert len(episode.tokens) == len(episode.latents) <= 15
        assert episode.stop == ("eos" if episode.tokens[-1] in tiny.backbone.eos_ids else "length")
        if episode.num_decisions:
            assert bool((episode.mask.sum(-1) > 1).all())
            assert bool(episode.mask.gather(1, episode.z[:, None]).all())
            assert episode.hidden.shape == (episode.num_decisions, tiny.plugin.state_size)


def test_without_skip_forced_every_position_is_a_decision(tiny):
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=8, max_new_tokens=9)
    for episode in episodes(engine, [Request(p, i) for i, p in enumerate(varied_problems(4))], skip_forced=False):
        assert episode.num_decisions == len(episode.tokens)


def test_a_forked_row_continues_like_its_origin(tiny):
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=6, max_new_tokens=15)
    prompts = [tiny.prompter.encode(p) for p in varied_problems(3)]
    engine.admit(prompts)
    engine.advance(torch.tensor([20, 21, 22]))
    engine.select(torch.tensor([0, 2, 2]))
    engine.advance(torch.tensor([30, 31, 31]))
    torch.testing.assert_close(engine.hidden[1], engine.hidden[2])
    single = RolloutEngine(tiny.lm, tiny.prompter, num_slots=1, max_new_tokens=15)
    single.admit([prompts[2]])
    single.advance(torch.tensor([22]))
    single.advance(torch.tensor([31]))
    torch.testing.assert_close(engine.hidden[2], single.hidden[0], atol=1e-5, rtol=1e-4)


def test_advancing_some_rows_leaves_the_others(tiny):
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=4, max_new_tokens=15)
    engine.admit([tiny.prompter.encode(p) for p in varied_problems(3)])
    before = engine.hidden.clone()
    engine.advance(torch.tensor([9]), torch.tensor([1]))
    torch.testing.assert_close(engine.hidden[[0, 2]], before[[0, 2]])
    assert not torch.allclose(engine.hidden[1], before[1])


def test_a_budget_gives_the_slots_that_fit(tiny):
    whole = RolloutEngine(tiny.lm, tiny.prompter, num_slots=8, max_new_tokens=15)
    whole.admit([tiny.prompter.encode(p) for p in varied_problems(2)])
    gib = (whole.kv.num_bytes * 5 / 8 + whole.prefix.num_bytes) / 2**30
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=8, max_new_tokens=15, kv_cache_gib=gib * 1.001)
    assert engine.num_slots == 5
    requests = [Request(p, 100 + i) for i, p in enumerate(varied_problems(24))]
    assert [e.tokens for e in episodes(engine, requests)] == [e.tokens for e in episodes(whole, requests)]
    assert engine.kv.num_bytes + engine.prefix.num_bytes <= gib * 1.001 * 2**30


def test_a_budget_for_no_episode_is_refused_with_one_that_would_do(tiny):
    with pytest.raises(
        ConfigurationError, match=r"kv_cache_gib=1e-09 does not hold one episode.* take ([0-9.]+) GiB"
    ) as e:
        RolloutEngine(tiny.lm, tiny.prompter, num_slots=8, max_new_tokens=15, kv_cache_gib=1e-9)
    enough = float(re.search(r"take ([0-9.]+) GiB", str(e.value))[1])
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=8, max_new_tokens=15, kv_cache_gib=enough)
    assert engine.num_slots >= 1


def test_a_request_has_a_budget_of_its_own(tiny):
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=4, max_new_tokens=15)
    problems = varied_problems(12)
    whole = episodes(engine, [Request(p, i) for i, p in enumerate(problems)])
    short = episodes(engine, [Request(p, i, max_new_tokens=1 + i) for i, p in enumerate(problems)])
    assert [e.tokens for e in short] == [e.tokens[: 1 + i] for i, e in enumerate(whole)]
    with pytest.raises(ConfigurationError, match="wants 16 new tokens"):
        episodes(engine, [Request(problems[0], max_new_tokens=16)])


def test_long_prompts_are_prefilled_in_parts(tiny, monkeypatch):
    requests = [Request(p, 100 + i) for i, p in enumerate(varied_problems(24))]
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=16, max_new_tokens=15)
    at_once = episodes(engine, requests)
    monkeypatch.setattr("ollm_rl.rollout.engine.PREFILL_TOKENS", 70)
    assert [e.tokens for e in episodes(engine, requests)] == [e.tokens for e in at_once]


def test_a_profile_accounts_for_the_whole_time(tiny):
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=8, max_new_tokens=15, profile=True)
    start = time.perf_counter()
    with engine.profiler.part("python"):
        episodes(engine, [Request(p, i) for i, p in enumerate(varied_problems(8))])
    taken = time.perf_counter() - start
    assert sum(engine.profiler.seconds.values()) == pytest.approx(taken, rel=0.05)
    assert all(engine.profiler.seconds[name] > 0 for name in ("prefill", "decode", "head", "options", "policy"))
    assert sum(engine.profiler.shares().values()) == pytest.approx(1)


def test_one_request_many_times_gives_as_many_episodes(tiny):
    request = Request(tiny.problems("test", 1)[0], seed=3)
    found = tiny.rollout([request] * 8, uniform)
    assert len(found) == 8 and len({id(e) for e in found}) == 8
    assert len({tuple(e.tokens) for e in found}) == 1


class Constant:
    """A policy whose method is another object each time that it is taken, and that has no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, z):
        self.z = z

    def __eq__(self, other):
        return isinstance(other, Constant) and self.z == other.z

    def act(self, hidden, mask, uniforms):
        return torch.full((len(hidden),), self.z), torch.full((len(hidden),), -float(self.z))

    __call__ = act


@pytest.mark.parametrize("take", [lambda c: c.act, lambda c: c])
def test_policies_of_requests_are_told_apart_by_what_they_are(tiny, take):
    """Equal ones that are not the same object were asked once, and the other's episodes got latent 0."""
    problem = tiny.problems("test", 1)[0]
    policies = [Constant(4), Constant(4), Constant(7)]
    requests = [Request(problem, i, act=take(policies[i % 3])) for i in range(6)]
    for i, episode in enumerate(tiny.rollout(requests, uniform, skip_forced=False)):
        assert set(episode.latents) == {policies[i % 3].z}
        assert set(episode.log_probs.tolist()) == {-float(policies[i % 3].z)}


def test_texts_longer_than_the_backbone_reads_are_refused(tiny, monkeypatch):
    """Before anything is generated; by the shared prefix alone, by a prompt, and in a list of problems by name."""
    prefix, longest = len(tiny.prompter.prefix), max(len(tiny.prompter.encode(p)) for p in tiny.problems("test", 20))
    monkeypatch.setattr(tiny.backbone, "context_limit", (prefix + longest + 20, "max_position_embeddings"))
    engine = tiny.new_engine(max_new_tokens=20)
    requests = [Request(p) for p in tiny.problems("test", 20)]
    assert len(list(rollout(engine, requests, uniform))) == 20
    long = Problem("long", "9 + " * longest + "9 = ?", "0")
    with pytest.raises(ConfigurationError, match="more than the .* positions .*Shorten the prompts"):
        next(rollout(engine, [*requests, Request(long)], uniform))
    monkeypatch.setattr(tiny.task, "problems", lambda *_: [*(r.problem for r in requests), long])
    with pytest.raises(ConfigurationError, match="problem long: a prompt of"):
        tiny.problems("train", 21)
    monkeypatch.setattr(tiny.backbone, "context_limit", (prefix + 10, "attention_chunk_size"))
    with pytest.raises(ConfigurationError, match="attention_chunk_size"):
        tiny.new_engine(max_new_tokens=20)


@pytest.mark.parametrize("budget", [2.1, 3.3, 6])
def test_where_rows_share_blocks_more_texts_say_the_same(tiny, monkeypatch, budget):
    """The budget holds `budget` of the longest texts; those that find no room wait, and are read anew."""
    requests = [Request(p, 100 + i) for i, p in enumerate(varied_problems(24))] * 2
    whole = RolloutEngine(tiny.lm, tiny.prompter, num_slots=48, max_new_tokens=60)
    expected = episodes(whole, requests)
    gib = (whole.kv.num_bytes * budget / 48 + whole.prefix.num_bytes) / 2**30
    monkeypatch.setattr("ollm_rl.rollout.engine.BLOCK", 4)
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=48, max_new_tokens=60, kv_cache_gib=gib)
    assert engine.num_slots < 10 and engine.max_rows == 48
    most, waited = 0, 0
    advance, lacking = engine.advance, engine.lacking

    def counted(tokens, rows=None):
        nonlocal most
        advance(tokens, rows)
        most = max(most, len(engine.lengths))

    def asked(rows):
        nonlocal waited
        short = lacking(rows)
        waited += bool(short)
        return short

    engine.advance, engine.lacking = counted, asked
    assert [e.tokens for e in episodes(engine, requests)] == [e.tokens for e in expected]
    assert most > engine.num_slots and waited
    assert engine.kv.num_bytes + engine.prefix.num_bytes <= gib * 2**30
    engine.clear()
    assert engine.kv.blocks.free == engine.kv.blocks.count
