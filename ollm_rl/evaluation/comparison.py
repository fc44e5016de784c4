"""What a comparison says beyond its rows: pooled figures, thresholds, areas under curves, and paired tests between agents."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ollm_rl.common.run_dir import METRICS, whole_lines
from ollm_rl.evaluation.metrics import bootstrap, pool_breakdowns, share, wilson
from ollm_rl.evaluation.overview import is_graded
from ollm_rl.evaluation.records import Curves, General, PairedTest, Point, Record, Sampled, Share, Variant
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import PooledRow, Row, Scores
from ollm_rl.evaluation.verification import Group, Stored, groups_of, verify

WINDOW = 256  # episodes of which learning curves show the mean
R = TypeVar("R", bound=Record)


def summarize(results: Results) -> None:
    """Add thresholds and areas to the rows, and `pooled` and `tests`."""
    add_thresholds(results.rows)
    add_areas(results.rows)
    results.pooled, results.tests = pool(results.rows), paired_tests(results.rows)


def pool(rows: Sequence[Row]) -> list[PooledRow]:
    """One row per agent over its seeds.

    `n_problems` counts answers. In the intervals of accuracies a problem that several seeds had counts once, whichever seeds solved it. A figure that some seed lacks (a threshold that it did not reach) is left out.
    """
    return [_pooled([r for r in rows if r.agent == agent]) for agent in dict.fromkeys(r.agent for r in rows)]


def _pooled(mine: list[Row]) -> PooledRow:
    texts = [texts_of(r, "greedy") for r in mine]
    lines = [line for some in texts for line in some] if all(texts) else []
    # Seeds share problems where a file has no more; those that a task draws anew are different, whatever their texts.
    different = len({line.get("problem_id", line["problem"]) for line in lines}) / len(lines) if lines else 1.0
    means = _means(PooledRow, mine) | _accuracy(mine, different)
    for name in ("episodes", "seconds"):
        means[f"{name}_to_threshold_reached"] = sum(getattr(r, f"{name}_to_threshold") is not None for r in mine)
    if len(before := [r.before for r in mine if r.before]) == len(mine):
        means["before"] = Scores(**_means(Scores, before) | _accuracy(before, different))
    if any(map(is_graded, mine)) and lines:
        rewards = np.array([line["reward"] for line in lines], dtype=float)
        means["mean_reward_ci95"] = bootstrap(rewards, [line["problem"] for line in lines]).ci95
    for name in ("search", "teacher"):
        if None not in (parts := [getattr(r, name) for r in mine]):
            first = parts[0]
            same = {k: getattr(first, k) for k in ("search", "budget") if hasattr(first, k)}
            means[name] = type(first)(**_means(type(first), parts) | same)
    if all(r.value for r in mine):
        groups = [_stored_groups(r) for r in mine]
        means["value"] = verify([g for some in groups for g in some], [*mine[0].sampled]) if all(groups) else None
    if (
        (read := [r.general for r in mine if r.general])
        and len({r.n_texts for r in read}) == 1
        and len(read) == len(mine)
    ):
        means["general"] = pool_general(read)
    breakdown = pool_breakdowns([r.breakdown for r in mine], different)
    return PooledRow(
        agent=mine[0].agent, seeds=[r.seed for r in mine], breakdown=breakdown, ood=pool_ood(mine),
        hand_over=_pooled_shares([r.hand_over for r in mine], different), **means,
    )  # fmt: skip


def pool_general(found: Sequence[General]) -> General:
    """Over several seeds, which all read the same texts: means, and the interval of the texts' mean differences."""
    changes = np.mean([each.changes for each in found], 0)
    means: dict[str, Any] = {
        name: float(np.mean([getattr(each, name) for each in found]))
        for name in ("kl", "loss", "backbone_loss", "same_token")
    }
    return General(
        n_texts=found[0].n_texts,
        n_tokens=found[0].n_tokens,
        loss_change_ci95=bootstrap(changes).ci95,
        changes=changes.tolist(),
        **means,
    )


def _pooled_shares(parts: Sequence[Mapping[str, Share]], different: float) -> dict[str, Share]:
    """Shares of the same name over all problems, of those that all have."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    found: dict[str, Share] = {}
    for name in names:
        each = [part[name] for part in parts]
        found[name] = share(sum(s.accuracy * s.n for s in each), sum(s.n for s in each), different)
    return found


def _stored_groups(row: Row) -> list[Group]:
    """A row's texts with their values, from its run's files; none where these are gone."""
    greedy, sampled = texts_of(row, "greedy"), texts_of(row, "sampled")
    if not greedy or len(sampled) % len(greedy):
        return []
    return groups_of([*map(Stored, greedy)], [*map(Stored, sampled)], [line["problem"] for line in greedy])


def _accuracy(rows: Sequence[Scores], different: float) -> dict[str, Any]:
    whole = share(sum(r.accuracy * r.n_problems for r in rows), sum(r.n_problems for r in rows), different)
    return {"n_problems": whole.n, "accuracy": whole.accuracy, "accuracy_ci95": whole.accuracy_ci95}


def _means(kind: type[Record], records: Sequence[Record]) -> dict[str, Any]:
    """The means of the figures of `kind` that are numbers in all records."""
    found: dict[str, Any] = {}
    for name in kind.names():
        values: list[Any] = [getattr(r, name, None) for r in records]
        if all(map(_number, values)):
            found[name] = sum(values) / len(values)
    extra = [k for k in records[0].extra if all(_number(r.extra.get(k)) for r in records)]
    found["extra"] = {k: sum(r.extra[k] for r in records) / len(records) for k in extra}
    sampled = [r.sampled for r in records if isinstance(r, Scores)]
    for k in sorted(set[int]().union(*sampled)):
        of_k = [each.get(k, Sampled()) for each in sampled]
        figures = {name: [getattr(each, name) for each in of_k] for name in ("avg", "pass_", "maj")}
        mean = {name: sum(some) / len(some) for name, some in figures.items() if None not in some}
        if mean:
            found.setdefault("sampled", {})[k] = Sampled(**mean)
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def pool_curves(found: Sequence[Results]) -> Curves:
    """The searches' curves over seeds: solved shares of all problems, with their intervals.

    Args:
        found: a seed's results each.
    """
    sizes = [each.rows[0].n_problems for each in found]
    pooled: Curves = {}
    for name in found[0].curves if found else []:
        pooled[name] = []
        for points in zip(*(each.curves[name] for each in found), strict=True):
            solved = round(sum(p.solved * n for p, n in zip(points, sizes, strict=True)))
            ci95 = wilson(solved, sum(sizes))
            pooled[name].append(Point(budget=points[0].budget, solved=solved / max(sum(sizes), 1), ci95=ci95))
    return pooled


def pool_ood(rows: Sequence[Row]) -> dict[str, Variant]:
    """Out-of-distribution accuracy of an agent over its seeds, with the change from before training."""
    found = {}
    for name in [name for name in rows[0].ood if all(name in r.ood for r in rows)]:
        after = _solved([r.ood[name] for r in rows])
        whole = Variant(**vars(share(float(after.sum()), len(after))))
        if all(r.before and name in r.before.ood for r in rows):
            before = _solved([r.before.ood[name] for r in rows if r.before])
            change = bootstrap(after - before)
            whole.before = float(before.mean())
            whole.change, whole.change_ci95, whole.change_p = change.mean, change.ci95, change.p
            whole.worse = "yes" if change.ci95[1] < 0 else "perhaps" if change.mean < 0 else "no"
        found[name] = whole
    return found


def _solved(variants: Sequence[Variant]) -> np.ndarray:
    return np.array([solved for v in variants for solved in v.solved or ()], dtype=float)


def paired_tests(rows: Sequence[Row]) -> list[PairedTest]:
    """Differences of greedy and of sampled accuracy between all pairs of agents, on the same problems of the same seeds; of the mean reward of
    greedy texts too, if some agent's is another than its accuracy."""
    found: dict[str, dict[str, np.ndarray]] = {}
    asked: dict[str, list[str]] = {}
    samples: dict[tuple[str, str], set[int]] = {}  # per problem, by agent and kind
    agents = list(dict.fromkeys(r.agent for r in rows))
    kinds = ["greedy", "sampled", *(["reward"] if any(map(is_graded, rows)) else [])]
    for agent in agents:
        parts: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
        asked[agent] = []
        for row in sorted((r for r in rows if r.agent == agent and r.directory), key=lambda r: r.seed):
            for kind, part in parts.items():
                lines = texts_of(row, "sampled" if kind == "sampled" else "greedy")
                if lines and len(lines) % row.n_problems == 0:
                    values = [line["reward"] if kind == "reward" else solved(line) for line in lines]
                    part.append(np.array(values, dtype=float).reshape(row.n_problems, -1).mean(1))
                    samples.setdefault((agent, kind), set()).add(len(lines) // row.n_problems)
                    if kind == "greedy":
                        asked[agent] += [line["problem"] for line in lines]
        found[agent] = {kind: np.concatenate(part) for kind, part in parts.items() if part}
    tests = []
    for i, one in enumerate(agents):
        for other in agents[i + 1 :]:
            test = PairedTest(agents=[one, other], n=0)
            for kind in kinds:
                a, b = found[one].get(kind), found[other].get(kind)
                if (
                    a is not None
                    and b is not None
                    and asked[one] == asked[other]
                    and len(a) == len(b) == len(asked[one])
                    and samples[one, kind] == samples[other, kind]
                ):
                    test.n = len(a)
                    setattr(test, kind, bootstrap(b - a, asked[one]))
            if test.n:
                tests.append(test)
    return tests


def solved(line: dict[str, Any]) -> bool:
    """Whether a stored text solved its problem; those of an early release do not say so."""
    return bool(line.get("solved", line["reward"] >= 1.0))


def texts_of(row: Row, kind: str) -> list[dict[str, Any]]:
    """The greedy or the sampled texts of a row; none where its run's files are gone."""
    return [] if row.directory is None else whole_lines(row.directory / "rollouts" / f"{kind}.jsonl")


def learning_curve(row: Row) -> list[dict[str, Any]]:
    """The iterations of a learner: lines of its `metrics.jsonl` that have a reward."""
    return _lines(row, "reward")


def evaluation_curve(row: Row) -> list[dict[str, Any]]:
    """What was evaluated on held-out problems while it learned: lines with `eval/accuracy` and `eval/n_problems`."""
    return _lines(row, "eval/accuracy")


def _lines(row: Row, key: str) -> list[dict[str, Any]]:
    lines = whole_lines(row.directory / METRICS) if row.directory else []
    return [line for line in lines if line.get(key) is not None and "train_episodes" in line]


def add_areas(rows: Sequence[Row]) -> None:
    """`area_under_curve`: the mean reward of training over the episodes that every learner had."""
    curves = [learning_curve(r) for r in rows]
    last = [lines[-1]["train_episodes"] for lines in curves if lines and lines[-1]["train_episodes"]]
    for row, lines in zip(rows, curves, strict=True):
        if not lines or not lines[-1]["train_episodes"]:
            continue
        upto, area, before = min(last), 0.0, 0
        for line in lines:
            now = min(line["train_episodes"], upto)
            area, before = area + line["reward"] * (now - before), now
        row.area_under_curve, row.area_episodes = area / upto, upto


def add_thresholds(rows: Sequence[Row]) -> None:
    """Set `threshold`, `episodes_to_threshold` and `seconds_to_threshold` of learners.

    The threshold of a seed is the prior's sampled accuracy plus half of the gap to the best agent's; a learner has
    reached it when the mean training reward of its last `WINDOW` episodes is at least that.
    """
    for seed in {r.seed for r in rows}:
        mine = [r for r in rows if r.seed == seed]
        sampled = _sampled_accuracies(mine)
        for row in mine:
            row.threshold = row.episodes_to_threshold = row.seconds_to_threshold = None
            lines = learning_curve(row)
            if not lines or "prior" not in sampled:
                continue
            if max(sampled.values()) <= sampled["prior"]:
                continue  # nobody got anywhere
            row.threshold = (sampled["prior"] + max(sampled.values())) / 2
            for line, mean in zip(lines, trailing(lines), strict=True):
                if line["train_episodes"] >= WINDOW and mean >= row.threshold:
                    row.episodes_to_threshold = line["train_episodes"]
                    row.seconds_to_threshold = line.get("train_seconds")
                    break


def _sampled_accuracies(rows: Sequence[Row]) -> dict[str, float]:
    """Sampled accuracy by agent, all of as many samples as the prior has."""
    k = max((k for r in rows if r.agent == "prior" for k in r.sampled), default=0)
    values = {r.agent: r.sampled[k].avg for r in rows if k in r.sampled}
    return {agent: value for agent, value in values.items() if value is not None}


def trailing(lines: Sequence[dict[str, Any]]) -> list[float]:
    """The mean training reward of the last `WINDOW` episodes (or all before) at each iteration, however large iterations are."""
    means = []
    for i, line in enumerate(lines):
        end, area, weight = line["train_episodes"], 0.0, 0
        for j in range(i, -1, -1):
            first = lines[j - 1]["train_episodes"] if j else 0
            some = min(lines[j]["train_episodes"] - first, WINDOW - weight)
            area, weight = area + some * lines[j]["reward"], weight + some
            if weight >= min(WINDOW, end):
                break
        means.append(area / max(weight, 1))
    return means
