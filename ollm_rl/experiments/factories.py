"""Agents and searches from their configuration, with the cheap checks before the expensive steps."""

import inspect

from omegaconf import DictConfig

from ollm_rl.common.locate import locate
from ollm_rl.config.compose import settings_taken, to_dict
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.options.policies import Critic
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.session.local import Session


def make_agent(session: Session, agent: DictConfig, policy: str | None = None):
    """Instantiate an agent: its class is called with the session and its settings.

    Raises:
        ConfigurationError: the class does not take one of the settings, or lacks a method.
    """
    kind = locate(agent._target_)
    values = {k: v for k, v in to_dict(agent).items() if k != "_target_"}
    names = settings_taken(kind)
    try:
        inspect.signature(kind).bind(session, **values)
        if names and (wrong := [name for name in values if name not in names]):
            raise TypeError(f"got an unexpected setting '{wrong[0]}'")
    except TypeError as error:
        hint = "".join(did_you_mean(k, names) for k in values if k not in names)
        expected = f"It takes {', '.join(names) or 'no settings'}."
        raise ConfigurationError(f"agent._target_={agent._target_}: {error}. {expected}{hint}") from error
    made = kind(session, **values)
    for method in ("learn", "predict", "save", "load"):
        if not callable(getattr(made, method, None)):
            raise ConfigurationError(f"agent._target_={agent._target_} has no method '{method}'; see docs/agents.md")
    if policy is not None:
        made.load(policy)
    return made


def make_oracle(session: Session, config: DictConfig, policy, search: str | None = None) -> Oracle:
    """The configured search over `policy`, or `search` with its settings."""
    values = {k: v for k, v in to_dict(config.oracle).items() if k not in ("num_problems", "also", "search")}
    if values["critic"] is not None:
        values["critic"] = Critic.from_pretrained(values["critic"], session.backbone.fingerprint).to(
            session.backbone.device
        )
    return Oracle(session, policy, search=search or config.oracle.search, **values)
