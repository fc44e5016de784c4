"""`agent=grpo,ppo seed=0,1,2`: the same command with every combination, side by side on a Ray cluster or one after the other."""

import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ollm_rl.common.config_files import names_with
from ollm_rl.common.run_dir import RESULTS
from ollm_rl.config.compose import Settings, compose, on_cluster, preflight
from ollm_rl.errors import ConfigurationError

if TYPE_CHECKING:
    from ollm_rl.evaluation.results import Results

log = logging.getLogger(__name__)
HUB_KEYS = ("backbone", "backbone.name", "task.hub_id")  # whose values need not be paths
ONE_VALUE = ("runs_dir",)  # and every text that is taken as it stands
SWEPT = ("convert", "train", "evaluate", "oracle")  # `compare` has agents=[...] and seeds=[...]


def alternatives(override: str) -> list[str]:
    """`key=a,b`, `key=range(0,3)` and whatever else Hydra's grammar has for several values, as `key=a` and `key=b`.

    Commas belong to a path, unless it is not there and all of its parts are.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, sign, value = override.partition("=")
    key = key.lstrip("+")
    if key in ONE_VALUE or key in names_with("literal") or not sign:
        return [override]
    if key == "backbone" or key in names_with("path"):
        parts = value.split(",")
        several = len(parts) > 1 and _are_several(parts, value, key in HUB_KEYS)
        return [f"{key}={part}" for part in parts] if several else [override]
    try:
        read = OverridesParser.create().parse_override(f"key={value}")
        values = list(read.sweep_string_iterator()) if read.is_sweep_override() else [value]
    except (HydraException, RecursionError):  # a text that is taken as it stands, or a mistake that is said later
        return [override]
    return [f"{key}={each}" for each in values]


def _are_several(parts: list[str], whole: str, may_be_remote: bool) -> bool:
    """Whether a text with commas is several paths, or names that a hub has, and not one path."""

    def can_be(path: str) -> bool:
        remote = may_be_remote and not path.startswith(("/", ".", "~"))
        return path == "null" or remote or os.path.exists(os.path.expanduser(path))

    return not os.path.exists(os.path.expanduser(whole)) and all(map(can_be, parts))


def combinations(overrides: list[str]) -> list[list[str]]:
    """Every combination of alternatives, each with a run's name of its own; one list if there is nothing to combine.

    Raises:
        ConfigurationError: an alternative that is empty or stands twice, or several names.
    """
    choices = [alternatives(override) for override in overrides]
    swept = [c for c in choices if len(c) > 1]
    if not swept:
        return [overrides]
    for choice in swept:
        key = choice[0].partition("=")[0]
        if key == "name" or len(set(choice)) < len(choice) or any(c.endswith("=") for c in choice):
            remedy = "a run has one name" if key == "name" else f"expected {key}=a,b with no two the same"
            raise ConfigurationError(f"cannot read '{key}={','.join(c.partition('=')[2] for c in choice)}'; {remedy}")
    found = []
    for combination in itertools.product(*choices):
        label = "-".join(_label(c) for c, of in zip(combination, choices, strict=True) if len(of) > 1)
        found.append([*(c for c in combination if not c.startswith("name=")), f"name={_name(overrides)}{label}"])
    if len({job[-1] for job in found}) < len(found):
        raise ConfigurationError(
            f"two combinations would be called '{found[0][-1].removeprefix('name=')}' or alike; give them names of their own, one run each"
        )
    return found


def _name(overrides: list[str]) -> str:
    return next((o.partition("=")[2] + "/" for o in overrides if o.startswith("name=")), "")


def _label(override: str) -> str:
    key, _, value = override.partition("=")
    value = value.replace("/", "_")
    return value if key == "agent" else f"{key.rsplit('.', 1)[-1]}{value}"


def run_all(command: str, jobs: list[list[str]], run: Callable[[str, Settings, list[str]], None]) -> list[Path]:
    """Run every combination and give the directories.

    All configurations are checked before the first begins. On a cluster (`rollout.address`, or the job that this process is)
    the combinations are tasks that ask for the resources of a worker.
    """
    settings = []
    for job in jobs:
        try:
            settings.append(compose(job))
            preflight(settings[-1])
        except ConfigurationError as error:
            raise ConfigurationError(f"{' '.join(o for o in job if not o.startswith('name='))}: {error}") from error
    folders = [Path(each.config.runs_dir) / (each.config.name or command) for each in settings]
    if not on_cluster(settings[0].config.rollout):
        for job, each, folder in zip(jobs, settings, folders, strict=True):
            log.info("%s", folder)
            run(command, each, job)
        return folders
    from ollm_rl.cluster.jobs import side_by_side

    root = f"runs_dir={Path(settings[0].config.runs_dir).resolve()}"
    calls = {folder: partial(_job, command, [*job, root]) for job, folder in zip(jobs, folders, strict=True)}
    side_by_side(calls, settings[0].config.rollout)
    return folders


def _job(command: str, overrides: list[str]) -> None:
    from ollm_rl.cli.commands import COMMANDS

    settings = compose(overrides)
    preflight(settings)
    COMMANDS[command](settings, overrides)


def gather(folders: list[Path]) -> "Results":
    """The rows of all combinations as one; each has its run's name as agent."""
    from ollm_rl.evaluation.results import Results

    found = {folder: Results.load(folder) for folder in folders if (folder / RESULTS).exists()}
    rows = [replace(row, agent=folder.name) for folder, results in found.items() for row in results.rows]
    first = next(iter(found.values()), Results([]))
    return Results(rows, first.task, first.backbone)
