"""The groups of settings: which there are, what each offers, and the defaults of every setting.

A group's member is a file of `configs/<group>/`. Its first entry under `defaults` names the dataclass that has the settings
with their defaults, or another member; the file itself says what differs. A member without either is open: a class of the
user's, with settings of its own.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module, resources
from typing import Any

from omegaconf import OmegaConf

from ollm_rl.common.settings import Config, Setting, defaults, settings_of
from ollm_rl.errors import did_you_mean

GROUPS = ("backbone", "plugin", "task", "reward", "engine", "agent", "oracle", "rollout", "tracker", "experiment")
OPEN_GROUPS = ("agent", "reward", "task")  # a class of the user's can stand there

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


# The dataclasses, by the name that files of `configs/` give them. By name and not by import: agents and searches are above this.
SCHEMAS = {
    "backbone": {"BackboneConfig": "ollm_rl.models.config"},
    "plugin": {"PlugInChoice": "ollm_rl.options.config"},
    "task": {
        "ChainSumConfig": "ollm_rl.tasks.generated", "LegCountingConfig": "ollm_rl.tasks.generated",
        "ReasoningGymConfig": "ollm_rl.tasks.generated", "JsonlConfig": "ollm_rl.tasks.records", "GSM8KConfig": "ollm_rl.tasks.records",
        "OmniMathConfig": "ollm_rl.tasks.records", "HubSolutionsConfig": "ollm_rl.tasks.streamed",
        "PythonFunctionsConfig": "ollm_rl.tasks.code", "HumanEvalConfig": "ollm_rl.tasks.code",
        "CountdownConfig": "ollm_rl.tasks.planning", "JugsConfig": "ollm_rl.tasks.planning", "ShortestPathConfig": "ollm_rl.tasks.planning",
    },
    "reward": {
        "MathVerifyConfig": "ollm_rl.reward.functions", "PythonTestsConfig": "ollm_rl.reward.python_tests", "RewardConfig": "ollm_rl.reward.config",
        "PerCompletionConfig": "ollm_rl.reward.config", "WeightedConfig": "ollm_rl.reward.config",
    },
    "engine": {"EngineConfig": "ollm_rl.rollout.config"},
    "agent": dict.fromkeys((
            "AgentConfig", "GRPOConfig", "ShortlistHeadConfig", "PPOConfig", "DistillConfig", "ReferenceConfig", "LoRASFTConfig",
            "LoRAGRPOConfig", "BestPrefixConfig", "SteerConfig", "FirstDecisionsConfig", "LocalConfig", "SearchAgentConfig",
    ), "agents.config"),
    "oracle": {"OracleConfig": "ollm_rl.oracle.config"},
    "rollout": {"RolloutConfig": "ollm_rl.cluster.config"},
    "tracker": {"TrackerConfig": "ollm_rl.common.tracker_config"},
}  # fmt: skip
# Sections of the root, and the settings that stand in it without a section.
SECTIONS = {
    "convert": ("ConvertConfig", "ollm_rl.options.config"), "evaluate": ("EvaluateConfig", "ollm_rl.evaluation.config"),
    "value": ("ValueConfig", "ollm_rl.options.config"), "inspect": ("InspectConfig", "ollm_rl.evaluation.config"), "tune": ("TuneConfig", "ollm_rl.experiments.config"), "estimate": ("EstimateConfig", "ollm_rl.experiments.config"),
    "export": ("ExportConfig", "ollm_rl.serving.config"), "chat": ("ChatConfig", "ollm_rl.serving.config"),
    "play": ("PlayConfig", "ollm_rl.serving.config"), "serve": ("ServeConfig", "ollm_rl.serving.config"),
    "view": ("ViewConfig", "ollm_rl.view.config"),
}  # fmt: skip
ROOT = (("RunConfig", "ollm_rl.common.run_settings"), ("ComparisonConfig", "ollm_rl.experiments.config"))


def members(group: str) -> list[str]:
    """The names that a group offers."""
    folder = resources.files("configs") / group
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


@cache
def schema(group: str, name: str) -> type[Config] | None:
    """The dataclass of a group's member; None for an open one."""
    for other in _defaults(group, name):
        if other in SCHEMAS.get(group, {}):
            return getattr(import_module(SCHEMAS[group][other]), other)
        return schema(group, other)
    return None


def section(name: str) -> type[Config]:
    """The dataclass of a section of the root."""
    kind, module = SECTIONS[name]
    return getattr(import_module(module), kind)


def roots() -> list[type[Config]]:
    """The dataclasses of the settings that stand in no section."""
    return [getattr(import_module(module), kind) for kind, module in ROOT]


def known_settings(choices: Mapping[str, str]) -> dict[str, Setting]:
    """All settings, by full name, where these members are chosen; those of open members are not known."""
    found = {name: known for kind in roots() for name, known in settings_of(kind).items()}
    kinds: dict[str, type[Config] | None] = {name: section(name) for name in SECTIONS}
    kinds |= {group: schema(group, choices[group]) for group in SCHEMAS}
    for prefix, kind in kinds.items():
        found |= {f"{prefix}.{name}": known for name, known in (settings_of(kind) if kind else {}).items()}
    return found


@cache
def names_with(rule: str) -> set[str]:
    """Full names of the settings that have a rule (`path`: they name files or directories; `literal`: texts that are taken as they stand),
    whichever members are chosen."""
    kinds = [("", kind) for kind in roots()] + [(f"{name}.", section(name)) for name in SECTIONS]
    for group, names in SCHEMAS.items():
        kinds += [(f"{group}.", getattr(import_module(module), name)) for name, module in names.items()]
    return {
        prefix + name for prefix, kind in kinds for name, known in settings_of(kind).items() if known.rules.get(rule)
    }


@cache
def register_schemas() -> None:
    """Tell Hydra of the dataclasses, under the names that the files of `configs/` use."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for group, kinds in SCHEMAS.items():
        for name, module in kinds.items():
            store.store(group=group, name=name, node=_node(getattr(import_module(module), name)))
    root = {name: _node(section(name)) for name in SECTIONS}
    for kind in roots():
        root |= _node(kind)
    store.store(name="defaults", node=root)


def _node(kind: type[Config]) -> dict[str, Any]:
    """What Hydra composes with. Values are checked by the dataclass itself, with messages that help."""
    return dict(defaults(kind))


def group_file(group: str, name: str) -> Any:
    """A member of a group with its defaults and what it takes over from others."""
    own = config_file(f"{group}/{name}.yaml")
    own.pop("defaults", None)
    parts = []
    for other in _defaults(group, name):
        if other in SCHEMAS.get(group, {}):
            parts.append(OmegaConf.create(_node(getattr(import_module(SCHEMAS[group][other]), other))))
        else:
            parts.append(group_file(group, other))
    return OmegaConf.merge(*parts, own)


def root_file() -> Any:
    """The settings of the root with their defaults."""
    own = config_file("config.yaml")
    own.pop("defaults", None)
    sections = OmegaConf.create({name: _node(section(name)) for name in SECTIONS})
    return OmegaConf.merge(*(OmegaConf.create(_node(kind)) for kind in roots()), sections, own)


def config_file(name: str) -> Any:
    """A file of `configs/` as it stands."""
    return _parsed(name).copy()


@cache
def _parsed(name: str) -> Any:
    return OmegaConf.create((resources.files("configs") / name).read_text())


def _defaults(group: str, name: str) -> list[str]:
    listed = config_file(f"{group}/{name}.yaml").get("defaults", [])
    return [other for other in listed if isinstance(other, str) and other != "_self_"]


def suggestion(name: str, names: Iterable[str]) -> str:
    """What was perhaps meant by a name that is none of `names`: what it is called now, or the nearest."""
    if name in RENAMED_CHOICES:
        return f" '{name}' is called '{RENAMED_CHOICES[name]}' now."
    return did_you_mean(name, names)
