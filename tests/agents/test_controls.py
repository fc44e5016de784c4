"""Controls: each changes what it may change and nothing else, and is saved and read like any other agent."""

import shutil

import pytest
import torch

import ollm_rl as ol
from agents import controls
from agents.controls import BestPrefix, FirstDecisions, Local, Steer
from agents.grpo import GRPO
from agents.prior import Prior
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import TrainingError
from ollm_rl.evaluation.evaluator import evaluate, evaluate_hand_over
from ollm_rl.options.policies import LatentPolicy, Sampling
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.sampler import RECENT, Request

QUICK = dict(total_episodes=64, num_generations=4, problems_per_iteration=4, num_problems=20, min_entropy=0.0)
LEARNERS = {
    "steer": (Steer, {"learning_rate": 0.3}), "gated": (Steer, {"gated": True, "learning_rate": 0.3}),
    "first_decisions": (FirstDecisions, {"decisions": 2, "learning_rate": 1e-2}), "local": (Local, {"learning_rate": 1e-2}),
}  # fmt: skip


def greedy(session, agent, n=12):
    requests = [agent.request(p, i, True) for i, p in enumerate(session.problems("test", n, 0))]
    return session.rollout(requests, PolicyAdapter(agent, True))


@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_and_is_read_again(tiny, easy, tmp_path, name):
    kind, settings = LEARNERS[name]
    agent = kind(tiny, **QUICK, **settings)
    begun, identity = [e.tokens for e in greedy(tiny, agent)], agent.identity()
    assert begun == [e.tokens for e in greedy(tiny, Prior(tiny))]  # all begin as the prior
    assert identity == Prior(tiny).identity()  # so what that answered is not asked again
    prior = {k: v.clone() for k, v in LatentPolicy.from_prior(tiny.plugin).state_dict().items()}
    assert agent.learn(tmp_path / "run")["train_episodes"] == 64
    learned = [e.tokens for e in greedy(tiny, agent)]
    assert agent.identity() != identity
    if name != "first_decisions":  # the prior's own weights are what they were
        assert all(torch.equal(agent.policy.state_dict()[k], v) for k, v in prior.items())
    again = ol.load_agent(tmp_path / "run" / "policy", tiny)
    assert [e.tokens for e in greedy(tiny, again)] == learned
    assert again.identity() == agent.identity()


def test_after_its_first_decisions_the_prior_chooses(tiny):
    agent = FirstDecisions(tiny, decisions=2)
    with torch.no_grad():
        agent.policy.net[-1].bias[:] = -torch.arange(10.0) * 5  # another policy altogether
    prior = Prior(tiny)
    for episode in greedy(tiny, agent):
        chosen = [z for z in episode.latents if z >= 0]
        mine = agent.predict(episode.hidden, mask=episode.mask)
        others = prior.predict(episode.hidden, mask=episode.mask)
        assert chosen[:2] == mine.tolist()[:2] and chosen[2:] == others.tolist()[2:]
    sampled = agent.rollout([Request(p, i) for i, p in enumerate(tiny.problems("train", 8, 0))])
    assert all(e.num_kept <= 2 for e in sampled) and any(e.num_kept == 2 for e in sampled)


def test_a_local_policy_changes_the_prior_by_the_last_two_tokens_only(tiny):
    agent = Local(tiny)
    torch.nn.init.normal_(agent.policy.change[-1].weight)
    prior = LatentPolicy.from_prior(tiny.plugin)
    hidden = torch.randn(6, tiny.plugin.state_size, generator=torch.Generator().manual_seed(0))
    recent = torch.tensor([[5, 6], [5, 6], [6, 5], [5, 7], [9, 6], [5, 6]])
    change = agent.policy.net(agent.policy.standardize(hidden)) - prior.net(prior.standardize(hidden))
    assert not change.any()
    added = agent.policy(agent.policy.sees(hidden, recent)).detach() - prior(hidden).detach()
    added = added - added[:, :1]  # up to what normalises
    torch.testing.assert_close(added[1], added[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(added[5], added[0], atol=1e-4, rtol=1e-4)
    assert all(not torch.allclose(added[i], added[0], atol=1e-3) for i in (2, 3, 4))


def test_what_a_local_policy_sees_are_the_last_tokens_of_the_text(tiny):
    agent = Local(tiny)
    problems = tiny.problems("test", 6, 0)
    for episode in tiny.rollout([Request(p, i) for i, p in enumerate(problems)], Sampling(agent.policy)):
        text = [*tiny.prompter.encode(episode.problem), *episode.tokens]
        at = [len(text) - len(episode.tokens) + i for i, z in enumerate(episode.latents) if z >= 0]
        assert episode.hidden[:, -RECENT:].tolist() == [text[i - RECENT : i] for i in at]


def test_the_best_prefix_is_the_one_that_pays(tiny, monkeypatch, tmp_path):
    agent = BestPrefix(tiny, num_openings=6, num_problems=12, max_tokens=4)

    class Judge(type(tiny.judge)):
        """Pays for texts that begin as few do."""

        def __call__(self, episodes, prompter=None):
            for e in episodes:
                e.reward = float(tuple(e.tokens[: len(wanted)]) == wanted)

    said = tiny.rollout([Request(p, 5) for p in tiny.problems("train", 12, 0)], PolicyAdapter(agent, False))
    wanted = controls._frequent(tiny, [e.tokens[:4] for e in said], 6)[-1]
    monkeypatch.setattr(controls, "_frequent", lambda *_: [(3, 3), wanted, (4,)])
    monkeypatch.setattr(tiny, "judge", Judge(len))
    costs = agent.learn(tmp_path / "run")
    assert agent.opening == wanted and costs["train_episodes"] == 12 * 5
    found = greedy(tiny, ol.load_agent(tmp_path / "run" / "policy", tiny))
    assert all(
        tuple(e.tokens[: len(wanted)]) == wanted and e.latents[: len(wanted)] == [-1] * len(wanted) for e in found
    )


def test_the_choice_of_an_opening_goes_on_where_it_was(tiny, easy, tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "TOGETHER", 15)
    settings = dict(num_openings=4, num_problems=12, max_tokens=4)
    whole, run = BestPrefix(tiny, **settings), Run(tmp_path, "whole", "")
    costs = whole.learn(run)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut = Run(tmp_path, "cut", "")
    (cut.path / "checkpoints" / "latest").write_text("step_3\n")  # as a kill leaves it
    again = BestPrefix(tiny, **settings)
    monkeypatch.setattr(again, "_begin", None)  # the openings are known
    assert again.learn(cut)["train_tokens"] == costs["train_tokens"] and again.opening == whole.opening
    lines = [{k: v for k, v in line.items() if k != "train_seconds"} for line in cut.metrics()]
    assert lines == [{k: v for k, v in line.items() if k != "train_seconds"} for line in run.metrics()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and costs["train_episodes"] == 12 * 6


def test_an_opening_is_paid_by_the_texts_that_were_judged(tiny, tmp_path, monkeypatch):
    class Judge(type(tiny.judge)):
        """Has no opinion but on texts that begin with one of two tokens, and pays little for those."""

        def __call__(self, episodes, prompter=None):
            for e in episodes:
                e.judged = open_minded and e.tokens[0] in (3, 4)
                e.reward = -0.5 - 0.1 * (e.tokens[0] == 3) if e.judged else 0.0

    monkeypatch.setattr(controls, "_frequent", lambda *_: [(3,), (4,), (5,)])
    monkeypatch.setattr(tiny, "judge", Judge(len))
    open_minded = True
    agent = BestPrefix(tiny, num_problems=6)
    agent.learn(tmp_path / "run")
    assert agent.opening == (4,)
    open_minded = False
    with pytest.raises(TrainingError, match="gave None for every answer"):
        BestPrefix(tiny, num_problems=6).learn()


def test_handing_over_at_once_is_the_prior_and_never_is_the_agent(tiny, easy):
    agent = GRPO(tiny, **QUICK, learning_rate=1e-2)
    agent.learn()
    problems = tiny.problems("test", 12, 0)
    own = evaluate(tiny, agent, "grpo", problems, 0).greedy
    prior = Sampling(LatentPolicy.from_prior(tiny.plugin), deterministic=True)

    def texts(hand_over):
        requests = [agent.request(p, i, True) for i, p in enumerate(problems)]
        for request in requests:
            request.hand_over, request.then = hand_over, prior
        return [e.tokens for e in tiny.rollout(requests, prior)]

    assert texts(0) == [e.tokens for e in evaluate(tiny, Prior(tiny), "prior", problems, 0).greedy] != texts(10_000)
    assert texts(10_000) == [e.tokens for e in own]
    found = evaluate_hand_over(tiny, agent, own, [1, 0.5, 1000])
    assert list(found) == ["1", "0.5", "1000"] and all(x.n == 12 for x in found.values())
    assert found["1000"].accuracy == sum(e.solved for e in own) / 12
