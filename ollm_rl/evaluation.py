"""Evaluation of an agent on held-out problems: accuracy with its interval, sampled accuracy, misbehaviour."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ollm_rl.common.progress import track
from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.normal_form import normal_form, plain_number
from ollm_rl.reward.verifier import MAX_ANSWER
from ollm_rl.rollout.acting import Acting
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import Request
from ollm_rl.tasks import Problem, make_task
from ollm_rl.tasks.base import values_of
from ollm_rl.workspace import Workspace

BREAKDOWN = ("domain", "difficulty", "source")


@dataclass
class Evaluation:
    """A row of `results.json`, the greedy episodes (one per problem) and the sampled ones (k per problem)."""

    row: dict
    greedy: list[Episode]
    sampled: list[Episode]


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, z * z
    centre, spread = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)  # which rounding would miss


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of solving a problem in k tries from c successes in n (Chen et al. 2021, eq. 1)."""
    return 1.0 if n - c < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(episodes: Sequence[Episode]) -> float:
    """How right the answer is that most of a problem's texts give: the solved share of the texts that give it.

    Answers that the verifier's normal form makes equal are one, texts without an answer do not vote, and of answers that are
    equally frequent it is the mean. Over these k texts as they are: no estimate of what other k would give.
    """
    votes: dict[Any, list[bool]] = {}
    for episode in episodes:
        if episode.answer is not None:
            votes.setdefault(_vote(episode.answer), []).append(episode.solved)
    most = max(map(len, votes.values()), default=0)
    winners = [solved for solved in votes.values() if len(solved) == most]
    return sum(sum(solved) / most for solved in winners) / len(winners) if winners else 0.0


def _vote(answer: str) -> Any:
    if len(answer) > MAX_ANSWER:  # it is compared as it stands
        return answer.strip()
    number = plain_number(form := normal_form(answer))
    return form if number is None else number


def sampled_figures(episodes: Sequence[Episode], k: int) -> dict[str, float | None]:
    """`avg@k`, `pass@k` and `maj@k` of k texts per problem, one problem's after another's; nothing if k is 0.

    `maj@k` is None where rewards have nothing to do with stated answers: solved texts, and no answer in any. `avg_at_8` and
    `pass_at_8` are the same figures for readers of files that know these names.
    """
    if not k or not episodes:
        return {}
    groups = [episodes[at : at + k] for at in range(0, len(episodes), k)]
    correct = [sum(e.solved for e in group) for group in groups]
    unstated = any(correct) and all(e.answer is None for e in episodes)
    found: dict[str, float | None] = {
        f"avg@{k}": float(np.mean(correct)) / k,
        f"pass@{k}": float(np.mean([pass_at_k(k, c, k) for c in correct])),
        f"maj@{k}": None if unstated else float(np.mean([majority(group) for group in groups])),
    }
    return found | ({"avg_at_8": found["avg@8"], "pass_at_8": found["pass@8"]} if k == 8 else {})


def samples_of(rows: Sequence[dict]) -> list[int]:
    """The numbers of samples k that some row has `avg@k` of (`avg_at_k` in older files), in order."""
    keys = (re.fullmatch(r"avg(?:@|_at_)(\d+)", key) for row in rows for key, value in row.items() if value is not None)
    return sorted({int(key[1]) for key in keys if key})


def sampled_figure(row: dict, figure: str, k: int) -> float | None:
    """`avg`, `pass` or `maj` of a row at k samples, under whichever name it has there; None if it was not measured."""
    value = row.get(f"{figure}@{k}")
    return row.get(f"{figure}_at_{k}") if value is None else value


def breakdown(judged: Sequence[tuple[Problem, bool]]) -> dict[str, dict[str, dict]]:
    """`n`, `accuracy` and `accuracy_ci95` of every domain, difficulty and source, where problems differ in them.

    Domains such as `Mathematics -> Algebra -> Equations` count under their second part, and a problem counts in each
    of its domains. Many different difficulties are put in steps of 1.
    """
    found: dict[str, dict[str, dict]] = {}
    for field in BREAKDOWN:
        groups: dict[str, list[bool]] = {}
        values = [(values_of(problem, field), solved) for problem, solved in judged]
        steps = field == "difficulty" and len({v for vs, _ in values for v in vs}) > 8
        for vs, solved in values:
            for name in dict.fromkeys(_group(v, steps) for v in vs):
                groups.setdefault(name, []).append(solved)
        if len(groups) > 1:
            found[field] = {name: _share(sum(s), len(s)) for name, s in sorted(groups.items(), key=_order)}
    return found


def _group(value: Any, steps: bool) -> str:
    if steps:
        return f"{math.floor(value)} to {math.floor(value) + 1}"
    parts = [part.strip() for part in str(value).split("->")]
    return parts[1] if len(parts) > 1 else parts[0]


def _order(group: tuple[str, Any]) -> tuple:
    number = group[0].partition(" ")[0]
    return (0, float(number), "") if number.replace(".", "", 1).isdigit() else (1, 0.0, group[0])


def _share(solved: float, n: int) -> dict:
    return {"n": n, "accuracy": solved / max(n, 1), "accuracy_ci95": list(wilson(solved, n))}


def pool_breakdowns(parts: Sequence[dict[str, dict[str, dict]]]) -> dict[str, dict[str, dict]]:
    """Breakdowns of several runs as one."""
    found: dict[str, dict[str, dict]] = {}
    for field in BREAKDOWN:
        names = dict.fromkeys(name for part in parts for name in part.get(field, {}))
        rows = {name: [part[field][name] for part in parts if name in part.get(field, {})] for name in names}
        if rows:
            found[field] = {
                name: _share(sum(r["accuracy"] * r["n"] for r in some), sum(r["n"] for r in some))
                for name, some in sorted(rows.items(), key=_order)
            }
    return found


def misbehaviour(episodes: Sequence[Episode]) -> dict[str, float]:
    """Shares of texts without an answer, with repetition, and with letters of a foreign script."""
    n = max(len(episodes), 1)
    return {
        "no_answer_rate": sum(e.answer is None for e in episodes) / n,
        "repetition_rate": sum(repeats(e.text) for e in episodes) / n,
        "foreign_script_rate": sum(foreign_script(e.text) for e in episodes) / n,
    }


def repeats(text: str, size: int = 6, times: int = 3) -> bool:
    """Some run of `size` words or signs occurs at least `times` times."""
    words = re.findall(r"\w+|\S", text)
    runs = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    return bool(runs) and max(runs.values()) >= times


def foreign_script(text: str) -> bool:
    """A letter that is neither Latin nor Greek (mathematics uses both)."""
    names = (unicodedata.name(c, "") for c in text if c.isalpha() and ord(c) > 127)
    return any(
        not name.startswith(("LATIN", "GREEK", "MATHEMATICAL", "MICRO", "SCRIPT", "DOUBLE-STRUCK")) for name in names
    )


def evaluate(
    workspace: Workspace, agent, name: str, problems: Sequence[Problem], k: int = 8, seed: int = 0
) -> Evaluation:
    """One greedy answer and k sampled ones for every problem.

    An agent with a model of its own (`acting_workspace`) acts with that. The seeds of the episodes depend on `seed` and the
    problem's place only, so agents are compared on equal terms.

    Raises:
        ConfigurationError: k is negative.
    """
    if k < 0:
        raise ConfigurationError(f"evaluate.samples={k}; expected 0 or more sampled answers per problem")
    workspace = getattr(agent, "acting_workspace", workspace)
    draw = np.random.default_rng((seed, len(problems)))
    seeds = draw.integers(2**31, size=(len(problems), k + 1)).tolist()
    greedy, sampling = Acting(agent, True), Acting(agent, False)
    # All episodes of a problem go together, so that the engine runs what they share once.
    requests = [
        Request(p, x, sampling if i else greedy) for p, s in zip(problems, seeds, strict=True) for i, x in enumerate(s)
    ]
    from_logits = bool(getattr(agent, "acts_on_logits", False))
    with track(f"evaluate {name}", len(requests), "episodes") as bar:
        episodes = workspace.rollout(requests, sampling, keep_hidden=False, from_logits=from_logits, bar=bar)
    first = episodes[:: k + 1]
    rest = [e for i, e in enumerate(episodes) if i % (k + 1)]
    return Evaluation(results_row(name, first, rest, k), first, rest)


def evaluate_variants(workspace: Workspace, agent, settings: dict, n: int, seed: int = 0) -> dict[str, dict]:
    """Greedy accuracy out of distribution: on `n` test problems of each of the task's variants, with the task's own examples.

    Args:
        settings: of the task, which a variant changes.
    """
    space, found = getattr(agent, "acting_workspace", workspace), {}
    from_logits = bool(getattr(agent, "acts_on_logits", False))
    for name, changed in space.task.variants.items():
        task = make_task(**{**settings, **changed})
        engine = {**space.engine_settings, "max_new_tokens": task.max_new_tokens}
        other = Workspace(space.backbone, space.plugin, task, engine, seed, space.judge)
        other.prompter, other.chunk = space.prompter, space.chunk
        requests = [Request(p, i) for i, p in enumerate(other.problems("test", n, seed))]
        with track(f"evaluate on {name}", len(requests), "episodes") as bar:
            episodes = other.rollout(requests, Acting(agent, True), keep_hidden=False, from_logits=from_logits, bar=bar)
        solved = [e.solved for e in episodes]
        found[name] = {**_share(sum(solved), len(solved)), "solved": solved, **misbehaviour(episodes)}
    return found


def kl_from_start(workspace: Workspace, agent, problems: Sequence[Problem], seed: int = 0) -> float | None:
    """Nats an episode between the agent and what it began as, mean over one sampled episode of each problem.

    None for an agent that cannot tell (`divergence(episodes)`).
    """
    if not callable(getattr(agent, "divergence", None)):
        return None
    space, from_logits = getattr(agent, "acting_workspace", workspace), bool(getattr(agent, "acts_on_logits", False))
    seeds = np.random.default_rng((seed, 1)).integers(2**31, size=len(problems)).tolist()
    requests = [Request(p, s) for p, s in zip(problems, seeds, strict=True)]
    return float(np.mean(agent.divergence(space.rollout(requests, Acting(agent, False), from_logits=from_logits))))


def results_row(name: str, greedy: list[Episode], sampled: list[Episode], k: int) -> dict:
    """The evaluation's figures under the names of `results.json`."""
    n = len(greedy)
    solved = sum(e.solved for e in greedy)
    return {
        "agent": name,
        "n_problems": n,
        "accuracy": solved / max(n, 1),
        "accuracy_ci95": list(wilson(solved, n)),
        **sampled_figures(sampled, k),
        "mean_length": float(np.mean([len(e.tokens) for e in greedy])) if greedy else 0.0,
        "mean_decisions": float(np.mean([e.num_decisions for e in greedy])) if greedy else 0.0,
        "mean_reward": float(np.mean([e.reward for e in greedy])) if greedy else 0.0,
        **misbehaviour(greedy),
        "verdicts": dict(Counter(e.verdict for e in greedy if e.verdict).most_common()),
        "breakdown": breakdown([(e.problem, e.solved) for e in greedy]),
    }
