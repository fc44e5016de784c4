"""What is typed for a configuration: its choices, and the settings that differ from their defaults."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from ollm_rl.common.config_files import OPEN_GROUPS, group_file, known_settings, members, schema
from ollm_rl.config.compose import compose, to_dict
from ollm_rl.config.overrides import written

CHOSEN = ("agent", "task", "reward", "backbone")  # groups of which a member is named
SECTIONS = (*CHOSEN, "plugin", "convert", "evaluate", "value", "engine")
REFER = ("agent", "engine")  # whose defaults are settings of the others


def typed(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The overrides that give a configuration's sections, by section; `<group>=<choice>` comes first.

    >>> typed({"task": {"name": "jsonl", "path": "my.jsonl"}})
    {'task': ['task=jsonl', 'task.path=my.jsonl']}

    Args:
        config: nested, as a run keeps it; sections may be missing, and settings of a section too.
    """
    given = {name: config[name] for name in SECTIONS if config.get(name)}
    choices = {group: f"{group}={choice(group, given[group])}" for group in CHOSEN if group in given}
    found: dict[str, list[str]] = {}
    for names in ([n for n in given if n not in REFER], [n for n in given if n in REFER]):
        so_far = [*choices.values(), *(o for said in found.values() for o in said if o not in choices.values())]
        settings = compose(so_far)
        known = known_settings(settings.choices)
        base = to_dict(settings.config)
        open_groups = {group for group in OPEN_GROUPS if schema(group, settings.choices[group]) is None}
        for name in names:
            differing = _differing(given[name], base[name], f"{name}.", name in open_groups)
            said = [written(key, value, known, open_groups) for key, value in differing]
            found[name] = [*([choices[name]] if name in choices else []), *said]
    return {name: found[name] for name in SECTIONS if name in found}


def choice(group: str, settings: Mapping[str, Any]) -> str:
    """The member of a group that has these settings, or what is named in its place: a class, or a backbone's directory or hub id."""
    key = "_target_" if "_target_" in settings else "name"
    said = str(settings[key])
    named = [m for m in members(group) if m != "custom" and group_file(group, m).get(key) == said]
    if not named:
        return said

    def shared(member: str) -> int:
        default = OmegaConf.to_container(group_file(group, member), resolve=False)
        assert isinstance(default, dict)
        return sum(default.get(name) == value for name, value in settings.items())

    return max(named, key=shared)


def _differing(
    given: Mapping[str, Any], base: Mapping[str, Any], prefix: str, is_open: bool
) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if prefix.count(".") == 1 and name == "_target_" or name in base and base[name] == value:
            continue
        if name not in base and not is_open and value in (None, False, {}):
            continue  # a setting of another release, which was off
        if isinstance(value, Mapping) and value:
            inner = base.get(name)
            yield from _differing(value, inner if isinstance(inner, Mapping) else {}, f"{prefix}{name}.", True)
        else:
            yield f"{prefix}{name}", value
