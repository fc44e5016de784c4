"""Everything an agent works with, put together once: backbone, plug-in, task, engine and judge."""

import inspect
import logging
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from ollm_rl.backbone import Backbone, load_backbone
from ollm_rl.conversion import plugin_for
from ollm_rl.engine import RolloutEngine
from ollm_rl.errors import DataError
from ollm_rl.judges import Judge, MathVerify
from ollm_rl.plugin import OptionLM, PlugIn
from ollm_rl.plugin_training import ConversionConfig
from ollm_rl.progress import Bar
from ollm_rl.prompts import Prompter
from ollm_rl.rollout import Act, Request, rollout
from ollm_rl.tasks import SPLITS, Problem, Task, make_task
from ollm_rl.trajectory import Episode

log = logging.getLogger(__name__)


class Workspace:
    """A frozen option LM on a task.

    Args:
        engine: settings of the `RolloutEngine`.
        judge: gives the rewards; by default, whether the final answer is right.
    """

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
        self.engine_settings = {"max_new_tokens": task.max_new_tokens, **(engine or {})}
        self.judge = judge or Judge(MathVerify())

    @cached_property
    def engine(self) -> RolloutEngine:
        """The engine that training, evaluation and oracle share."""
        return self.new_engine()

    def new_engine(self, **settings: Any) -> RolloutEngine:
        """An engine of its own (for an environment), with `settings` over the workspace's."""
        return RolloutEngine(self.lm, self.prompter, **(self.engine_settings | settings))

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        """At most `n` problems of a split.

        Raises:
            DataError: there are none.
        """
        found = self.task.problems(split, n, seed)
        if not found:
            having = [s for s in SPLITS if self.task.problems(s, 1)]
            raise DataError(f"task '{self.task.name}' has no problems in split '{split}', only in {', '.join(having)}")
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
        place = {id(r): i for i, r in enumerate(requests)}
        found: list[Episode | None] = [None] * len(requests)
        profiler = self.engine.profiler
        with profiler.part("python"):
            for request, episode in rollout(self.engine, requests, act, skip_forced, keep_hidden, from_logits):
                if bar is not None:
                    bar.advance()
                found[place[id(request)]] = episode
            episodes = [e for e in found if e is not None]
            with profiler.part("verifier"):
                self.judge(episodes)
        return episodes

    def __deepcopy__(self, memo) -> "Workspace":
        return self  # Gymnasium copies the arguments of environments; the model in here is meant to be shared

    def close(self) -> None:
        self.judge.close()
        if "engine" in self.__dict__ and self.engine.profiler.enabled:
            log.info("%s", self.engine.profiler)


def acting(agent, deterministic: bool) -> Act:
    """An agent's `predict` as the engine's policy.

    `mask` and `uniforms` are handed over only if the agent takes them: `predict(hidden, deterministic=...)` is
    all that an agent needs. Log-probabilities are not known here and given as zero.
    """
    accepted = inspect.signature(agent.predict).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())

    def act(hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        extra = {"mask": mask, "uniforms": uniforms}
        wanted = {k: v for k, v in extra.items() if anything or k in accepted}
        z = torch.as_tensor(agent.predict(hidden, deterministic=deterministic, **wanted), device=hidden.device)
        return z.long(), torch.zeros(len(z), device=hidden.device)

    return act


@cache
def shared_backbone(
    name: str, dtype: str, device: str = "auto", revision: str | None = None, quantization: str | None = None
) -> Backbone:
    """One backbone per process and name, however many environments use it."""
    return load_backbone(name, dtype, device, revision, quantization)


def open_workspace(
    backbone: str = "smollm2",
    task: str | dict = "chain_sum",
    plugin: str | None = None,
    dtype: str = "auto",
    seed: int = 0,
    engine: dict[str, Any] | None = None,
    convert: ConversionConfig | None = None,
) -> Workspace:
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
    return Workspace(lm, options, problems, engine, seed)
