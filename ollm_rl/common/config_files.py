"""The files of `configs/`: which groups there are, what each offers, and what a file says."""

from importlib import resources
from typing import Any

from omegaconf import OmegaConf

GROUPS = ("backbone", "plugin", "task", "reward", "engine", "agent", "oracle", "rollout", "experiment")


OPEN_GROUPS = ("agent", "reward")  # a class of the user's can stand there


def members(group: str) -> list[str]:
    """The names that a group offers; files that begin with an underscore are parts of others."""
    folder = resources.files("configs") / group
    names = [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")]
    return sorted(name for name in names if not name.startswith("_"))


def group_file(group: str, name: str) -> Any:
    """A member of a group with what it takes over from others."""
    own = config_file(f"{group}/{name}.yaml")
    others = [o for o in own.pop("defaults", []) if isinstance(o, str) and o != "_self_"]
    return OmegaConf.merge(*(group_file(group, other) for other in others), own)


def config_file(name: str) -> Any:
    return OmegaConf.create((resources.files("configs") / name).read_text())
