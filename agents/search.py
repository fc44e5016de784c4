"""Search as an agent: it answers with the text that a search without any verdict chooses (`ollm_rl.oracle.deployed`).

It learns nothing: policy and learned verifier come from a run (`ollm-rl train agent=grpo value.enabled=true`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.base import PolicyAgent
from agents.config import NO_VALUE, SearchAgentConfig
from ollm_rl.common.locate import dotted_name
from ollm_rl.common.run_dir import policy_dir
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.options.value import Value
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.agent import Agent, Answer
from ollm_rl.session.base import BaseSession
from ollm_rl.session.loading import load_agent
from ollm_rl.session.saving import DESCRIPTION, read_description
from ollm_rl.tasks import Problem


class SearchAgent(PolicyAgent):
    """A search with a policy's probabilities, and a judge that sees no verdict. Its settings are those of `SearchAgentConfig`."""

    config_class = SearchAgentConfig
    config: SearchAgentConfig

    def __init__(self, session: BaseSession, **settings: Any):
        super().__init__(session, **settings)
        self.policy = LatentPolicy.from_prior(session.plugin)
        self.value: Value | None = None
        if self.config.policy is not None:
            self.load(_of_seed(self.config.policy, session.seed))
        if self.config.value is not None:
            self.value = self._value_in(_of_seed(self.config.value, session.seed))

    @classmethod
    def check_paths(cls, settings: Mapping[str, Any], policy: str | None) -> None:
        """Whether there is what these settings need, before anything is loaded; `policy`: of the command line.

        Raises:
            ConfigurationError: no learned verifier is named. CheckpointError: a directory does not hold what it should.
        """
        config = SearchAgentConfig.of({k: v for k, v in settings.items() if k != "_target_"}, "agent search")
        wanted = [(key, getattr(config, key)) for key in ("policy", "value") if getattr(config, key) is not None]
        if config.needs_value and not wanted and policy is None:
            raise ConfigurationError(NO_VALUE.format(judge=config.judge))
        for key, place in wanted:
            needs = "value.json" if config.needs_value and (key == "value" or config.value is None) else DESCRIPTION
            if "{seed}" not in place and not (Path(place) / needs).is_file():
                raise CheckpointError(
                    f"agent.{key}={place} does not hold {needs}. Give a directory that a run wrote (runs/<name>/policy), for a learned "
                    "verifier one with value.enabled=true."
                )

    def _value_in(self, place: str | Path) -> Value:
        found = Value.from_pretrained(place, self.session.backbone.fingerprint, self.session.plugin)
        return found.to(self.session.backbone.device)

    @property
    def settings(self) -> dict[str, Any]:
        """Without the directories that policy and verifier were read from: they are saved beside."""
        return {**super().settings, "policy": None, "value": None}

    def answers(self, problems: Sequence[Problem], seed: int) -> list[Answer]:
        names = ("search", "judge", "budget", "max_tries", "accept", "give_up", "width")
        chosen = {name: getattr(self.config, name) for name in names}
        if self.config.needs_value and self.value is None:
            raise ConfigurationError(NO_VALUE.format(judge=self.config.judge))
        searches = Oracle(self.session, self.policy, value=self.value, **chosen).solve(problems, seed)
        return [Answer(s.solution or Episode(s.problem), s.spent, s.tried) for s in searches]

    def identity(self) -> str:
        return ""  # its choices are not `predict`'s

    def save_weights(self, path: Path) -> None:
        super().save_weights(path)
        if self.value is not None:
            backbone, options = self.session.backbone, self.session.plugin.digest()
            self.value.save_pretrained(path, backbone=backbone.name, fingerprint=backbone.fingerprint, plugin=options)

    def load(self, path: str | Path) -> None:
        """A policy, and the learned verifier beside it if there is one."""
        if (Path(path) / DESCRIPTION).is_file() and not _is_mine(Path(path)):
            agent = load_agent(path, self.session)
            own = type(agent).request is not Agent.request  # such as a fixed opening, or handing over
            if type(agent.policy) is not LatentPolicy or own:
                raise ConfigurationError(
                    f"agent=search: the agent in {path} has no log-probabilities of states to search with, or answers in a way of its own; "
                    "expected one of grpo, ppo, distill, prior or reference"
                )
            self.policy = agent.policy
        else:
            super().load(path)
        if self.config.value is None and (Path(path) / "value.json").is_file():
            self.value = self._value_in(path)


def _of_seed(path: str, seed: int) -> Path:
    return policy_dir(path.replace("{seed}", str(seed)))


def _is_mine(path: Path) -> bool:
    found = read_description(path)
    return found is not None and found.get("_target_") == dotted_name(SearchAgent)
