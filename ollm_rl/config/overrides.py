"""Overrides as they are typed: `key=value`, whatever characters the value holds.

Where a key's value is a text or a path, it is taken as it stands, so that paths may hold spaces, quotes, equals signs and
commas; a value in quotes is what stands between them. All other values follow Hydra's grammar: numbers, `true`, `null`,
`[a,b]`, `{a:1}`. In both, `${key}` is the value of another key, and `\\${` a dollar sign and a brace.
"""

import math
import re
from typing import Any

from ollm_rl.common.config_files import new_name
from ollm_rl.errors import ConfigurationError, did_you_mean

FREE_TEXT = ("inspect.prompt",)  # nothing in it has a meaning
# Of files and directories: `~` is the home directory.
PATHS = (
    "task.path", "task.hub_id", "plugin.path", "policy", "backbone.name", "runs_dir", "agent.path", "oracle.critic",
)  # fmt: skip
# Texts, although their default may be null.
TEXTS = (
    *FREE_TEXT, *PATHS, "name", "task.domain", "task.source", "backbone.revision", "backbone.quantization",
    "rollout.address", "agent._target_", "reward._target_",
)  # fmt: skip
NULLABLE = ("rollout.address",)  # whatever its default
SHOWN = 120  # characters of a value in a message


def pair(override: str) -> tuple[str, str]:
    """Key and text of an override; a `+` before the key is left out.

    Raises:
        ConfigurationError: it is not of the form key=value.
    """
    key, sign, text = override.partition("=")
    key = key.lstrip("+")
    try:
        override.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{ascii(override):.{SHOWN}} is not a UTF-8 text; expected key=value") from None
    if not sign or not key.strip():
        raise ConfigurationError(
            f"cannot read '{override:.{SHOWN}}'; expected key=value or group=choice, such as agent=grpo"
        )
    if (now := new_name(key)) != key:
        raise ConfigurationError(f"'{key}' is called '{now}' now; expected {now}={text:.{SHOWN}}")
    return key, text


def value_of(key: str, text: str, known: dict, is_open: bool) -> Any:
    """The value of an override.

    Args:
        known: all keys with their defaults, as nested dictionaries.
        is_open: whether the key's group takes settings that are not known here.

    Raises:
        ConfigurationError: there is no such key, or the value cannot be read or is not of the kind of the default.
    """
    node: Any = known
    parts = key.split(".")
    for i, part in enumerate(parts):
        if isinstance(node, dict) and part in node:
            node = node[part]
            continue
        # The settings of a class of the user's, or of somebody else's, such as task.params
        foreign = (is_open and i == 1) or (i > 0 and node == {})
        if foreign and all(re.fullmatch(r"[^\W\d][\w-]*", rest) for rest in parts[i:]):
            return _foreign(key, text)
        raise ConfigurationError(_unknown(key, node if i else None, known))
    if isinstance(node, dict) and node:
        raise ConfigurationError(f"'{key}' is a group of settings; set one of {', '.join(node)}")
    if key in FREE_TEXT:
        return text.replace("${", r"\${")
    if not text:
        raise ConfigurationError(f"{key}= has no value; expected {_kind(key, node)}")
    value = _text(key, text, node) if _is_text(key, node) else _read(key, text, node)
    if not (isinstance(value, str) and "${" in value):
        check_kind(key, text, node, value)
    return value


def check_kind(key: str, text: str, default: Any, value: Any) -> None:
    """Whether a value, without references to others, is of the kind of the default.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(f"{key}={text}; expected a finite number{_such_as(default)}")
    kind = type(default)
    if _is_text(key, default):
        good = isinstance(value, str) or (value is None and (default is None or key in NULLABLE))
    elif isinstance(default, bool) or isinstance(value, bool):
        good = default is None or type(value) is kind
    else:
        good = default is None or isinstance(value, (int, float) if kind is float else kind)
    if not good:
        raise ConfigurationError(f"{key}={text:.{SHOWN}}; expected {_kind(key, default)}")


def _is_text(key: str, default: Any) -> bool:
    return key in TEXTS or isinstance(default, str)


def _text(key: str, text: str, default: Any) -> str | None:
    if text == "null":
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        value = _parsed(key, text)
        return value if isinstance(value, str) else text
    return text


def _read(key: str, text: str, default: Any) -> Any:
    value = _parsed(key, text)
    if value is _UNREADABLE:
        raise ConfigurationError(f"cannot read {key}={text:.{SHOWN}}; expected {_kind(key, default)}")
    return value


def _foreign(key: str, text: str) -> Any:
    value = _parsed(key, text)
    if value is _UNREADABLE and key not in TEXTS and text.lstrip().startswith(("[", "{", "'", '"')):
        raise ConfigurationError(f"cannot read {key}={text:.{SHOWN}}; a bracket, a brace or a quote does not close")
    return text if value is _UNREADABLE or key in TEXTS else value


_UNREADABLE = object()


def _parsed(key: str, text: str) -> Any:
    """What Hydra reads, or `_UNREADABLE`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_override(f"key={text}")
    except (HydraException, RecursionError):
        return _UNREADABLE
    if read.is_sweep_override():
        raise ConfigurationError(
            f"{key}={text:.{SHOWN}} holds several values; expected one. train, evaluate, convert and oracle run with each of "
            "key=a,b; compare takes agents=[...] and seeds=[...]."
        )
    return read.value()


def _unknown(key: str, node: Any, known: dict) -> str:
    names, last = keys(known), key.rsplit(".", 1)[-1]
    near = did_you_mean(key, names) or did_you_mean(last, names)
    if not near:
        tails = {k.rsplit(".", 1)[-1]: k for k in names}
        hit = did_you_mean(last, tails)
        near = hit.replace(hit.split("'")[1], tails[hit.split("'")[1]]) if hit else ""
    here = ", ".join(sorted(map(str, node))) if isinstance(node, dict) else ""
    return f"unknown key '{key:.{SHOWN}}'; expected one of {here or 'the keys that --dry-run prints'}.{near}"


def keys(node: dict, prefix: str = "") -> list[str]:
    """The full names of all keys in nested dictionaries."""
    found = []
    for key, value in node.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, dict):
            found += keys(value, f"{prefix}{key}.")
    return found


def _kind(key: str, default: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", list: "a list", dict: "settings"}
    kind = "a text" if _is_text(key, default) else names.get(type(default), "a value")
    return kind + _such_as(default)


def _such_as(default: Any) -> str:
    if isinstance(default, dict):
        return " such as {key:1}"
    if isinstance(default, list):
        return f" such as [{','.join(map(str, default)) or 'a,b'}]"
    return "" if default in (None, "", "???") else f" such as {default}"
