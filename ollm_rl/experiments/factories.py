"""Agents and searches from their configuration, with the cheap checks before the expensive steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ollm_rl.common.locate import locate
from ollm_rl.config.compose import compose, to_dict
from ollm_rl.options.policies import Critic
from ollm_rl.options.value import Value
from ollm_rl.oracle.config import VALUED, can_give_up
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.tree import Policy
from ollm_rl.session.agent import Agent
from ollm_rl.session.base import BaseSession
from ollm_rl.session.loading import build_agent


def make_agent(
    agent: str | Callable[..., Any], session: BaseSession, policy: str | Path | None = None, **settings: Any
) -> Agent:
    """An agent by its name, or of a class of your own.

    >>> agent = ol.make_agent("grpo", session, total_episodes=2560)
    >>> agent = ol.make_agent("my_agents.Favourite", session, favourite=2)

    Args:
        agent: `prior`, `grpo`, `ppo`, `distill`, ... (`ollm-rl --help` lists them), `<module>.<Class>`, or a class.
        policy: directory of a saved one to go on from.
        settings: those that shall differ from the agent's defaults (docs/agents.md).

    Raises:
        ConfigurationError: there is no such agent, or it has no such setting; the message offers the nearest.
        CheckpointError: the policy is of another backbone, or is not there.
    """
    if not isinstance(agent, str):
        return build_agent(agent, session, settings, policy)
    chosen = to_dict(compose([f"agent={agent}"]).config.agent)
    return build_agent(locate(chosen.pop("_target_")), session, {**chosen, **settings}, policy)


def make_oracle(session: BaseSession, config: DictConfig, policy: Policy, name: str | None = None) -> Oracle:
    """The configured search over `policy`, or the one of that name, `<search>` or `<search>/<judge>`, with its settings."""
    search, _, judge = (name or "").partition("/")
    values = {k: v for k, v in to_dict(config.oracle).items() if k not in ("num_problems", "also", "search")}
    values["judge"] = judge or values["judge"]
    if name is not None and not can_give_up(search, values["judge"]):
        values["give_up"] = 0.0  # asked of another search of the same run
    place = values["value"] or config.policy
    values["value"] = None
    if values["judge"] in VALUED and place is not None:
        values["value"] = Value.from_pretrained(place, session.backbone.fingerprint, session.plugin).to(
            session.backbone.device
        )
    if values["critic"] is not None:
        values["critic"] = Critic.from_pretrained(values["critic"], session.backbone.fingerprint).to(
            session.backbone.device
        )
    return Oracle(session, policy, search=search or config.oracle.search, **values)
