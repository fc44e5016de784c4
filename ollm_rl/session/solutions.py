"""Worked solutions by sampling: what a model says about problems with answers, as far as the judge finds it right.

Rejection sampling as in STaR (Zelikman et al. 2022, arXiv 2203.14465) and RFT (Yuan et al. 2023, arXiv 2308.01825): what the backbone says in
one of several tries, a plug-in can learn to say. Later rounds ask what was learned from earlier ones, as ReST-EM does (Singh et al. 2023,
arXiv 2312.06585).
"""

import copy
import json
import logging
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from ollm_rl.common.run_dir import SOLUTIONS, Run
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.config import ConversionConfig
from ollm_rl.options.conversion import convert, drawn
from ollm_rl.options.modules import PlugIn
from ollm_rl.rollout.judge import Judge
from ollm_rl.session.base import BaseSession
from ollm_rl.session.collection import Collection
from ollm_rl.session.local import session_with
from ollm_rl.session.samplers import Opens, sampler_of
from ollm_rl.tasks import Problem, Task
from ollm_rl.tasks.base import ALL, has_end

log = logging.getLogger(__name__)

HELDOUT = 100  # solutions of split `tune` are enough to report on


def sample_solutions(
    backbone: Backbone,
    task: Task,
    reward: Callable[..., Any] | Judge | None = None,
    engine: dict[str, Any] | None = None,
    **settings: Any,
) -> Task:
    """The task with worked solutions by sampling, to convert on.

    >>> task = ol.sample_solutions(backbone, task, num_solutions=1000, rounds=2)
    >>> task.sampled["sft"]["problems_solved"], task.problems("sft", 1)[0].solution
    >>> plugin = ol.convert(backbone, task)

    Args:
        reward, engine: as for `ol.Session`.
        settings: `num_solutions`, `samples_per_problem`, `sampling_temperature`, `sampled_by`, `rounds` and the others of `convert`;
            `solutions="both"` begins with the task's own.

    Raises:
        ConfigurationError: there is no such setting.
        DataError: no problem was solved.
    """
    config = ConversionConfig.of({"solutions": "sampled", **settings})
    found, _ = with_solutions(partial(session_with, backbone, task, reward, engine or {}, config.seed), task, config)
    return found


def with_solutions(
    open_with: Opens, task: Task, config: ConversionConfig, and_convert: bool = False
) -> tuple[Task, PlugIn | None]:
    """The task with sampled solutions in `sft`, beside its own (`convert.solutions=both`) or in their place (`sampled`), and in `tune` where it has
    none; the task itself with `given`.

    Texts are kept in the cache, chunk by chunk, and an interrupted collection goes on from there. Verdicts are not kept: what is read from the cache
    is judged again, for a reward may have been mended. `Task.sampled` says how many problems gave how many solutions.

    Args:
        open_with: how a session is opened, in this process or on workers.
        and_convert: convert on what was found, where it was sampled; the plug-in is given too.

    Raises:
        CheckpointError: there is no agent in `convert.sampled_by`.
        DataError: there are no problems in `sft`, or none of them was solved.
    """
    if config.solutions == "given":
        return task, None
    given = task.problems("sft", config.num_solutions, config.seed) if config.solutions == "both" else []
    own = [p for p in given if p.solution is not None]
    wanted = max(0, config.num_solutions - len(own))
    sft, tune = (
        Collection(task, config, "sft", wanted),
        Collection(task, config, "tune", min(HELDOUT, config.num_heldout)),
    )
    plugin: PlugIn | None = None
    with ExitStack() as opened:
        home: BaseSession | None = None
        for turn in range(config.rounds if wanted else 0):
            # What is to be found is shared out over the rounds, so that later ones are asked as well.
            share = -(-wanted * (turn + 1) // config.rounds)
            if not (sft.lacks(share) or tune.lacks(tune.wanted)):
                continue
            if home is not None:
                plugin = converted_by(home, _solved(task, own, sft, tune), config)
            opened.close()
            sampler = opened.enter_context(sampler_of(open_with, plugin, config))
            home = sampler.home
            sft.ask(sampler, share)
            tune.ask(sampler, tune.wanted)
            sft.must_have_found()
        solved = _solved(task, own, sft, tune)
        plugin = converted_by(home, solved, config) if and_convert and home is not None else None
    solved.sampled = {"sft": sft.figures(), "tune": tune.figures(), "given": len(own)}
    return solved, plugin


def write_solutions(task: Task, run: Run) -> None:
    """What was sampled, if anything was: figures in `solutions.json`, the solutions in `solutions.jsonl`, as `task=jsonl` reads them."""
    if (figures := getattr(task, "sampled", None)) is None:
        return
    run.write_json(SOLUTIONS, figures)
    sampled = {"sft": ALL, "tune": ALL if has_end(task) else HELDOUT}
    lines = [_line(split, p) for split, n in sampled.items() for p in task.problems(split, n) if p.solution]
    (run.path / "solutions.jsonl").write_text("".join(lines), encoding="utf-8")


def convert_there(session: BaseSession, sft: list[Problem], tune: list[Problem], config: ConversionConfig) -> PlugIn:
    """The plug-in of these solutions, converted where the model is; to be sent."""
    task = copy.copy(session.task)
    found = {"sft": sft, "tune": tune}
    task.problems = lambda split, n, seed=0: found.get(split, [])[:n]  # type: ignore[method-assign]
    config = replace(config, solutions="given", sampled_by=None, rounds=ConversionConfig.rounds)
    return copy.deepcopy(convert(session.backbone, task, config)).cpu()


def converted_by(session: BaseSession, task: Task, config: ConversionConfig) -> PlugIn:
    """The plug-in of a task, converted where the model of the session is."""
    sft, tune = (
        drawn(task, split, n, config.seed) for split, n in (("sft", config.num_solutions), ("tune", config.num_heldout))
    )
    found: PlugIn = session.run_on_model(convert_there, sft, tune, config)
    return found


def _line(split: str, problem: Problem) -> str:
    asked = [*problem.turns, ("user", problem.problem)]
    row = {
        **problem.extra,
        "id": problem.id,
        **(
            {"prompt": [{"role": r, "content": t} for r, t in asked]} if problem.turns else {"problem": problem.problem}
        ),
        **({"answer": problem.answer} if problem.answer else {}),
        "solution": problem.solution,
        "split": split,
    }
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _solved(task: Task, own: list[Problem], sft: "Collection", tune: "Collection") -> Task:
    """The task with what was found so far."""
    found, right, moved = copy.copy(task), sft.right(), list[Problem]()
    if tune.wanted and not (tune.right() or tune.given):
        # Something has to be there to report on: a tenth of the problems that were solved, which then are in `sft` no more.
        mine = {p.id for p in own}
        solved = [i for i in dict.fromkeys(p.id for p in right) if i not in mine]
        kept = mine | set(solved[: -max(1, len(solved) // 10)])
        if not kept:
            tune.must_have_found()
        right, moved = [p for p in right if p.id in kept], [p for p in right if p.id not in kept]
        log.warning("no problem of tune was solved: %d solutions of sft are held out in its place", len(moved))
    solutions = {p.id: p.solution for p in reversed(tune.right())}
    found.problems = partial(_problems, task, [*own, *right, *sft.wrong()], solutions, moved)  # type: ignore[method-assign]
    return found


def _problems(
    task: Task, sft: list[Problem], tune: dict[str, str | None], moved: list[Problem], split: str, n: int, seed: int = 0
) -> list[Problem]:
    """As `Task.problems`. tune: solutions of its problems by their ids. moved: problems that are in it besides, after all others."""
    if split == "sft":
        drawn = list(sft)
        random.Random(seed).shuffle(drawn)
        return drawn[:n]
    found = task.problems(split, n, seed)
    if split != "tune":
        return found
    return [*(replace(p, solution=p.solution or tune.get(p.id)) for p in found), *moved][:n]
