"""Episodes taken apart and put together."""

import torch

from agents.prior import Prior
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import pack, unpack
from ollm_rl.rollout.sampler import Request


def test_packed_episodes_come_back_whole(tiny):
    problems = tiny.problems("train", 6, 1)
    episodes = tiny.rollout([Request(p, i) for i, p in enumerate(problems)], PolicyAdapter(Prior(tiny), False))
    for dtype in (torch.float32, torch.bfloat16):
        for episode in episodes:
            if episode.hidden is not None:
                episode.hidden = episode.hidden.to(dtype)
        for old, new in zip(episodes, unpack(pack(episodes), problems), strict=True):
            assert new.to_dict() == old.to_dict()
            assert new.summary is not None and torch.equal(new.summary, old.summary)
            for name in ("hidden", "z", "log_probs", "mask"):
                a, b = getattr(old, name), getattr(new, name)
                assert (a is None and b is None) or (torch.equal(a, b) and a.dtype == b.dtype)


def test_episodes_without_decisions_or_states(tiny):
    problems = tiny.problems("train", 2, 1)
    requests = [Request(p, i, max_new_tokens=1) for i, p in enumerate(problems)]
    episodes = tiny.rollout(requests, PolicyAdapter(Prior(tiny), False), keep_hidden=False)
    assert [e.to_dict() for e in unpack(pack(episodes), problems)] == [e.to_dict() for e in episodes]
    assert unpack(pack([]), []) == []


def test_the_summary_of_a_text_is_its_last_state_and_their_mean(tiny):
    """Of all tokens, forced ones too, whichever rows its texts shared with others."""
    problems = tiny.problems("train", 5, 1)
    requests = [Request(p, seed) for p in problems for seed in range(3)]
    act = PolicyAdapter(Prior(tiny), False)
    for episode, all_asked in zip(
        tiny.rollout(requests, act, keep_hidden=False), tiny.rollout(requests, act, skip_forced=False), strict=True
    ):
        assert episode.tokens == all_asked.tokens and episode.hidden is None
        states = all_asked.hidden.float()
        assert len(states) == len(episode.tokens)
        assert torch.allclose(episode.summary[0], states[-1], atol=1e-4)
        assert torch.allclose(episode.summary[1], states.mean(0), atol=1e-4)
