"""Comparisons: agents x seeds (and the oracle) on the same problems, each part a resumable run of its own."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from ollm_rl.common.config_files import RENAMED_CHOICES
from ollm_rl.common.locate import locate
from ollm_rl.common.run_dir import CONFIG, RESULTS, Run, may_continue, stored_json
from ollm_rl.config.compose import Settings, on_cluster
from ollm_rl.evaluation.comparison import pool_curves, summarize
from ollm_rl.evaluation.results import Results
from ollm_rl.experiments.oracle_run import run_oracle
from ollm_rl.experiments.overrides import trial_settings
from ollm_rl.experiments.single import SessionCache, is_done, run_trial
from ollm_rl.models.adapters import FITTED
from ollm_rl.session.agent import declared
from ollm_rl.session.opening import serialize_settings
from ollm_rl.session.transport import SerializedSettings

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """What a comparison is made of: an agent with a seed, or the oracle with a seed."""

    name: str
    do: Callable
    settings: Settings
    seed: int


def parts_of(overrides: list[str], settings: Settings) -> list[Part]:
    """All agents with all seeds, and the oracle if `with_oracle`."""
    config, parts = settings.config, list[Part]()
    trials = [trial_settings(overrides, settings, name) for name in config.agents]
    searching = settings if config.policy else settings.without_agent()
    for seed in config.seeds:
        parts += [Part(f"{each.agent_name}-{seed}", run_trial, each, seed) for each in trials]
        parts += [Part(f"oracle-{seed}", run_oracle, searching, seed)] if config.with_oracle else []
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
            path = _directory(run.path, part)
            if (path / CONFIG).exists():
                grown, _ = may_continue(path, part.settings.yaml())
                done |= {path} if is_done(path, grown, part.settings, part.do is run_trial) else set()
    rollout = comparisons[0][1].config.rollout
    if not on_cluster(rollout) or rollout.num_workers:
        return
    stages: list[list[tuple[Path, Part]]] = [[], [], []]
    for overrides, settings, run in comparisons:
        begun = False
        for part in parts_of(overrides, settings):
            # Those with a long set-up share it: one begins at once, the others would only wait for it, and come last.
            long = part.do is run_trial and _sets_up_long(part.settings)
            stages[2 if long and begun else 0 if long else 1].append((run.path / part.name, part))
            begun |= long
    waiting = [(path.resolve(), p) for stage in stages for path, p in stage if path not in done]
    if not waiting:
        return
    from ollm_rl.cluster.jobs import side_by_side

    side_by_side(
        {path: partial(_run_part, path, p.do, serialize_settings(p.settings), p.seed) for path, p in waiting}, rollout
    )


def _sets_up_long(settings: Settings) -> bool:
    """It fits an adapter to solutions first, or waits for another part that does."""
    agent = locate(settings.config.agent._target_)
    return declared(agent, "long_setup") or settings.config.backbone.adapter == FITTED


def _directory(root: Path, part: Part) -> Path:
    """A part's directory. One of an earlier release, under what its agent was called then, gets its name of today."""
    path, today = root / part.name, part.settings.agent_name
    former = [root / f"{old}-{part.seed}" for old, new in RENAMED_CHOICES.items() if new == today]
    if part.do is run_trial and not path.exists():
        for old in filter(Path.exists, former):
            old.rename(path)
    return path


def compare(overrides: list[str], settings: Settings, run: Run) -> Results:
    """All parts, side by side on a cluster (`run_parts`), else one after the other; what `results.json` then has.

    One after the other, agents that begin alike are evaluated once before they learn; in bfloat16, where roundings depend on
    what else is in a batch, that may differ in a few texts from parts side by side.
    """
    config = settings.config
    parts: list[Results] = []
    sessions = SessionCache()
    try:
        with run.unless_refused():
            run_parts([(overrides, settings, run)])
            every = parts_of(overrides, settings)
            for i, (name, do, each, seed) in enumerate(every, 1):
                log.info("part %d of %d: %s", i, len(every), name)
                part = Run(run.path, name, each.yaml())
                try:
                    parts.append(do(each, part, sessions, seed))
                finally:
                    part.close()
    finally:
        sessions.close()
    rows = [row for part in parts for row in part.rows]
    results = Results(rows, config.task.name, config.backbone.name, directory=run.path)
    summarize(results)
    results.curves = pool_curves([part for part in parts if part.curves])
    results.conversion = stored_json(rows[0].directory / "conversion.json") if rows[0].directory else {}
    run.write_json(RESULTS, results.to_dict())
    return results


def _run_part(path: Path, do: Callable, serialized_settings: SerializedSettings, seed: int) -> None:
    """A part of a comparison in a process of its own; its results are in its directory."""
    settings, sessions = Settings(OmegaConf.create(serialized_settings[0]), serialized_settings[1]), SessionCache()
    run = Run(path.parent, path.name, settings.yaml())
    try:
        do(settings, run, sessions, seed)
    finally:
        run.close()
        sessions.close()
