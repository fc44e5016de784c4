"""The files of `configs/`: which groups there are, what each offers, and what a file says."""

from collections.abc import Iterable
from importlib import resources
from typing import Any

from omegaconf import OmegaConf

from ollm_rl.errors import did_you_mean

GROUPS = ("backbone", "plugin", "task", "reward", "engine", "agent", "oracle", "rollout", "experiment")


OPEN_GROUPS = ("agent", "reward")  # a class of the user's can stand there

# What settings, and agents with their settings, were called in earlier releases.
RENAMED = {
    "convert.hardness": "convert.hard_assignment",
    "convert.anchor": "convert.first_option_weight",
    "convert.easy_share": "convert.easy_keep_prob",
    "convert.straying": "convert.off_shortlist_penalty",
    "oracle.bonus": "oracle.deviation_penalty",
    "oracle.brevity": "oracle.length_penalty",
}
RENAMED_CHOICES = {"full_head": "shortlist_head"}
RENAMED_TARGETS = {
    "agents.full_head.FullHead": "agents.shortlist_head.ShortlistHead",
    "ollm_rl.judges.MathVerify": "ollm_rl.reward.functions.MathVerify",
    "ollm_rl.judges.ReasoningGym": "ollm_rl.reward.functions.ReasoningGym",
}


def new_name(key: str) -> str:
    """What a setting of an earlier release is called now; the same, if it has its name still."""
    owner, dot, rest = key.partition(".")
    return RENAMED.get(key, f"{RENAMED_CHOICES.get(owner, owner)}{dot}{rest}")


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


def suggestion(name: str, names: Iterable[str]) -> str:
    """What was perhaps meant by a name that is none of `names`: what it is called now, or the nearest."""
    if name in RENAMED_CHOICES:
        return f" '{name}' is called '{RENAMED_CHOICES[name]}' now."
    return did_you_mean(name, names)
