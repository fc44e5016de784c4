"""What an agent may have: defaults, duck-typed classes, callbacks."""

import json
import pickle

import pytest
import torch

import ollm_rl as ol
from agents.distill import Distill
from agents.grpo import GRPO
from agents.shortlist_head import ShortlistHead
from ollm_rl.common.run_dir import NoRun, Run
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.evaluation.evaluator import evaluate, kl_from_start
from ollm_rl.session.agent import Adapted, Agent, adapt, declared
from ollm_rl.session.transport import make_current

QUICK = dict(total_episodes=64, num_generations=4, problems_per_iteration=4, num_problems=20)


class Favourite:
    """Only what docs/agents.md asks for."""

    def __init__(self, session, favourite=0):
        self.favourite = favourite

    def learn(self, run):
        run.log_metrics(1, {"reward": 0.5, "train_episodes": 4})
        return {"train_episodes": 4, "train_tokens": 0, "train_seconds": 0.0}

    def predict(self, hidden, deterministic=True):
        return torch.full((len(hidden),), self.favourite)

    def save(self, path):
        (path / "favourite").write_text(str(self.favourite))

    def load(self, path):
        self.favourite = int((path / "favourite").read_text())


class Watcher(ol.Callback):
    """Notes what it is called for; ends training after some iterations."""

    def __init__(self, stop_after=None):
        self.stop_after, self.calls = stop_after, []

    def on_training_start(self, agent):
        self.calls.append("start")

    def on_iteration_end(self, agent, step, metrics):
        self.calls.append((step, metrics.get("train_episodes")))
        metrics["mine"] = step
        return False if step == self.stop_after else None

    def on_training_end(self, agent):
        self.calls.append("end")


def test_a_class_that_inherits_nothing_gets_the_defaults(tiny, tmp_path):
    agent = ol.make_agent(Favourite, tiny, favourite=2)
    assert isinstance(agent, Adapted) and agent.favourite == 2 and agent.settings == {"favourite": 2}
    for name in ("trains_on", "needs_model", "acts_on_logits", "learns_from_rewards", "long_setup"):
        assert getattr(agent, name) is False and declared(Favourite, name) is False
    assert agent.identity() == "" and agent.policy is None and agent.acting_session is None
    agent.prepare(NoRun())
    problems = tiny.problems("test", 2)
    assert kl_from_start(tiny, agent, problems) is None
    episodes = evaluate(tiny, agent, "favourite", problems, 1).greedy
    assert all(z in (-1, 2) for e in episodes for z in e.latents)
    costs = agent.learn(str(tmp_path / "run"))
    assert costs["train_episodes"] == 4 and (tmp_path / "run" / "policy" / "favourite").read_text() == "2"
    again = ol.load_agent(tmp_path / "run" / "policy", tiny, agent=Favourite)
    assert again.favourite == 2


def test_what_it_has_besides_is_used(tiny):
    class More(Favourite):
        trains_on = learns_from_rewards = True
        prepared = 0

        def prepare(self, run):
            self.prepared += 1

        def identity(self):
            return "more"

        def divergence(self, episodes):
            return [1.5] * len(episodes)

        def policy(self, hidden, mask):
            return torch.zeros(len(hidden), 10).log_softmax(-1)

    agent = adapt(More(tiny), tiny)
    assert agent.trains_on and agent.learns_from_rewards and agent.identity() == "more"
    agent.learn()
    assert agent.prepared == 1
    assert kl_from_start(tiny, agent, tiny.problems("test", 2)) == 1.5
    assert len(ol.Oracle(tiny, agent.policy, budget=20).solve(tiny.problems("test", 1))) == 1


def test_one_with_a_limit_of_episodes_learns_from_rewards(tiny):
    class Limited(Favourite):
        def __init__(self, session, total_episodes=4):
            super().__init__(session)

    assert adapt(Limited(tiny)).learns_from_rewards and not adapt(Favourite(tiny)).learns_from_rewards


def test_it_can_be_sent(tiny):
    make_current(tiny)
    agent = pickle.loads(pickle.dumps(ol.make_agent(Favourite, tiny, favourite=3)))
    assert agent.favourite == 3 and agent.session is tiny


def test_a_missing_method_is_named(tiny):
    class Half:
        def __init__(self, session): ...
        def learn(self, run): ...
        def predict(self, hidden, deterministic=True): ...

    with pytest.raises(ConfigurationError, match="no method 'save'"):
        ol.make_agent(Half, tiny)


def test_callbacks_need_a_learn_that_takes_them(tiny):
    agent, watcher = ol.make_agent(Favourite, tiny), Watcher()
    with pytest.raises(ConfigurationError, match="takes no callbacks"):
        agent.learn(None, [watcher])

    class Calling(Favourite):
        def learn(self, run, callbacks=()):
            for callback in callbacks:
                callback.on_iteration_end(self, 1, {"train_episodes": 4})

    ol.make_agent(Calling, tiny).learn(None, [watcher])
    assert watcher.calls == ["start", (1, 4), "end"]


def test_callbacks_are_called_and_can_end_training(tiny, tmp_path):
    agent, run, watcher, other = GRPO(tiny, **QUICK), Run(tmp_path, "run", ""), Watcher(stop_after=2), Watcher()
    assert agent.learn(run, [watcher, other])["train_episodes"] == 32
    assert watcher.calls == other.calls == ["start", (1, 16), (2, 32), "end"]
    assert [m["mine"] for m in run.metrics()] == [1, 2]
    assert run.latest_checkpoint()[0] == 2
    GRPO(tiny, **QUICK).learn(run, [watcher])  # goes on with the third
    assert watcher.calls[4:] == ["start", (3, 48), (4, 64), "end"]


def test_a_checkpoint_is_written_when_training_is_ended_between_two(tiny, tmp_path):
    run = Run(tmp_path, "run", "")
    GRPO(tiny, **QUICK, save_every=10).learn(run, [Watcher(stop_after=3)])
    assert run.latest_checkpoint()[0] == 3


def test_rounds_of_distillation_are_iterations(tiny, tmp_path, monkeypatch):
    from ollm_rl.rollout.judge import Judge

    monkeypatch.setattr(tiny, "judge", Judge(lambda completion_ids, **_: [float(len(t) % 2) for t in completion_ids]))
    watcher = Watcher(stop_after=1)
    agent = Distill(tiny, rounds=3, problems_per_round=4, budget=60, epochs=1)
    agent.learn(None, [watcher])
    assert [c if isinstance(c, str) else c[0] for c in watcher.calls] == ["start", 1, "end"]
    assert watcher.calls[1][1] > 0


def test_a_head_is_fitted_when_it_is_prepared_and_not_before(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path / "cache"))
    agent = ShortlistHead(tiny, **QUICK, num_solutions=40, sft_epochs=1)
    assert not (tmp_path / "cache").exists() and agent.policy is None
    agent.prepare(NoRun())
    fitted = agent.policy
    agent.prepare(NoRun())
    assert agent.policy is fitted and list((tmp_path / "cache" / "heads").glob("*/head.json"))


def test_nothing_is_a_run_that_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = NoRun()
    run.log_metrics(1, {"a": 1})
    run.save_rollouts("x", [])
    run.save_checkpoint(1, lambda path: path.mkdir())
    run.truncate_metrics(0)
    assert run.metrics() == [] and run.latest_checkpoint() is None and run.file("x") is None
    with pytest.raises(ConfigurationError, match="writes nothing"):
        _ = run.path
    assert not list(tmp_path.iterdir())


def test_an_agent_inherits_what_it_does_not_say(tiny):
    class Zero(Agent):
        def predict(self, hidden, deterministic=True, mask=None, uniforms=None):
            return torch.zeros(len(hidden), dtype=torch.long)

    agent = Zero(tiny)
    assert agent.learn() == {"train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}
    assert adapt(agent) is agent and agent.settings == {} and json.dumps(agent.settings) == "{}"


class Forgets(Agent):
    """Learns, and would save nothing."""

    def _learn(self, run, callbacks):
        return {}

    def predict(self, hidden, deterministic=True, mask=None, uniforms=None):
        return torch.zeros(len(hidden), dtype=torch.long)


def test_a_learner_that_saves_nothing_is_refused(tiny):
    with pytest.raises(ConfigurationError, match="Forgets learns, but would save nothing"):
        ol.make_agent(Forgets, tiny)


def test_a_policy_is_refused_with_other_options(tiny, tmp_path):
    """Its latents mean something else there."""
    agent = ol.make_agent("prior", tiny)
    agent.save(tmp_path / "policy")
    others = ol.convert(
        tiny.backbone, tiny.task, num_solutions=60, num_heldout=20, epochs=1, prior_epochs=1, reader_epochs=1, seed=1
    )
    session = ol.Session(tiny.backbone, others, tiny.task)
    with pytest.raises(CheckpointError, match="plugin.path=.*policy/plugin"):
        ol.load_agent(tmp_path / "policy", session)
    assert ol.load_agent(tmp_path / "policy", tiny).identity() == agent.identity()
    session.close()


@pytest.mark.parametrize(
    ("reward", "said"), [(ol.MathVerify, "is a class; expected what it makes"), (5, "expected a function")]
)
def test_what_is_no_reward_is_said_at_once(tiny, reward, said):
    with pytest.raises(ConfigurationError, match=said):
        ol.Session(tiny.backbone, tiny.plugin, tiny.task, reward=reward)
