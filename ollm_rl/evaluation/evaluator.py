"""Evaluation of an agent on held-out problems: accuracy with its interval, sampled accuracy, degeneration.

`evaluate_agent` is all of it in one call; `evaluate` and its neighbours are the parts that a run puts together.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ollm_rl.common.config_files import group_file, members
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import METRICS, whole_lines, write_json, write_rollouts
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.config import EvaluateConfig
from ollm_rl.evaluation.metrics import degeneration, results_row, share
from ollm_rl.evaluation.records import SearchFigures, Share, Variant
from ollm_rl.evaluation.replay import replay, shown
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row
from ollm_rl.evaluation.verification import groups_of, verify
from ollm_rl.options.policies import LatentPolicy, Sampling
from ollm_rl.options.value import Value
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.agent import Agent, Answer, adapt
from ollm_rl.session.base import BaseSession
from ollm_rl.session.local import Session
from ollm_rl.session.value import give_values
from ollm_rl.tasks import Problem, make_task

log = logging.getLogger(__name__)
MANY = 0.5  # share of greedy texts without an end, from which on that is said


@dataclass
class Evaluation:
    """The figures, the greedy episodes (one per problem) and the sampled ones (k per problem)."""

    row: Row
    greedy: list[Episode]
    sampled: list[Episode]


def evaluate(
    session: BaseSession,
    agent: Agent,
    name: str,
    problems: Sequence[Problem],
    k: int = EvaluateConfig.samples,
    seed: int = 0,
    ks: Sequence[int] = (),
    value: Value | None = None,
) -> Evaluation:
    """One greedy answer and k sampled ones for every problem.

    Args:
        ks: numbers of texts up to k for pass@k and maj@k, estimated from all texts; by default k alone.
        value: a learned verifier, which is asked about all texts, for the row's `value`.

    An agent with a model of its own (`acting_session`) acts with that. The seeds of the episodes depend on `seed` and the
    problem's place only, so agents are compared on equal terms.

    Raises:
        ConfigurationError: k is negative, or one of `ks` larger.
    """
    EvaluateConfig(samples=k, ks=list(ks))  # which checks them
    session = agent.acting_session or session
    if (own := agent.answers(problems, seed)) is not None:
        kind = "/".join(str(getattr(agent.config, key)) for key in ("search", "judge") if hasattr(agent.config, key))
        return evaluate_answers(session, name, own, kind or name, getattr(agent.config, "budget", None), seed)
    draw = np.random.default_rng((seed, len(problems)))
    seeds = draw.integers(2**31, size=(len(problems), k + 1)).tolist()
    # All episodes of a problem go together, so that the engine runs what they share once.
    requests = [agent.request(p, x, i == 0) for p, s in zip(problems, seeds, strict=True) for i, x in enumerate(s)]
    sampling = PolicyAdapter(agent, False)
    with track(f"evaluate {name}", len(requests), "episodes") as bar:
        episodes = session.rollout(requests, sampling, keep_hidden=False, from_logits=agent.acts_on_logits, bar=bar)
    first = episodes[:: k + 1]
    rest = [e for i, e in enumerate(episodes) if i % (k + 1)]
    row = results_row(name, first, rest, k, seed, ks)
    if (cut := sum(e.truncated for e in first)) > MANY * len(first):
        log.warning("%s: the token budget (engine.max_new_tokens) cut off %d of %d greedy texts", name, cut, len(first))
    if value is not None and not agent.acts_on_logits:
        give_values(value, episodes)
        row.value = verify(groups_of(first, rest, [p.problem for p in problems]), ks)
    return Evaluation(row, first, rest)


def evaluate_answers(
    session: BaseSession, name: str, answers: Sequence[Answer], search: str, budget: int | None = None, seed: int = 0
) -> Evaluation:
    """Judge answers that were found without any verdict.

    Args:
        search: by what. budget: tokens that it had for each.
    """
    episodes = [a.episode for a in answers]
    if not episodes:
        raise ConfigurationError(f"{name} gave no answers; expected one for every problem")
    for episode, verdict in zip(episodes, session.run_on_model(_verdicts, episodes), strict=True):
        for field, value in verdict.items():
            setattr(episode, field, value)
    row = results_row(name, episodes, [], 0, seed)
    row.search = SearchFigures(
        search=search,
        budget=budget,
        mean_tokens=float(np.mean([a.tokens for a in answers])),
        mean_tried=float(np.mean([a.texts for a in answers])),
    )
    return Evaluation(row, episodes, [])


def _verdicts(session: Session, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """What the judge sets."""
    session.judge(episodes, session.prompter)
    names = ("reward", "judged", "verdict", "answer", "solved_at", "parts")
    return [{name: getattr(e, name) for name in names} for e in episodes]


def evaluate_agent(
    session: BaseSession,
    agent: Any,
    num_problems: int = EvaluateConfig.num_problems,
    samples: int = EvaluateConfig.samples,
    split: str = EvaluateConfig.split,
    seed: int = 0,
    name: str | None = None,
    directory: str | Path | None = None,
    ks: Sequence[int] = (),
    value: Value | None = None,
) -> Results:
    """Evaluate an agent on problems of a split: one greedy answer and `samples` sampled ones for each.

    >>> result = ol.evaluate(session, agent, num_problems=200, samples=8)
    >>> print(result)
    >>> result.rows[0].accuracy, result.rows[0].sampled[8].pass_

    Args:
        ks: numbers of texts up to `samples` for curves of pass@k and maj@k. value: a learned verifier (`ollm_rl.learn_value`).
        name: of the agent in tables; by default, that of its configuration, or of its class.
        directory: that `results.json`, `rollouts/greedy.jsonl`, `rollouts/sampled.jsonl` and `replays.json` (for the report) are written
            to, over those of an earlier evaluation; by default the agent's `run_dir`, where it has one. What learning took is taken from
            the `metrics.jsonl` there. Nothing is written without a directory.

    Raises:
        ConfigurationError: `samples` is negative or `num_problems` below 1.
        DataError: the split has no problems.
    """
    EvaluateConfig(split=split, num_problems=num_problems)  # which checks them
    agent = adapt(agent, session)
    name = name or agent_name(agent)
    found = evaluate(session, agent, name, session.problems(split, num_problems, seed), samples, seed, ks, value)
    results = Results([found.row], session.task.name, session.backbone.name, conversion=session.conversion)
    directory = directory or agent.run_dir
    if directory is not None:
        found.row.directory = folder = Path(directory)
        lines = [line for line in whole_lines(folder / METRICS) if "train_episodes" in line]
        found.row.add({k: v for k, v in (lines[-1] if lines else {}).items() if k.startswith("train_")})
        write_rollouts(folder, "greedy", found.greedy)
        write_rollouts(folder, "sampled", found.sampled)
        if not agent.acts_on_logits:
            write_json(folder / found.row.replays, session.run_on_model(replay, shown(found.greedy)))
        results.save(folder)
    return results


def agent_name(agent: Agent) -> str:
    """What an agent is called: as in the configurations, or by its class if it is from outside."""
    named = (name for name in members("agent") if group_file("agent", name).get("_target_") == agent.target)
    return next(named, agent.target.rpartition(".")[2])


def evaluate_ood(session: Session, agent: Agent, settings: dict[str, Any], n: int, seed: int = 0) -> dict[str, Variant]:
    """Greedy accuracy out of distribution: on `n` test problems of each of the task's variants, with the task's own examples.

    Args:
        settings: of the task, which a variant changes.
    """
    session, found = agent.acting_session or session, dict[str, Variant]()
    for name, changed in session.task.ood_variants.items():
        task = make_task(**{**settings, **changed})
        engine = {**session.engine_settings, "max_new_tokens": task.max_new_tokens}
        other = Session(session.backbone, session.plugin, task, session.judge, engine, seed)
        other.prompter, other.chunk = session.prompter, session.chunk
        problems = other.problems("test", n, seed)
        if (own := agent.answers(problems, seed)) is not None:
            evaluated = evaluate_answers(other, name, own, name, seed=seed).greedy
            solved = [e.solved for e in evaluated]
            found[name] = Variant(**vars(share(sum(solved), len(solved))), solved=solved, **degeneration(evaluated))
            continue
        requests = [agent.request(p, i, True) for i, p in enumerate(problems)]
        with track(f"evaluate on {name}", len(requests), "episodes") as bar:
            episodes = other.rollout(
                requests, PolicyAdapter(agent, True), keep_hidden=False, from_logits=agent.acts_on_logits, bar=bar
            )
        solved = [e.solved for e in episodes]
        found[name] = Variant(**vars(share(sum(solved), len(solved))), solved=solved, **degeneration(episodes))
    return found


def kl_from_start(session: BaseSession, agent: Agent, problems: Sequence[Problem], seed: int = 0) -> float | None:
    """Nats an episode between the agent and what it began as, mean over one sampled episode of each problem.

    None for an agent that cannot tell (`divergence(episodes)`).
    """
    seeds = np.random.default_rng((seed, 1)).integers(2**31, size=len(problems)).tolist()
    requests = [agent.request(p, s, False) for p, s in zip(problems, seeds, strict=True)]
    session = agent.acting_session or session
    episodes = session.rollout(requests, PolicyAdapter(agent, False), from_logits=agent.acts_on_logits)
    nats = agent.divergence(episodes)
    return None if nats is None else float(np.mean(nats))


def evaluate_hand_over(
    session: BaseSession, agent: Agent, greedy: Sequence[Episode], after: Sequence[float]
) -> dict[str, Share]:
    """Greedy accuracy where the agent chooses at the first decisions of a text only, and the plug-in's prior at all others.

    What is left of the agent's gain over the prior after m decisions says how much of it was made there.

    Args:
        greedy: the agent's own episodes of the problems. after: numbers of decisions; below 1, shares of those that its own text has.
    """
    session, found = agent.acting_session or session, dict[str, Share]()
    prior = Sampling(LatentPolicy.from_prior(session.plugin), deterministic=True)
    for number in after:
        requests = []
        for i, episode in enumerate(greedy):
            request = agent.request(episode.problem, i, True)
            most = math.ceil(number * episode.num_decisions) if number < 1 else int(number)
            most = most if request.hand_over is None else min(most, request.hand_over)
            requests.append(replace(request, hand_over=most, then=prior))
        with track(f"hand over after {number:g}", len(requests), "episodes") as bar:
            episodes = session.rollout(requests, prior, keep_hidden=False, bar=bar)
        found[f"{number:g}"] = share(sum(e.solved for e in episodes), len(episodes))
    return found
