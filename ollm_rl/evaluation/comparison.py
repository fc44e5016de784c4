"""What a comparison says beyond its rows: pooled figures, thresholds, areas under curves, and paired tests between agents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ollm_rl.common.run_dir import whole_lines
from ollm_rl.evaluation.metrics import bootstrap, pool_breakdowns, sampled_metric, samples_of, wilson

WINDOW = 256  # episodes of which learning curves show the mean
UNPOOLED = ("seed", "seeds", "budget", "agent", "n_problems")


def trial_name(row: dict) -> str:
    """The run directory of an agent and a seed, within the comparison's."""
    return f"{row['agent']}-{row['seed']}"


def trial_dir(row: dict, root: Path) -> Path:
    """Where a row's files are: in a directory of its own within the comparison's, or `root` if it was run alone.

    All searches of a seed are in the oracle's.
    """
    folder = root / (f"oracle-{row['seed']}" if "search" in row else trial_name(row))
    return folder if folder.exists() else root


def replays_of(agent: str) -> str:
    """The file of a search's episodes to look at; in `replays.json`, as those of other agents, for the first search."""
    return "replays.json" if agent == "oracle" else f"replays_{agent}.json"


def summarize(rows: list[dict], root: Path) -> dict:
    """Adds thresholds and areas to `rows`, and gives the rest of a comparison's `results.json`: `pooled` and `tests`."""
    add_thresholds(rows, root)
    add_areas(rows, root)
    pooled = pool(rows)
    for row in pooled:
        mark_ood(row, [r for r in rows if r["agent"] == row["agent"]])
    return {"pooled": pooled, "tests": paired_tests(rows, root)}


def pool(rows: list[dict]) -> list[dict]:
    """One row per agent over its seeds: accuracy over all episodes with its interval, means of the rest.

    A figure that some seed lacks (a threshold that it did not reach) is left out, but for `<figure>_reached`: of how many.
    """
    pooled = []
    for agent in dict.fromkeys(r["agent"] for r in rows):
        mine = [r for r in rows if r["agent"] == agent]
        out: dict[str, Any] = {"agent": agent, "seeds": [r["seed"] for r in mine], **_accuracy(mine)}
        if all("before" in r for r in mine):
            out["before"] = _means([r["before"] for r in mine]) | _accuracy([r["before"] for r in mine])
        out |= {key: value for key, value in _means(mine).items() if key not in out}
        for key in ("episodes_to_threshold", "seconds_to_threshold"):
            out.pop(key, None)
            reached = [r[key] for r in mine if r.get(key) is not None]
            out[f"{key}_reached"] = len(reached)
            if reached and len(reached) == len(mine):
                out[key] = sum(reached) / len(reached)
        out["breakdown"] = pool_breakdowns([r.get("breakdown", {}) for r in mine])
        pooled.append(out)
    return pooled


def pool_curves(found: Sequence[dict]) -> dict[str, list[dict]]:
    """The oracle's curves over seeds: solved shares of all problems, with their intervals.

    Args:
        found: a seed's `rows` and `curves` each.
    """
    sizes = [each["rows"][0]["n_problems"] for each in found]
    pooled: dict[str, list[dict]] = {}
    for name in found[0]["curves"] if found else []:
        pooled[name] = []
        for points in zip(*(each["curves"][name] for each in found), strict=True):
            solved = round(sum(p["solved"] * n for p, n in zip(points, sizes, strict=True)))
            ci95 = list(wilson(solved, sum(sizes)))
            pooled[name].append({"budget": points[0]["budget"], "solved": solved / max(sum(sizes), 1), "ci95": ci95})
    return pooled


def _accuracy(rows: Sequence[dict]) -> dict[str, Any]:
    n = sum(r["n_problems"] for r in rows)
    solved = sum(r["accuracy"] * r["n_problems"] for r in rows)
    return {"n_problems": n, "accuracy": solved / n, "accuracy_ci95": list(wilson(solved, n))}


def _means(rows: Sequence[dict]) -> dict[str, float]:
    names = [k for k in rows[0] if k not in UNPOOLED and all(_number(r.get(k)) for r in rows)]
    return {name: sum(r[name] for r in rows) / len(rows) for name in names}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def mark_ood(pooled: dict, rows: list[dict]) -> None:
    """Out-of-distribution accuracy of an agent over its seeds, with `change` from before training and `worse`.

    `worse` is `yes` where the 95% interval of the change (paired bootstrap over problems) lies below zero, `perhaps`
    where only its middle does, else `no`.
    """
    names = [name for name in rows[0].get("ood", {}) if all(name in r.get("ood", {}) for r in rows)]
    if not names:
        return
    pooled["ood"] = {}
    for name in names:
        after = np.concatenate([r["ood"][name]["solved"] for r in rows]).astype(float)
        found = {"n": len(after), "accuracy": after.mean(), "accuracy_ci95": list(wilson(after.sum(), len(after)))}
        if all("ood" in r.get("before", {}) for r in rows):
            before = np.concatenate([r["before"]["ood"][name]["solved"] for r in rows]).astype(float)
            found |= {"before": before.mean(), **{f"change{k}": v for k, v in bootstrap(after - before).items()}}
            found["worse"] = "yes" if found["change_ci95"][1] < 0 else "perhaps" if found["change"] < 0 else "no"
        pooled["ood"][name] = {k: float(v) if isinstance(v, np.floating) else v for k, v in found.items()}


def paired_tests(rows: list[dict], root: Path) -> list[dict]:
    """Differences of greedy and of sampled accuracy between all pairs of agents, on the same problems of the same seeds."""
    found: dict[str, dict[str, np.ndarray]] = {}
    asked: dict[str, list[str]] = {}
    samples: dict[tuple[str, str], set[int]] = {}  # per problem, by agent and kind
    agents = list(dict.fromkeys(r["agent"] for r in rows))
    for agent in agents:
        parts: dict[str, list[np.ndarray]] = {"greedy": [], "sampled": []}
        asked[agent] = []
        for row in sorted((r for r in rows if r["agent"] == agent), key=lambda r: r["seed"]):
            for kind, part in parts.items():
                lines = whole_lines(root / trial_name(row) / "rollouts" / f"{kind}.jsonl")
                if lines and len(lines) % row["n_problems"] == 0:
                    solved = np.array([line["reward"] >= 1.0 for line in lines], dtype=float)
                    part.append(solved.reshape(row["n_problems"], -1).mean(1))
                    samples.setdefault((agent, kind), set()).add(len(lines) // row["n_problems"])
                    if kind == "greedy":
                        asked[agent] += [line["problem"] for line in lines]
        found[agent] = {kind: np.concatenate(part) for kind, part in parts.items() if part}
    tests = []
    for i, one in enumerate(agents):
        for other in agents[i + 1 :]:
            test: dict[str, Any] = {"agents": [one, other]}
            for kind in ("greedy", "sampled"):
                a, b = found[one].get(kind), found[other].get(kind)
                if (
                    a is not None
                    and b is not None
                    and asked[one] == asked[other]
                    and len(a) == len(b) == len(asked[one])
                    and samples[one, kind] == samples[other, kind]
                ):
                    test["n"] = len(a)
                    test |= {f"{kind}{k}": v for k, v in bootstrap(b - a, asked[one]).items()}
            if len(test) > 1:
                tests.append(test)
    return tests


def learning_curve(row: dict, root: Path) -> list[dict]:
    """The iterations of a learner (in a comparison, or alone in `root`): lines of its `metrics.jsonl` that have a reward."""
    lines = whole_lines(trial_dir(row, root) / "metrics.jsonl")
    return [line for line in lines if "reward" in line and "train_episodes" in line]


def add_areas(rows: list[dict], root: Path) -> None:
    """`area_under_curve`: the mean reward of training over the episodes that every learner had."""
    curves = {trial_name(r): learning_curve(r, root) for r in rows}
    last = [lines[-1]["train_episodes"] for lines in curves.values() if lines and lines[-1]["train_episodes"]]
    for row in rows:
        lines = curves[trial_name(row)]
        if not lines or not lines[-1]["train_episodes"]:
            continue
        upto, area, before = min(last), 0.0, 0
        for line in lines:
            now = min(line["train_episodes"], upto)
            area, before = area + line["reward"] * (now - before), now
        row["area_under_curve"], row["area_episodes"] = area / upto, upto


def add_thresholds(rows: list[dict], root: Path) -> None:
    """Add `threshold`, `episodes_to_threshold` and `seconds_to_threshold` to learners' rows (null where it was not reached).

    The threshold of a seed is the prior's sampled accuracy plus half of the gap to the best agent's; a learner has
    reached it when the mean training reward of its last `WINDOW` episodes is at least that.
    """
    for seed in {r["seed"] for r in rows}:
        mine = [r for r in rows if r["seed"] == seed]
        sampled = _sampled_accuracies(mine)
        for row in mine:
            row["episodes_to_threshold"] = row["seconds_to_threshold"] = None
            lines = learning_curve(row, root)
            if not lines or "prior" not in sampled:
                continue
            if max(sampled.values()) <= sampled["prior"]:
                continue  # nobody got anywhere
            row["threshold"] = (sampled["prior"] + max(sampled.values())) / 2
            for line, mean in zip(lines, trailing(lines), strict=True):
                if line["train_episodes"] >= WINDOW and mean >= row["threshold"]:
                    row["episodes_to_threshold"] = line["train_episodes"]
                    row["seconds_to_threshold"] = line.get("train_seconds")
                    break


def _sampled_accuracies(rows: Sequence[dict]) -> dict[str, float]:
    """Sampled accuracy by agent, all of as many samples as the prior has."""
    ks = samples_of([r for r in rows if r["agent"] == "prior"])
    values = {r["agent"]: sampled_metric(r, "avg", ks[-1]) for r in rows} if ks else {}
    return {agent: value for agent, value in values.items() if value is not None}


def trailing(lines: Sequence[dict]) -> list[float]:
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
