"""What a session is, wherever its model runs: a frozen option LM on a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ollm_rl.common import heartbeat
from ollm_rl.common.progress import Bar
from ollm_rl.errors import DataError
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.rollout.engine import check_room
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import Act, Request
from ollm_rl.session.transport import SentByName
from ollm_rl.tasks import SPLITS, Problem, Task


class BaseSession(SentByName, ABC):
    """A frozen option LM on a task, in this process (`Session`) or on Ray workers (`ClusterSession`).

    Attributes:
        backbone: the frozen LM, or what is known of it here (`name`, `fingerprint`, `hidden_size`, `device`).
        plugin: its options. task: where problems come from. seed: of training and sampling.
        engine_settings: settings of the rollout engine.
        reward: settings of the reward with its class under `_target_`, as far as they are known.
        lm: the option LM, None where the model is not in this process.
        chunk: episodes that `rollout` generates at once, None for all. Roundings depend on what a row is computed beside: the
            same chunks give the same to the bit, in this process and on any number of workers.
        max_staleness: updates that the policy of an episode may be behind the learner's, where rollouts run beside learning.
        conversion: the report of the plug-in's conversion, if known; plugin_path: where the plug-in is.
    """

    backbone: Any
    plugin: PlugIn
    task: Task
    seed: int
    engine_settings: dict[str, Any]
    reward: dict[str, Any] | None = None
    lm: OptionLM | None = None
    chunk: int | None = None
    max_staleness = 0

    @property
    def conversion(self) -> dict[str, Any]:
        return self.plugin.report

    @property
    def plugin_path(self) -> Path | None:
        return self.plugin.path

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        """At most `n` problems of a split.

        Raises:
            DataError: there are none.
            ConfigurationError: one is longer than the backbone can read.
        """
        found = problems_of(self.task, split, n, seed)
        self.run_on_model(_check_lengths, found)  # now, and not in the iteration that comes to it
        return found

    @abstractmethod
    def rollout(
        self,
        requests: Sequence[Request],
        act: Act,
        skip_forced: bool = True,
        keep_hidden: bool = True,
        from_logits: bool = False,
        bar: Bar | None = None,
        judged: bool = True,
    ) -> list[Episode]:
        """Whole episodes with their rewards, in the order of the requests; the arguments are `ollm_rl.rollout.sampler.rollout`'s.

        Args:
            judged: false: no reward function is asked; episodes have the answers that their texts state (`Judge.read`).
        """

    @abstractmethod
    def run_on_model(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(session, *args)`, run where the model is."""

    @abstractmethod
    def map(self, function: Callable[..., Any], items: Sequence[Any], *args: Any) -> Iterator[Any]:
        """The results of `function(session, items, *args)`, which gives an iterable with one for every item.

        On a cluster every worker gets some of the items, and the function has to be importable there.
        """

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Figures for the log, of what was done since this was last asked."""

    @abstractmethod
    def close(self) -> None:
        """End the processes that it started."""

    @property
    def heartbeat(self) -> int:
        """A number that grows while there is progress."""
        return heartbeat.count()


def problems_of(task: Task, split: str, n: int, seed: int = 0) -> list[Problem]:
    """At most `n` problems of a split of a task.

    Raises:
        DataError: there are none.
    """
    found = task.problems(split, n, seed)
    if not found:
        having = [s for s in SPLITS if task.problems(s, 1)]
        raise DataError(f"task '{task.name}' has no problems in split '{split}', only in {', '.join(having)}")
    return found


def engine_settings(task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the engine on a task, whose token budget it has unless another is given."""
    return {"max_new_tokens": task.max_new_tokens, **{k: v for k, v in given.items() if v is not None}}


def _check_lengths(session: Any, problems: Sequence[Problem]) -> None:
    lengths = [len(session.prompter.encode(p)) for p in problems]
    longest = max(range(len(problems)), key=lengths.__getitem__)
    whose = f"problem {problems[longest].id}: a prompt"
    prompt = len(session.prompter.prefix) + lengths[longest]
    check_room(session.backbone, prompt, session.engine_settings["max_new_tokens"], whose)
