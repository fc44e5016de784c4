"""Experiments: agents x seeds (and the oracle) on the same problems, each cell a resumable run of its own."""

import inspect
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from ollm_rl.config import Settings, compose, locate, members
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.evaluation import evaluate, pool_breakdowns, wilson
from ollm_rl.oracle import Oracle, summarise
from ollm_rl.oracle.teacher import PICKERS, teacher_forced
from ollm_rl.replay import replay
from ollm_rl.runs import Run
from ollm_rl.session import make_agent, make_oracle, open_workers
from ollm_rl.workspace import Workspace

log = logging.getLogger(__name__)
SHOWN = 4  # solved and failed episodes that the report shows per agent


class Lab:
    """Opens the workspace when it is first needed: an experiment whose cells are all done loads no model."""

    _space: Workspace | None = None

    def workspace(self, settings: Settings, seed: int) -> Workspace:
        """The workspace, set to `seed`."""
        if self._space is None:
            self._space = open_workers(settings, seed)
        self._space.seed = seed
        return self._space

    def close(self) -> None:
        if self._space is not None:
            self._space.close()


def run_cell(settings: Settings, run: Run, lab: Lab, seed: int, learn: bool = True) -> dict:
    """Train (if it learns) and evaluate one agent with one seed; its row, from `results.json` if already there."""
    done = run.path / "results.json"
    if done.exists():
        log.info("%s: already done", run.path)
        return json.loads(done.read_text())["rows"][0]
    config = settings.config
    space = lab.workspace(settings, seed)
    agent = make_agent(space, config.agent, config.policy)
    problems = space.problems(config.evaluate.split, config.evaluate.num_problems, seed)
    run.write_json("conversion.json", space.conversion)
    cost = {"train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}
    if learn:
        cost |= agent.learn(run) or {}
        agent.save(run.path / "policy")
    found = evaluate(space, agent, settings.agent_name, problems, config.evaluate.samples, seed)
    run.save_rollouts("greedy", found.greedy)
    run.save_rollouts("sampled", found.sampled)
    shown = [e for e in found.greedy if e.solved][:SHOWN] + [e for e in found.greedy if not e.solved][:SHOWN]
    run.write_json("replays.json", [] if getattr(agent, "acts_on_logits", False) else space.call(replay, shown))
    row = {**found.row, "seed": seed, **cost}
    run.write_json("results.json", {"task": space.task.name, "backbone": space.backbone.name, "rows": [row]})
    run.close()
    return row


def run_oracle(settings: Settings, run: Run, lab: Lab, seed: int) -> tuple[list[dict], dict[str, list[dict]]]:
    """The oracle's rows, one a search, and their curves, on the same problems as the agents."""
    done = run.path / "results.json"
    if done.exists():
        stored = json.loads(done.read_text())
        return stored["rows"], stored["curves"]
    config = settings.config
    space = lab.workspace(settings, seed)
    problems = space.problems(config.evaluate.split, config.oracle.num_problems, seed)
    policy, rows, curves = search_policy(space, settings), [], {}
    for name in dict.fromkeys([config.oracle.search, *config.oracle.also]):
        if name == "teacher_forced":
            rows += [{**space.call(teacher_forced, problems, picker), "seed": seed} for picker in PICKERS]
            continue
        row, curves[name] = solve_and_store(space, make_oracle(space, config, policy, name), problems, run, seed)
        rows.append(row if name == config.oracle.search else {**row, "agent": f"oracle_{name}"})
    run.write_json("conversion.json", space.conversion)
    results = {"task": space.task.name, "backbone": space.backbone.name, "rows": rows, "curves": curves}
    run.write_json("results.json", results)
    return rows, curves


def search_policy(space: Workspace, settings: Settings):
    """Log-probabilities to search with: those of the policy given by `policy=`, else the prior's."""
    if settings.config.policy is not None:
        agent = make_agent(space, settings.config.agent, settings.config.policy)
        if callable(getattr(agent, "policy", None)):
            return agent.policy
        raise ConfigurationError(f"agent '{settings.agent_name}' has no log-probabilities to search with")

    def prior(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return space.plugin.prior_logits(hidden).masked_fill(~mask, -1e9).log_softmax(-1)

    return prior


def solve_and_store(space: Workspace, oracle: Oracle, problems: list, run: Run, seed: int) -> tuple[dict, list[dict]]:
    name, start = oracle.search, time.monotonic()
    searches = oracle.solve(problems, seed, run.path / f"searches_{name}.jsonl")
    row, curve = summarise(searches, name, oracle.budget)
    solved = [s.shortest for s in searches if s.shortest is not None]
    run.save_rollouts(f"oracle_{name}", solved)
    if not (run.path / "replays.json").exists():  # of the first search
        run.write_json("replays.json", space.call(replay, solved[: 2 * SHOWN]))
    return {**row, "seed": seed, "occupancy": oracle.occupancy, "search_seconds": time.monotonic() - start}, curve


def compare(overrides: list[str], settings: Settings, run: Run) -> dict:
    """All agents with all seeds, and the oracle if `with_oracle`; the content of `results.json`."""
    config = settings.config
    cells = {name: cell_settings(overrides, settings, name) for name in config.agents}
    lab = Lab()
    rows: list[dict] = []
    curves: dict[str, list[dict]] = {}
    try:
        for seed in config.seeds:
            for name, cell in cells.items():
                log.info("agent %s, seed %d", name, seed)
                part = Run(run.path, f"{cell.agent_name}-{seed}", cell.yaml(), config.resume)
                rows.append(run_cell(cell, part, lab, seed))
            if config.with_oracle:
                part = Run(run.path, f"oracle-{seed}", settings.yaml(), config.resume)
                found, curves = run_oracle(settings, part, lab, seed)
                rows += found
    finally:
        lab.close()
    results = {"task": config.task.name, "backbone": config.backbone.name, "rows": rows}
    add_thresholds(rows, run.path)
    results["pooled"] = pool(rows)
    if curves:
        results["curves"] = curves
    results["conversion"] = json.loads((run.path / f"{_cell_name(rows[0])}" / "conversion.json").read_text())
    run.write_json("results.json", results)
    return results


def _cell_name(row: dict) -> str:
    return f"{row['agent']}-{row['seed']}"


def cell_settings(overrides: list[str], settings: Settings, name: str) -> Settings:
    """The configuration of one agent of a comparison: `agent.*` overrides go to the agents that have that setting.

    Raises:
        ConfigurationError: an `agent.*` override that no agent of the comparison has.
    """
    names = list(settings.config.agents)
    common = [o for o in overrides if not o.startswith(("agent.", "agent="))]
    given = [o for o in overrides if o.startswith("agent.") and not o.startswith("agent._target_")]
    given = [*settings.config.get("agent_overrides", []), *given]
    for override in given:
        key = override.partition("=")[0].removeprefix("agent.")
        known = [k for n in names for k in _settings_of(n)]
        if key not in known:
            raise ConfigurationError(
                f"unknown key 'agent.{key}': none of the agents {', '.join(names)} has it.{did_you_mean(key, known)}"
            )
    mine = [o for o in given if o.partition("=")[0].removeprefix("agent.") in _settings_of(name)]
    return compose([*common, f"agent={name}", *mine])


def _settings_of(name: str) -> list[str]:
    if name in members("agent"):
        return [k for k in compose([f"agent={name}"]).config.agent if k != "_target_"]
    if "." in name:
        return list(inspect.signature(locate(name)).parameters)[1:]
    names = [m for m in members("agent") if m != "custom"]
    raise ConfigurationError(f"unknown agent '{name}'; expected one of {', '.join(names)}.{did_you_mean(name, names)}")


def pool(rows: list[dict]) -> list[dict]:
    """One row per agent over its seeds: accuracy over all episodes with its interval, means of the rest."""
    pooled = []
    for agent in dict.fromkeys(r["agent"] for r in rows):
        mine = [r for r in rows if r["agent"] == agent]
        n = sum(r["n_problems"] for r in mine)
        solved = sum(r["accuracy"] * r["n_problems"] for r in mine)
        out: dict[str, Any] = {"agent": agent, "seeds": [r["seed"] for r in mine], "n_problems": n}
        out |= {"accuracy": solved / n, "accuracy_ci95": list(wilson(solved, n))}
        for key, value in mine[0].items():
            if key not in out and key not in ("seed", "budget") and _number(value):
                values = [r[key] for r in mine if _number(r.get(key))]
                out[key] = sum(values) / len(values)
        out["breakdown"] = pool_breakdowns([r.get("breakdown", {}) for r in mine])
        pooled.append(out)
    return pooled


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def add_thresholds(rows: list[dict], root: Path) -> None:
    """Add `episodes_to_threshold` and `seconds_to_threshold` to every row (null where it was not reached).

    The threshold of a seed is the prior's sampled accuracy plus half of the gap to the best agent's; a learner has
    reached it when the mean training reward of three iterations running is at least that.
    """
    for seed in {r["seed"] for r in rows}:
        mine = [r for r in rows if r["seed"] == seed]
        sampled = {r["agent"]: r[k] for r in mine for k in r if k.startswith("avg_at_") and r[k] is not None}
        for row in mine:
            row["episodes_to_threshold"] = row["seconds_to_threshold"] = None
            path = root / _cell_name(row) / "metrics.jsonl"
            if not path.exists() or "prior" not in sampled:
                continue
            threshold = (sampled["prior"] + max(sampled.values())) / 2
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            lines = [line for line in lines if "reward" in line and "train_episodes" in line]
            for window in zip(lines, lines[1:], lines[2:], strict=False):
                if sum(line["reward"] for line in window) / 3 >= threshold:
                    row["episodes_to_threshold"] = window[-1]["train_episodes"]
                    row["seconds_to_threshold"] = window[-1].get("train_seconds")
                    break
