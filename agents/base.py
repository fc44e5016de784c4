"""What the trained agents share: a small latent policy.

`Agent` (`ollm_rl.session.agent`) says what an agent may have. It is any class that can be called with a session and its
settings, and has `learn`, `predict`, `save` and `load`; `docs/agents.md` shows one in a file of its own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ollm_rl.common.finite import check_finite, check_weights
from ollm_rl.errors import ConfigurationError
from ollm_rl.options.modules import digest
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.options.policies import LatentPolicy, choose
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.agent import Agent
from ollm_rl.session.base import BaseSession
from ollm_rl.tasks import Problem, Task
from ollm_rl.tasks.base import worked

__all__ = ["Agent", "PolicyAgent", "check_worked", "digest", "has_some", "model_of"]
FEW = 64  # problems that are looked at first: to generate all takes seconds


def model_of(session: BaseSession, agent: str) -> OptionLM:
    """The option LM, for agents that need it in this process.

    Raises:
        ConfigurationError: it is on Ray workers.
    """
    if session.lm is None:
        raise ConfigurationError(f"agent={agent} needs the model in its own process; use rollout=local")
    return session.lm


def has_some(task: Task, n: int, seed: int, wanted: Callable[[Problem], bool]) -> bool:
    """Whether one of `n` problems of split `sft` is as `wanted`."""
    return any(any(map(wanted, task.problems("sft", few, seed))) for few in (min(n, FEW), n))


def check_worked(task: Task, n: int, seed: int, agent: str) -> None:
    """For `Agent.check_task` of one that is fitted to solutions.

    Raises:
        DataError: none of the `n` problems has one.
    """
    if not has_some(task, n, seed, lambda problem: problem.solution is not None):
        worked(task.problems("sft", n, seed), task.name, f"agent={agent} (split 'sft')")


class PolicyAgent(Agent):
    """An agent that acts by a `LatentPolicy`."""

    policy: LatentPolicy
    policy_class: ClassVar[type[LatentPolicy]] = LatentPolicy

    def new_policy(self) -> LatentPolicy:
        """One that is the plug-in's prior."""
        return self.policy_class.from_prior(self.session.plugin)

    @torch.inference_mode()
    def predict(
        self, hidden: Tensor, deterministic: bool = True, mask: Tensor | None = None, uniforms: Tensor | None = None
    ) -> Tensor:
        return choose(self.policy(hidden, mask), deterministic, uniforms)

    @torch.inference_mode()
    def divergence(self, episodes: Sequence[Episode]) -> list[float]:
        """KL in nats from the prior, summed over each episode's decision points."""
        prior, found = self.new_policy(), []
        for e in episodes:
            if e.hidden is None:
                found.append(0.0)
                continue
            now, before = self.policy(e.hidden, e.mask), prior(e.hidden, e.mask)
            found.append(float((now.exp() * (now - before)).sum()))
        return found

    def identity(self) -> str:
        """By how it predicts and by its weights."""
        return "" if self.policy is None else self.identity_of(type(self.policy), self.policy.state_dict())

    def identity_of(self, kind: type, weights: dict[str, Tensor]) -> str:
        """Of this agent with a policy of that kind."""
        how = type(self).predict
        return f"{how.__module__}.{how.__qualname__} {kind.__name__} {digest(weights)}"

    def save_weights(self, path: Path) -> None:
        check_weights("the policy", self.policy)
        with torch.no_grad():  # weights that are finite can be too large to calculate with
            check_finite("what the policy says", self.policy(self.policy.example()))
        backbone = self.session.backbone
        options = self.session.plugin.digest()
        self.policy.save_pretrained(path, backbone=backbone.name, fingerprint=backbone.fingerprint, plugin=options)

    def load(self, path: str | Path) -> None:
        fingerprint, options = self.session.backbone.fingerprint, self.session.plugin.digest()
        self.policy = self.policy_class.from_pretrained(path, fingerprint, options).to(self.session.backbone.device)
