"""What an agent is, what it may have besides with the defaults, and how a class that inherits nothing becomes one."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ollm_rl.common.locate import dotted_name
from ollm_rl.common.run_dir import POLICY, NoRun, Run
from ollm_rl.common.settings import Config
from ollm_rl.errors import ConfigurationError
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.base import BaseSession
from ollm_rl.session.callbacks import Callback, Callbacks, EqualRewards
from ollm_rl.session.saving import DESCRIPTION, as_yaml, description, write_description
from ollm_rl.tasks import Problem, Task

RunLike = Run | str | Path | None
METHODS = ("learn", "predict", "save", "load")  # that every agent has


@dataclass
class Answer:
    """One that an agent found in a way of its own: the text, and the generated tokens and texts that it took."""

    episode: Episode
    tokens: int
    texts: int


class Agent(ABC):
    """Chooses a latent, or a token, at every decision. One that needs no learning implements `predict` only.

    >>> class First(ol.Agent):
    ...     def predict(self, hidden, deterministic=True, mask=None, uniforms=None):
    ...         return torch.zeros(len(hidden), dtype=torch.long)
    >>> agent = ol.make_agent(First, session)

    What it may declare, and what holds if it does not:

    Attributes:
        trains_on: `learn` goes on from the run's last checkpoint to a larger limit, also once it had ended.
        needs_model: it needs the model in its own process; refused with `rollout=ray`.
        acts_on_logits: it chooses tokens: `predict` also gets `logits` (n, vocab) and returns tokens (n,).
        learns_from_rewards: results have what it was `before` training as well.
        long_setup: `prepare` takes long and is shared by all seeds.
        acting_session: a session of its own, with another model or other prompts, in which it acts and is evaluated; None:
            whichever it is asked in.
        policy: log-probabilities (n, K) of the latents from hidden states (n, d) and mask (n, K), to search with; or None.
        config_class: the dataclass of its settings (`ollm_rl.common.settings.Config`), from which follow the checks; `config` is
            one of it, and `settings` the same as a dict.
        run_dir: directory of the run that it learned in last.
    """

    trains_on: bool = False
    needs_model: bool = False
    acts_on_logits: bool = False
    learns_from_rewards: bool = False
    long_setup: bool = False
    acting_session: Any = None
    policy: Any = None
    config_class: ClassVar[type[Config]] = Config
    config: Any = None
    run_dir: Path | None = None
    _given: dict[str, Any] | None = None  # the settings that it was made with

    def __init__(self, session: Any, **settings: Any):
        self.session = session
        self.config = self.config_class.of(settings, f"agent {type(self).__name__}")

    @classmethod  # noqa: B027 (optional)
    def check_task(cls, settings: Mapping[str, Any], task: Task, sampled: bool) -> None:
        """Whether the task has what it learns from; called before anything is loaded, of all agents of a comparison before the first one trains.

        Args:
            settings: of the agent. sampled: the task's worked solutions are still to be sampled.

        Raises:
            DataError: not so.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with, as far as that is known."""
        return {**(self._given or {}), **(asdict(self.config) if isinstance(self.config, Config) else {})}

    @property
    def target(self) -> str:
        """Its class as the configuration names it (`agent._target_`)."""
        return dotted_name(type(self))

    def prepare(self, run: Run) -> None:  # noqa: B027 (optional)
        """What comes before learning, such as fitting to solutions; called again, it does nothing."""

    def learn(self, run: RunLike = None, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
        """Train.

        >>> agent.learn("runs/first", callbacks=[MyCallback()])

        Args:
            run: the directory for metrics, rollouts, checkpoints and, in the end, the agent itself in `policy/`; training that
                was interrupted goes on from the last checkpoint there. An open `Run` is left open, and the agent not saved.
                None writes nothing at all.

        Returns:
            `train_episodes`, `train_tokens` and `train_seconds`.
        """
        together = Callbacks([*callbacks, EqualRewards()])
        with opened_run(self, run) as opened:
            self.prepare(opened)
            together.on_training_start(self)
            costs = self._learn(opened, together) or Agent._learn(self, opened, together)
            together.on_training_end(self)
        return costs

    def _learn(self, run: Run, callbacks: Callbacks) -> dict[str, Any]:
        """The training itself: after each iteration it calls `callbacks.on_iteration_end`, and ends if that gives False."""
        return {"train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}

    @abstractmethod
    def predict(
        self, hidden: Tensor, deterministic: bool = True, mask: Tensor | None = None, uniforms: Tensor | None = None
    ) -> Tensor:
        """Choose latents (n,) for hidden states (n, d).

        Args:
            mask: (n, K) bool, False where a lower-numbered option decodes to the same token.
            uniforms: (n,) in [0, 1), the randomness to use, so that an episode depends on its seed only.
        """

    def request(self, problem: Problem, seed: int, deterministic: bool) -> Request:
        """The episode by which it answers a problem: whole, chosen by `predict`."""
        return Request(problem, seed, PolicyAdapter(self, deterministic))

    def answers(self, problems: Sequence[Problem], seed: int) -> list[Answer] | None:
        """What it answers, where that is not one episode chosen by `predict` but, say, the outcome of a search; else None.

        No verdict is known, or asked for; the answers are judged afterwards.
        """
        return None

    def save(self, path: str | Path, plugin: bool = True) -> None:
        """Write what was learned, and `agent.json`, from which `ollm_rl.load_agent` makes the agent again.

        Args:
            plugin: with a copy of the plug-in, so that the directory can be given to others.
        """
        Path(path).mkdir(parents=True, exist_ok=True)
        self.save_weights(Path(path))
        write_description(self, Path(path), plugin)

    def save_weights(self, path: Path) -> None:  # noqa: B027 (optional)
        """Write what was learned, if anything is, as safetensors and JSON."""

    def load(self, path: str | Path) -> None:  # noqa: B027 (optional)
        """Read what `save` wrote."""

    def identity(self) -> str:
        """Equal for agents that choose alike, so that they are evaluated once; "": like no other."""
        return ""

    def divergence(self, episodes: Sequence[Episode]) -> list[float] | None:
        """Nats between it and what it began as, summed over each episode; None if it cannot tell."""
        return None


class Adapted(Agent):
    """A class with `learn`, `predict`, `save` and `load` that inherits nothing; what else it has is used, or else the defaults."""

    def __init__(self, agent: Any, session: Any = None):
        self.agent, self._session, self._prepared = agent, session, False
        for name in ("trains_on", "needs_model", "acts_on_logits", "long_setup"):
            setattr(self, name, bool(declared(agent, name)))
        # As declared; else, whether it has a limit of episodes to learn from.
        limited = "total_episodes" in inspect.signature(type(agent)).parameters
        self.learns_from_rewards = bool(getattr(agent, "learns_from_rewards", limited))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "agent":  # asked for by pickle before there is anything
            raise AttributeError(name)
        return getattr(self.agent, name)

    @property
    def policy(self) -> Any:  # type: ignore[override]
        found = getattr(self.agent, "policy", None)
        return found if callable(found) else None

    @property
    def target(self) -> str:
        return dotted_name(type(self.agent))

    @property
    def session(self) -> Any:  # type: ignore[override]
        return getattr(self.agent, "session", self._session)

    @property
    def acting_session(self) -> Any:  # type: ignore[override]
        return getattr(self.agent, "acting_session", None)

    def request(self, problem: Problem, seed: int, deterministic: bool) -> Request:
        own: Callable[..., Request] | None = getattr(self.agent, "request", None)
        return (own or super().request)(problem, seed, deterministic)

    def answers(self, problems: Sequence[Problem], seed: int) -> list[Answer] | None:
        own: Callable[..., list[Answer]] | None = getattr(self.agent, "answers", None)
        return own(problems, seed) if callable(own) else None

    def prepare(self, run: Run) -> None:
        if not self._prepared and callable(prepare := getattr(self.agent, "prepare", None)):
            prepare(run)
        self._prepared = True

    def _learn(self, run: Run, callbacks: Callbacks) -> dict[str, Any]:
        if _takes(self.agent.learn, "callbacks"):
            return self.agent.learn(run, callbacks=callbacks.callbacks) or {}
        return self.agent.learn(run) or {}

    def learn(self, run: RunLike = None, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
        if callbacks:
            _demand_callbacks(self, self.agent.learn)
        return super().learn(run, callbacks)

    @property
    def predict(self) -> Callable[..., Tensor]:  # type: ignore[override]
        predict: Callable[..., Tensor] = self.agent.predict
        return predict

    def save_weights(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.agent.save(path)

    def load(self, path: str | Path) -> None:
        self.agent.load(path)

    def identity(self) -> str:
        return self.agent.identity() if callable(getattr(self.agent, "identity", None)) else ""

    def divergence(self, episodes: Sequence[Episode]) -> list[float] | None:
        return self.agent.divergence(episodes) if callable(getattr(self.agent, "divergence", None)) else None


def adapt(agent: Any, session: BaseSession | None = None, settings: dict[str, Any] | None = None) -> Agent:
    """`agent` if it inherits from `Agent`, else wrapped in `Adapted`, so that all it may have is there.

    Args:
        session: that it was made for, if it does not keep it. settings: that it was made with.

    Raises:
        ConfigurationError: it lacks a method.
    """
    for method in METHODS:
        if not callable(getattr(agent, method, None)):
            raise ConfigurationError(f"{type(agent).__qualname__} has no method '{method}'; see docs/agents.md")
    found = agent if isinstance(agent, Agent) else Adapted(agent, session)
    kind = type(found)
    if kind._learn is not Agent._learn and kind.save_weights is Agent.save_weights and kind.save is Agent.save:
        raise ConfigurationError(
            f"{kind.__qualname__} learns, but would save nothing; expected methods save_weights(path) and load(path)"
        )
    if settings is not None:
        found._given = settings
    return found


def train(agent: Agent, run: Run, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """`agent.learn`, also of a class that has an own one without callbacks, as long as there are none.

    Raises:
        ConfigurationError: there are.
    """
    if not callbacks:
        return agent.learn(run) or {}
    _demand_callbacks(agent, agent.learn)
    return agent.learn(run, callbacks=callbacks) or {}


def store(agent: Agent, path: Path) -> None:
    """`agent.save` with the plug-in, and `agent.json` also of a class whose own `save` does not write it."""
    agent.save(path)
    if not (path / DESCRIPTION).exists():
        write_description(agent, path, plugin=True)


def answers_itself(agent: Agent) -> bool:
    """It has `answers` of its own, which are not episodes of a policy."""
    return (
        callable(getattr(agent.agent, "answers", None))
        if isinstance(agent, Adapted)
        else type(agent).answers is not Agent.answers
    )


def takes_callbacks(kind: Any) -> bool:
    """Whether an agent's class can be watched while it learns."""
    return _takes(kind.learn, "callbacks")


def _demand_callbacks(agent: Agent, learn: Callable[..., Any]) -> None:
    if not _takes(learn, "callbacks"):
        raise ConfigurationError(
            f"{agent.target}.learn takes no callbacks. Give it a parameter `callbacks`, and call their on_iteration_end after each "
            "iteration (docs/agents.md), or leave callbacks and evaluate.every out."
        )


def declared(kind: Any, name: str) -> Any:
    """What an agent or its class declares under `name` (`trains_on`, `needs_model`, ...), or the default."""
    return getattr(kind, name, getattr(Agent, name))


@contextmanager
def opened_run(agent: Agent, run: RunLike) -> Iterator[Run]:
    """The run to learn in; one that is named by its directory is opened, gets the agent in the end, and is closed."""
    if run is None:
        yield NoRun()
    elif isinstance(run, Run):
        agent.run_dir = run.path
        yield run
    else:
        path = Path(run)
        opened = Run(path.parent, path.name, as_yaml(description(agent)))
        agent.run_dir = opened.path
        try:
            with opened.unless_refused():
                opened.write_json("conversion.json", agent.session.conversion)
                yield opened
                store(agent, opened.path / POLICY)
        finally:
            opened.close()


def _takes(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
