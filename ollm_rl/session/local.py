"""Everything an agent works with, put together once: backbone, plug-in, task, engine and judge."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from ollm_rl.common import heartbeat
from ollm_rl.common.progress import Bar
from ollm_rl.errors import DataError
from ollm_rl.models.backbone import Backbone, load_backbone
from ollm_rl.models.config import BackboneConfig
from ollm_rl.options.config import ConversionConfig
from ollm_rl.options.conversion import plugin_for
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.reward.functions import MathVerify
from ollm_rl.rollout.engine import RolloutEngine, check_room
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.judge import Judge
from ollm_rl.rollout.sampler import Act, Request, rollout
from ollm_rl.tasks import SPLITS, Problem, Task, make_task
from ollm_rl.tasks.generated import ChainSumConfig
from ollm_rl.tasks.prompts import Prompter

log = logging.getLogger(__name__)


class Session:
    """A frozen option LM on a task.

    Args:
        engine: settings of the `RolloutEngine`.
        judge: gives the rewards; by default, whether the final answer is right.

    Attributes:
        current: in a worker of a cluster, its only session. That is what any other becomes on its way there, so that
            agents and searches can be sent without their model.
        conversion: the report of the plug-in's conversion, if known; plugin_path: where it is.
        chunk: episodes that `rollout` generates at once, None for all. Roundings depend on what a row is computed beside: the
            same chunks give the same to the bit, in this process and on any number of workers.
        recipe: the configuration that it was opened with, if any: what another process needs to open the same.
    """

    current: "ClassVar[Session | None]" = None
    serialized_settings: tuple[Any, dict[str, str]] | None = None
    chunk: int | None = None
    max_staleness = 0  # how far rollouts may run beside learning: here, in one process, they do not
    plugin_path: Path | None = None

    def __init__(
        self,
        backbone: Backbone,
        plugin: PlugIn,
        task: Task,
        engine: dict[str, Any] | None = None,
        seed: int = 0,
        judge: Judge | None = None,
    ):
        self.backbone, self.plugin, self.task, self.seed = backbone, plugin, task, seed
        self.prompter = Prompter.for_task(backbone, task)
        self.lm = OptionLM(backbone, plugin)
        given = {name: value for name, value in (engine or {}).items() if value is not None}
        self.engine_settings = {"max_new_tokens": task.max_new_tokens, **given}
        self.judge = judge or Judge(MathVerify())
        self.conversion: dict = {}
        self._judged_s = self.judge.seconds

    @cached_property
    def engine(self) -> RolloutEngine:
        """The engine that training, evaluation and oracle share."""
        return self.new_engine()

    def new_engine(self, **settings: Any) -> RolloutEngine:
        """An engine of its own (for an environment), with `settings` over the session's."""
        return RolloutEngine(self.lm, self.prompter, **(self.engine_settings | settings))

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        """At most `n` problems of a split.

        Raises:
            DataError: there are none.
            ConfigurationError: one is longer than the backbone can read.
        """
        found = self.task.problems(split, n, seed)
        if not found:
            having = [s for s in SPLITS if self.task.problems(s, 1)]
            raise DataError(f"task '{self.task.name}' has no problems in split '{split}', only in {', '.join(having)}")
        self.run_on_model(_check_lengths, found)  # now, and not in the iteration that comes to it
        return found

    def rollout(
        self,
        requests: Sequence[Request],
        act: Act,
        skip_forced: bool = True,
        keep_hidden: bool = True,
        from_logits: bool = False,
        bar: Bar | None = None,
    ) -> list[Episode]:
        """Whole episodes with their rewards, in the order of the requests; the arguments are the engine's."""
        if self.chunk is not None and len(requests) > self.chunk:
            parts = [requests[at : at + self.chunk] for at in range(0, len(requests), self.chunk)]
            return [e for p in parts for e in self.rollout(p, act, skip_forced, keep_hidden, from_logits, bar)]
        found: list[Episode | None] = [None] * len(requests)
        profiler = self.engine.profiler
        with profiler.part("python"):
            for place, episode in rollout(self.engine, requests, act, skip_forced, keep_hidden, from_logits):
                if bar is not None:
                    bar.advance()
                found[place] = episode
            episodes = [e for e in found if e is not None]
            with profiler.part("verifier"):
                self.judge(episodes)
        return episodes

    def run_on_model(self, function: Callable, *args: Any) -> Any:
        """`function(session, *args)`, run where the model is."""
        return function(self, *args)

    def map(self, function: Callable, items: Sequence, *args: Any) -> Iterator:
        """The results of `function(session, items, *args)`, which gives an iterable with one for every item.

        On a cluster every worker gets some of the items, and the function has to be importable there.
        """
        yield from function(self, items, *args)

    def metrics(self) -> dict[str, float]:
        """For the log: seconds of judging since this was last asked and, if the engine is profiled, of everything so far."""
        judged, self._judged_s = self.judge.seconds - self._judged_s, self.judge.seconds
        profiler = self.engine.profiler
        parts = {f"profile/{k}_s": v for k, v in profiler.seconds.items()} if profiler.enabled else {}
        return {"time/judge_s": judged, **parts}

    @property
    def heartbeat(self) -> int:
        """A number that grows while there is progress."""
        return heartbeat.count()

    def __reduce__(self):
        return _current, ()

    def __deepcopy__(self, memo) -> "Session":
        return self  # Gymnasium copies the arguments of environments; the model in here is meant to be shared

    def close(self) -> None:
        self.judge.close()
        if "engine" in self.__dict__ and self.engine.profiler.enabled:
            log.info("%s", self.engine.profiler)


def _check_lengths(session: Session, problems: Sequence[Problem]) -> None:
    lengths = [len(session.prompter.encode(p)) for p in problems]
    longest = max(range(len(problems)), key=lengths.__getitem__)
    whose = f"problem {problems[longest].id}: a prompt"
    prompt = len(session.prompter.prefix) + lengths[longest]
    check_room(session.backbone, prompt, session.engine_settings["max_new_tokens"], whose)


def _current() -> Session:
    if Session.current is None:
        raise RuntimeError(
            "a session was pickled and is now wanted in a process that has none: models are not sent. Open one there, or set "
            "Session.current to the one that all others stand for."
        )
    return Session.current


@cache
def shared_backbone(
    name: str,
    dtype: str,
    device: str = BackboneConfig.device,
    revision: str | None = None,
    quantization: str | None = None,
) -> Backbone:
    """One backbone per process and name, however many environments use it."""
    return load_backbone(name, dtype, device, revision, quantization)


def make_session(
    backbone: str = BackboneConfig.name,
    task: str | dict = ChainSumConfig.name,
    plugin: str | None = None,
    dtype: str = BackboneConfig.dtype,
    seed: int = 0,
    engine: dict[str, Any] | None = None,
    convert: ConversionConfig | None = None,
) -> Session:
    """Load or make everything that a name stands for.

    Args:
        backbone: `smollm2`, `tiny`, a local directory or a Hugging Face id.
        task: a task's name, or its settings with the name under `name`.
        plugin: directory of a plug-in; None for the default one of this backbone and task, converted on first use.
    """
    lm = shared_backbone(backbone, dtype)
    settings = {"name": task} if isinstance(task, str) else dict(task)
    problems = make_task(**settings)
    if plugin is not None:
        options = PlugIn.from_pretrained(plugin, lm)
    else:
        options = plugin_for(lm, Prompter.for_task(lm, problems), problems, convert or ConversionConfig())[0]
    return Session(lm, options, problems, engine, seed)
