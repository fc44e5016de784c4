"""Worked solutions by sampling: what the backbone says about problems with answers, as far as the judge finds it right.

Rejection sampling as in STaR (Zelikman et al. 2022, arXiv 2203.14465) and RFT (Yuan et al. 2023, arXiv 2308.01825), from the backbone itself: what
it says in one of several tries, a plug-in can learn to say.
"""

import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ollm_rl.common.cache import cache_dir, key_of, made_by_one
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.policies import sample_tokens
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.judge import Judge
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.local import Session
from ollm_rl.tasks import Problem, Task
from ollm_rl.tasks.twins import whole

log = logging.getLogger(__name__)

CHUNK = 32  # problems between two records
MOST_PROBLEMS, GENERATED = (
    100_000,
    8,
)  # of a split that has an end; of one that has none, for each solution that is wanted
HELDOUT = 100  # solutions of split `tune` are enough to report on
SHOWN = 3  # texts in the report
SMALL = PlugInConfig(num_options=2, encoder_width=8, decoder_width=8, prior_width=8, reader_depth=0, shortlist=2)


class Plain:
    """The backbone's own distribution over tokens, as the engine asks for it."""

    @torch.inference_mode()
    def __call__(self, hidden: Tensor, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        return sample_tokens(logits, uniforms)


def with_solutions(
    backbone: Backbone,
    task: Task,
    judge: Judge,
    config: ConversionConfig,
    engine: dict[str, Any],
    run: Run | None = None,
) -> Task:
    """The task with sampled solutions in `sft`, beside its own (`convert.solutions=both`) or in their place (`sampled`), and in `tune` where it has
    none; the task itself with `given`.

    Samples are kept in the cache, chunk by chunk, and an interrupted collection goes on from there. `solutions.json` in the run says how many
    problems gave how many solutions, and shows some.

    Raises:
        ConfigurationError: the judge cannot be named, so that its verdicts could not be kept.
        DataError: there are no problems in `sft`, or none of them was solved.
    """
    if config.solutions == "given":
        return task
    if judge.settings is None:
        raise ConfigurationError(
            f"convert.solutions={config.solutions} keeps what the reward '{judge.name}' says, which therefore needs a name: give a function or "
            "class that can be imported"
        )
    plugin = PlugIn.beside(backbone, SMALL)
    session = Session(backbone, plugin, task, judge, engine, config.seed)
    given = task.problems("sft", config.num_solutions, config.seed) if config.solutions == "both" else []
    own = [p for p in given if p.solution is not None]
    found, report = _collected(session, config, "sft", max(0, config.num_solutions - len(own)))
    right = replace(config, wrong_share=0.0)  # what is reported on are solutions
    heldout, said = _collected(session, right, "tune", min(HELDOUT, config.num_heldout))
    report = {"sft": report, "tune": said, "given": len(own)}
    if run is not None:
        run.write_json("solutions.json", report)
    tune = {p.id: p.solution for p in reversed(heldout)}
    solved = copy(task)
    solved.problems = partial(_problems, task, [*own, *found], tune)  # type: ignore[method-assign]
    return solved


def _problems(
    task: Task, sft: list[Problem], tune: dict[str, str | None], split: str, n: int, seed: int = 0
) -> list[Problem]:
    """As `Task.problems`."""
    if split == "sft":
        drawn = list(sft)
        random.Random(seed).shuffle(drawn)
        return drawn[:n]
    found = task.problems(split, n, seed)
    return [replace(p, solution=p.solution or tune.get(p.id)) for p in found] if split == "tune" else found


def _collected(
    session: Session, config: ConversionConfig, split: str, wanted: int
) -> tuple[list[Problem], dict[str, Any]]:
    """At most `wanted` pairs of problem and solution, and figures."""
    if not wanted:
        return [], {}
    task, judge, prompter = session.task, session.judge, session.prompter
    problems = _once(task.problems(split, MOST_PROBLEMS if task.table else GENERATED * wanted, config.seed))
    if not problems:
        raise DataError(
            f"convert.solutions={config.solutions}: task '{task.name}' has no problems in split '{split}' to sample solutions of"
        )
    room = session.engine_settings["max_new_tokens"]
    path = cache_dir() / "solutions" / key_of(
        session.backbone.fingerprint, str(session.backbone.dtype), prompter.prefix, [(prompter.own(p), p.answer) for p in problems],
        judge.settings, judge.solved_at, config.samples_per_problem, room, config.seed, "v1",
    )  # fmt: skip
    with made_by_one(path):
        path.mkdir(parents=True, exist_ok=True)
        texts = _sampled(session, config, split, problems, path / "texts.jsonl", wanted)
    found, figures = _chosen(problems, texts, config, wanted)
    solved = figures["problems_solved"]
    log.info(
        "%s: %d solutions of %d problems, of %d sampled %d times each (%s)", split, len(found), solved, figures["problems_sampled"],
        config.samples_per_problem, path,
    )  # fmt: skip
    if not found:
        raise DataError(
            f"none of {figures['problems_sampled']} problems of split '{split}' was solved in {config.samples_per_problem} tries each; give worked "
            "solutions, examples (task.num_examples), more tries (convert.samples_per_problem), easier problems or a stronger backbone"
        )
    return found, figures


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Without the second solutions of a problem."""
    first: dict[str, Problem] = {}
    for p in problems:
        first.setdefault(whole(p), p)
    return list(first.values())


def _sampled(
    session: Session, config: ConversionConfig, split: str, problems: list[Problem], file: Path, wanted: int
) -> list[list[dict[str, Any]]]:
    """What was said about each of the first problems, until there are as many solutions as are wanted."""
    texts: list[list[dict[str, Any]]] = []
    known, have = [json.loads(line) for line in _whole_lines(file)], 0
    draw = np.random.default_rng((config.seed, len(problems)))
    seeds = draw.integers(2**31, size=(len(problems), config.samples_per_problem)).tolist()
    with track(f"solutions of {split}", len(problems), "problems", len(known)) as bar, file.open("a") as kept:
        # Chunk by chunk, whether they are known or not: what is found does not depend on what was kept before.
        while len(texts) < len(problems) and have < wanted:
            end = min(len(texts) + CHUNK, len(problems))
            before = known[len(texts) : end]
            texts += before
            have += sum(_usable(said, config) for said in before)
            part = range(len(texts), end)
            requests = [Request(problems[i], seed) for i in part for seed in seeds[i]]
            episodes = session.rollout(requests, Plain(), keep_hidden=False, from_logits=True) if requests else []
            for i in range(len(part)):
                said = [
                    _record(e) for e in episodes[i * config.samples_per_problem : (i + 1) * config.samples_per_problem]
                ]
                kept.write(json.dumps(said, ensure_ascii=False) + "\n")
                texts.append(said)
                have += _usable(said, config)
            kept.flush()
            if len(part):
                bar.advance(len(part), f"{have} solutions")
    return texts


def _record(episode: Episode) -> dict[str, Any]:
    return {
        "text": episode.text,
        "solved": episode.solved and not episode.truncated,
        "whole": not episode.truncated and episode.judged,
    }


def _whole_lines(file: Path) -> list[str]:
    """The lines of a record, without one that was cut off; the file is cut back to them."""
    if not file.exists():
        return []
    raw = file.read_bytes()
    end = raw.rfind(b"\n") + 1
    if end < len(raw):
        with file.open("r+b") as opened:
            opened.truncate(end)
    return raw[:end].decode().split("\n")[:-1]  # other line ends may stand in texts


def _right(said: list[dict[str, Any]]) -> list[str]:
    """Solutions of a problem, each once, in the order in which they were sampled."""
    return list(dict.fromkeys(x["text"].strip() for x in said if x["solved"] and x["text"].strip()))


def _usable(said: list[dict[str, Any]], config: ConversionConfig) -> int:
    return min(len(_right(said)), config.solutions_per_problem)


def _chosen(
    problems: list[Problem], texts: list[list[dict[str, Any]]], config: ConversionConfig, wanted: int
) -> tuple[list[Problem], dict[str, Any]]:
    """One solution of every problem, then a second of those that have it, and so on: hard problems count as much as easy ones."""
    right = [_right(said)[: config.solutions_per_problem] for said in texts]
    pairs = [
        (i, turn) for turn in range(config.solutions_per_problem) for i in range(len(right)) if turn < len(right[i])
    ][:wanted]
    found = [replace(problems[i], solution=right[i][turn]) for i, turn in pairs]
    wrong = [
        replace(problems[i], solution=text)
        for i, said in enumerate(texts)
        for text in list(
            dict.fromkeys(x["text"].strip() for x in said if x["whole"] and not x["solved"] and x["text"].strip())
        )[:1]
    ]
    share = config.wrong_share
    kept = (
        random.Random(config.seed).sample(wrong, min(len(wrong), round(len(found) * share / (1 - share))))
        if share
        else []
    )
    per = Counter(len(texts_of) for texts_of in right)
    figures = {
        "problems_sampled": len(texts), "problems_solved": sum(bool(each) for each in right), "texts": sum(map(len, texts)),
        "texts_right": sum(x["solved"] for said in texts for x in said), "solutions": len(found), "wrong_texts_kept": len(kept),
        "problems_with_n_solutions": {str(n): per[n] for n in sorted(per)},
        "shown": [{"problem": p.problem, "solution": p.solution} for p in found[:SHOWN]],
    }  # fmt: skip
    return [*found, *kept], figures
