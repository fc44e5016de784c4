"""What can be said against a configuration without data, model or torch."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ollm_rl.common.cache import check_cache
from ollm_rl.common.config_files import OPEN_GROUPS, SCHEMAS, SECTIONS, roots, schema, section
from ollm_rl.common.folders import obstacle
from ollm_rl.common.settings import settings_of
from ollm_rl.common.tracker_config import TrackerConfig, check_tracker
from ollm_rl.errors import ConfigurationError


def check_values(config: DictConfig, choices: Mapping[str, str]) -> None:
    """Every setting's value, by the dataclass that it belongs to.

    Raises:
        ConfigurationError: the first that is not allowed; the message has what was expected.
    """
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    for kind in roots():
        kind.of({name: values[name] for name in settings_of(kind)})
    for name in SECTIONS:
        section(name).of(values[name])
    # The task first: the engine's budget follows it.
    for group in sorted(SCHEMAS, key=lambda group: group != "task"):
        if (kind_of := schema(group, choices[group])) is not None:
            own = {k: v for k, v in values[group].items() if not (group in OPEN_GROUPS and k == "_target_")}
            kind_of.of(own, f"{group}={choices[group]}")
    check_tracker(TrackerConfig.of(values["tracker"]))
    if (config.rollout.num_workers or config.rollout.address) and find_spec("ray") is None:
        raise ConfigurationError(
            "rollout.num_workers and rollout.address need Ray. Install it with `pip install 'ollm_rl[rllib]'`."
        )


def check_folders(config: Any) -> None:
    """Whether the run can be written, and the cache used.

    Raises:
        ConfigurationError: not so; the message has the directory.
    """
    root = str(config.runs_dir)
    if not root.strip() or not root.isprintable():
        raise ConfigurationError(f"runs_dir={root!r:.80}; expected a directory")
    if wrong := obstacle(Path(root) / str(config.name or "")):
        raise ConfigurationError(
            f"runs_dir={root:.120}{f', name={config.name:.120}' if config.name else ''}: {wrong}. Expected a directory that you may "
            "write, or the name of a new one."
        )
    if not config.rollout.num_workers:  # else they have it
        check_cache()
