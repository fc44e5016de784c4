"""Experiments: agents x seeds (and the oracle) on the same problems, each cell a resumable run of its own."""

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf

from ollm_rl.common.config_files import GROUPS, members
from ollm_rl.common.run_dir import CONFIG, RESULTS, Run, may_continue, stored_json
from ollm_rl.config.compose import Settings, compose, locate, on_cluster, plain
from ollm_rl.errors import CheckpointError, ConfigurationError, did_you_mean
from ollm_rl.evaluation.comparison import cell_folder, conclude, pool_curves, replays_of
from ollm_rl.evaluation.evaluator import evaluate, evaluate_variants, kl_from_start
from ollm_rl.evaluation.replay import changes, replay
from ollm_rl.oracle import Oracle, summarise
from ollm_rl.oracle.teacher import PICKERS, teacher_forced
from ollm_rl.session.local import Workspace
from ollm_rl.session.opening import make_agent, make_oracle, open_workers, recipe_of

log = logging.getLogger(__name__)
SHOWN = 4  # solved and failed episodes that the report shows per agent


class Lab:
    """Opens the workspace when it is first needed: an experiment whose cells are all done loads no model."""

    _space: Workspace | None = None

    def __init__(self) -> None:
        self.known: dict[
            tuple[str, int], dict
        ] = {}  # how an agent (by `identity`) stood with a seed: many begin as one

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
    """Train (if it learns) and evaluate one agent with one seed; its row, from `results.json` if already there.

    Raises:
        CheckpointError: it is done, more training is wanted, and the agent cannot go on from where it ended.
    """
    with run.unless_refused():
        if is_done(run.path, run.grown, settings, learn):
            log.info("%s: already done", run.path)
            return stored_json(run.path / RESULTS)["rows"][0]
        space = lab.workspace(settings, seed)
        agent = make_agent(space, settings.config.agent, settings.config.policy)
        problems = space.problems(settings.config.evaluate.split, settings.config.evaluate.num_problems, seed)
        return _run_cell(settings, run, lab, seed, learn, space, agent, problems)


def is_done(path: Path, grown: dict, settings: Settings, learn: bool = True) -> bool:
    """Whether a run has its results, and nothing more is wanted of it.

    Args:
        grown: limits of training that are larger now (`Run.grown`).

    Raises:
        CheckpointError: it has its results, and more is wanted that cannot be had.
    """
    if not (path / RESULTS).exists() or not grown:
        return (path / RESULTS).exists()
    if learn and getattr(locate(settings.config.agent._target_), "trains_on", False):
        return False
    [(key, (before, now)), *_] = grown.items()
    why = f"agent '{settings.agent_name}' does not train on once it has ended" if learn else "nothing is trained here"
    raise CheckpointError(
        f"{path} is done with {key}={before}, and now {key}={now} is wanted, but {why}. Repeat that setting, choose another "
        "name=, or delete the directory."
    )


def _run_cell(
    settings: Settings, run: Run, lab: Lab, seed: int, learn: bool, space: Workspace, agent: Any, problems: list
) -> dict:
    config = settings.config
    run.write_json("conversion.json", space.conversion)
    row: dict[str, Any] = {"seed": seed, "train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}
    if config.policy is None and callable(getattr(agent, "prepare", None)):
        agent.prepare(run)
    begun, learns = _identity(agent), getattr(agent, "learns_from_rewards", "total_episodes" in config.agent)
    if learn:
        if learns:
            row["before"] = _before(settings, run, space, agent, problems, seed, lab.known.get((begun, seed)))
            if begun:
                lab.known[begun, seed] = row["before"]
        row |= agent.learn(run) or {}
        agent.save(run.path / "policy")
    found = evaluate(space, agent, settings.agent_name, problems, config.evaluate.samples, seed)
    run.save_rollouts("greedy", found.greedy)
    run.save_rollouts("sampled", found.sampled)
    row = {**found.row, **row, **_further(settings, space, agent, problems, seed)}
    if "before" in row:
        row["length_change"] = row["mean_length"] / max(row["before"]["mean_length"], 1e-9) - 1
    if begun and begun == _identity(agent):
        lab.known[begun, seed] = _standing(row)
    if not getattr(agent, "acts_on_logits", False):
        shown = [e for e in found.greedy if e.solved][:SHOWN] + [e for e in found.greedy if not e.solved][:SHOWN]
        run.write_json("replays.json", space.call(replay, shown))
        if "before" in row:
            row["changes"] = space.call(changes, found.greedy)
    run.write_json(RESULTS, {"task": space.task.name, "backbone": space.backbone.name, "rows": [row]})
    return row


def _before(
    settings: Settings, run: Run, space: Workspace, agent: Any, problems: list, seed: int, known: dict | None
) -> dict:
    """What an agent is before it learns from rewards: greedy accuracy, misbehaviour and out-of-distribution accuracy.

    It is kept, for when a run is resumed the agent is no longer what it was.

    Args:
        known: of an agent that is the same and was evaluated before.
    """
    path = run.path / "before.json"
    if not path.exists():
        if known is None:
            found = evaluate(space, agent, f"{settings.agent_name} before training", problems, 0, seed).row
            known = _standing({**found, **_out_of_distribution(settings, space, agent, seed)})
        run.write_json(path.name, known)
    return stored_json(path)


def _standing(row: dict) -> dict:
    """The figures of greedy texts in a row."""
    dropped = (
        "agent", "seed", "breakdown", "before", "length_change", "kl_from_start", "train_", "setup_", "trainable_", "avg", "pass",
        "maj@",
    )  # fmt: skip
    return {k: v for k, v in row.items() if not k.startswith(dropped) and v is not None}


def _identity(agent: Any) -> str:
    return agent.identity() if callable(getattr(agent, "identity", None)) else ""


def _out_of_distribution(settings: Settings, space: Workspace, agent: Any, seed: int) -> dict:
    n = settings.config.evaluate.num_ood
    if not n or not space.task.variants:
        return {}
    return {"ood": space.call(evaluate_variants, agent, plain(settings.config.task), n, seed)}


def _further(settings: Settings, space: Workspace, agent: Any, problems: list, seed: int) -> dict:
    """Figures of a trained agent that are asked for by `evaluate.num_ood` and `evaluate.num_kl`."""
    found, n = _out_of_distribution(settings, space, agent, seed), settings.config.evaluate.num_kl
    kl = kl_from_start(space, agent, problems[:n], seed) if n else None
    return found if kl is None else {**found, "kl_from_start": kl}


def run_oracle(settings: Settings, run: Run, lab: Lab, seed: int) -> tuple[list[dict], dict[str, list[dict]]]:
    """The oracle's rows, one a search, and their curves, on the same problems as the agents.

    Raises:
        CheckpointError: it is done, and more training is wanted, which is none of its affair.
    """
    with run.unless_refused():
        if is_done(run.path, run.grown, settings, learn=False):
            stored = stored_json(run.path / RESULTS)
            return stored["rows"], stored["curves"]
        config = settings.config
        space = lab.workspace(settings, seed)
        problems = space.problems(config.evaluate.split, config.oracle.num_problems, seed)
        policy, rows, curves = search_policy(space, settings), [], {}
        for name in dict.fromkeys([config.oracle.search, *config.oracle.also]):
            if name == "teacher_forced":
                rows += [{**space.call(teacher_forced, problems, picker), "seed": seed} for picker in PICKERS]
                continue
            agent = "oracle" if name == config.oracle.search else f"oracle_{name}"
            search = make_oracle(space, config, policy, name)
            row, curves[name] = solve_and_store(space, search, problems, run, seed, agent)
            rows.append(row)
        run.write_json("conversion.json", space.conversion)
        results = {"task": space.task.name, "backbone": space.backbone.name, "rows": rows, "curves": curves}
        run.write_json(RESULTS, results)
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


def solve_and_store(
    space: Workspace, oracle: Oracle, problems: list, run: Run, seed: int, agent: str = "oracle"
) -> tuple[dict, list[dict]]:
    """Search all problems; the row, under the name `agent`, and the curve. Episodes to look at are kept under that name."""
    name, start = oracle.search, time.monotonic()
    searches = oracle.solve(problems, seed, run.path / f"searches_{name}.jsonl")
    row, curve = summarise(searches, name, oracle.budget)
    solved = [s.shortest for s in searches if s.shortest is not None]
    run.save_rollouts(f"oracle_{name}", solved)
    run.write_json(replays_of(agent), space.call(replay, solved[: 2 * SHOWN]))
    row |= {"agent": agent, "seed": seed, "occupancy": oracle.occupancy, "search_seconds": time.monotonic() - start}
    return row, curve


class Part(NamedTuple):
    """What a comparison is made of: an agent with a seed, or the oracle with a seed."""

    name: str
    do: Callable
    settings: Settings
    seed: int


def parts_of(overrides: list[str], settings: Settings) -> list[Part]:
    """All agents with all seeds, and the oracle if `with_oracle`."""
    config, parts = settings.config, list[Part]()
    cells = [cell_settings(overrides, settings, name) for name in config.agents]
    for seed in config.seeds:
        parts += [Part(f"{cell.agent_name}-{seed}", run_cell, cell, seed) for cell in cells]
        parts += [Part(f"oracle-{seed}", run_oracle, settings, seed)] if config.with_oracle else []
    return parts


def run_parts(comparisons: Sequence[tuple[list[str], Settings, Run]]) -> None:
    """On a cluster, run all parts that are not done yet side by side, each a task that asks for a worker's resources.

    Nothing runs without a cluster, or with workers (`rollout.num_workers`), which parts one after the other share.

    Raises:
        CheckpointError: a part was begun with another configuration, or is done and cannot go on; before anything runs.
    """
    done: set[Path] = set()
    for overrides, settings, run in comparisons:
        for part in parts_of(overrides, settings):
            path = run.path / part.name
            if (path / CONFIG).exists():
                grown, _ = may_continue(path, part.settings.yaml())
                done |= {path} if is_done(path, grown, part.settings, part.do is run_cell) else set()
    rollout = comparisons[0][1].config.rollout
    if not on_cluster(rollout) or rollout.num_workers:
        return
    stages: list[list[tuple[Path, Part]]] = [[], [], []]
    for overrides, settings, run in comparisons:
        begun = False
        for part in parts_of(overrides, settings):
            # Those with a long set-up share it: one begins at once, the others would only wait for it, and come last.
            long = part.do is run_cell and getattr(locate(part.settings.config.agent._target_), "long_setup", False)
            stages[2 if long and begun else 0 if long else 1].append((run.path / part.name, part))
            begun |= long
    waiting = [(path.resolve(), p) for stage in stages for path, p in stage if path not in done]
    if not waiting:
        return
    from ollm_rl.cluster.jobs import side_by_side

    side_by_side({path: partial(_run_part, path, p.do, recipe_of(p.settings), p.seed) for path, p in waiting}, rollout)


def compare(overrides: list[str], settings: Settings, run: Run) -> dict:
    """All parts, side by side on a cluster (`run_parts`), else one after the other; the content of `results.json`.

    One after the other, agents that begin alike are evaluated once before they learn; in bfloat16, where roundings depend on
    what else is in a batch, that may differ in a few texts from parts side by side.
    """
    config = settings.config
    rows: list[dict] = []
    searched: list[dict] = []  # of the oracle, a seed each
    lab = Lab()
    try:
        with run.unless_refused():
            run_parts([(overrides, settings, run)])
            for name, do, each, seed in parts_of(overrides, settings):
                log.info("%s", name)
                part = Run(run.path, name, each.yaml())
                try:
                    do(each, part, lab, seed)
                finally:
                    part.close()
                found = stored_json(part.path / RESULTS)
                rows += found["rows"]
                searched += [found] if found.get("curves") else []
    finally:
        lab.close()
    results = {"task": config.task.name, "backbone": config.backbone.name, "rows": rows, **conclude(rows, run.path)}
    if searched:
        results["curves"] = pool_curves(searched)
    results["conversion"] = stored_json(cell_folder(rows[0], run.path) / "conversion.json")
    run.write_json(RESULTS, results)
    return results


def _run_part(path: Path, do: Callable, recipe: tuple[Any, dict[str, str]], seed: int) -> None:
    """A part of a comparison in a process of its own; its results are in its directory."""
    settings, lab = Settings(OmegaConf.create(recipe[0]), recipe[1]), Lab()
    run = Run(path.parent, path.name, settings.yaml())
    try:
        do(settings, run, lab, seed)
    finally:
        run.close()
        lab.close()


def of_tasks(overrides: list[str], settings: Settings) -> dict[str, tuple[Settings, list[str]]]:
    """What `tasks` and `quick` of a comparison stand for: settings and overrides of each task, under its name.

    Without `tasks`, or with `task=`, it is one task, under no name. `task.*` overrides go to all of them.
    """
    one = any(o.startswith("task=") for o in overrides)
    if one and any(o.startswith("tasks=") for o in overrides):
        raise ConfigurationError("give task= or tasks=[...], not both")
    if settings.config.quick:
        overrides = [*settings.config.quick_overrides, *overrides]
        settings = compose(shared(overrides))
    if one or not settings.config.tasks:  # task= takes the place of an experiment's tasks
        return {"": (settings, overrides)}
    found = {}
    for task in settings.config.tasks:
        mine = [*overrides, f"task={task}", "tasks=[]"]
        found[task] = compose(shared(mine)), mine
    return found


def shared(overrides: list[str]) -> list[str]:
    """The overrides that are not for agents: `agent.<setting>=` is for all that have it, `<agent>.<setting>=` for one."""
    agents = {"agent", *members("agent")} - ({*GROUPS} - {"agent"})  # `backbone` is a group first
    return [o for o in overrides if o.partition("=")[0].partition(".")[0] not in agents]


def with_overrides(settings: Settings, overrides: list[str]) -> Settings:
    """A comparison's configuration as it is kept: with what was given for its agents, for `agent` in it is nobody's."""
    config = settings.config.copy()
    given = [o for o in overrides if o not in shared(overrides)]
    config.agent_overrides = list(dict.fromkeys([*config.agent_overrides, *given]))
    return Settings(config, settings.choices)


def cell_settings(overrides: list[str], settings: Settings, name: str) -> Settings:
    """The configuration of one agent of a comparison: the experiment's `agent_overrides`, then those of the command line.

    `agent.<setting>=` goes to the agents that have that setting, `<agent>.<setting>=` to one.

    Raises:
        ConfigurationError: an override that no agent of the comparison has.
    """
    names = list(settings.config.agents)
    common = shared(overrides)
    given = [o for o in overrides if o not in common and not o.startswith(("agent=", "agent._target_"))]
    mine = []
    for override in [*settings.config.agent_overrides, *given]:
        owner, _, rest = str(override).partition(".")
        key = rest.partition("=")[0]
        if owner != "agent" and owner not in names:
            if override in given:
                raise ConfigurationError(f"{override}: the comparison has no agent '{owner}', only {', '.join(names)}")
            continue  # of the experiment, for an agent that takes no part this time
        known = {n: _settings_of(n) for n in (names if owner == "agent" else [owner])}
        if key not in (k for keys in known.values() for k in keys):
            raise ConfigurationError(
                f"unknown key '{owner}.{key}': none of the agents {', '.join(known)} has it."
                f"{did_you_mean(key, [k for keys in known.values() for k in keys])}"
            )
        if key in known.get(name, []):
            mine.append(f"agent.{rest}")
    return compose([*common, f"agent={name}", *mine])


@cache
def _settings_of(name: str) -> list[str]:
    if name in members("agent"):
        return [k for k in compose([f"agent={name}"]).config.agent if k != "_target_"]
    if "." in name:
        return list(inspect.signature(locate(name)).parameters)[1:]
    names = [m for m in members("agent") if m != "custom"]
    raise ConfigurationError(f"unknown agent '{name}'; expected one of {', '.join(names)}.{did_you_mean(name, names)}")
