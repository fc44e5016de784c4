"""Overrides as they are typed: `key=value`, whatever characters the value holds.

Where a setting is a text, its value is taken as it stands, so that paths may hold spaces, quotes, equals signs and commas; a
value in quotes is what stands between them. All other values follow Hydra's grammar: numbers, `true`, `null`, `[a,b]`,
`{a:1}`. In both, `${key}` is the value of another key, and `\\${` a dollar sign and a brace.
"""

import re
from collections.abc import Mapping
from typing import Any

from ollm_rl.common.config_files import new_name
from ollm_rl.common.settings import Setting
from ollm_rl.errors import ConfigurationError, did_you_mean

SHOWN = 120  # characters of a value in a message
PLAIN = re.compile(
    r"[\w./:@%+-]+"
)  # texts that neither a shell nor Hydra's grammar reads as something else than a text or a number


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
        torn = override.endswith(("}", "]", ",")) or override.startswith(("{", "["))
        hint = ". Put quotes around what has brackets, or the shell takes it apart: 'task.columns={problem: question}'"
        raise ConfigurationError(
            f"cannot read '{override:.{SHOWN}}'; expected key=value or group=choice, such as agent=grpo"
            f"{hint if torn else ''}"
        )
    if (now := new_name(key)) != key:
        raise ConfigurationError(f"'{key}' is called '{now}' now; expected {now}={text:.{SHOWN}}")
    return key, text


def value_of(key: str, text: str, known: Mapping[str, Setting], open_groups: set[str]) -> Any:
    """The value of an override.

    Args:
        known: all settings by full name.
        open_groups: groups whose member is a class of the user's, with settings that are not known here.

    Raises:
        ConfigurationError: there is no such key, or the value cannot be read or is not allowed.
    """
    found = known.get(key)
    if found is None:
        if _is_foreign(key, known, open_groups):
            return _foreign(key, text)
        raise ConfigurationError(_unknown(key, known))
    if found.rules.get("literal"):
        return escaped(text)
    if not text:
        raise ConfigurationError(f"{key}= has no value; expected {found.expected}")
    value = _text(key, text) if found.kind is str else _read(key, text, found)
    if not (isinstance(value, str) and "${" in value):
        found.check(key, value, text)
    return value


def escaped(text: str) -> str:
    """A text of which nothing is a reference to another key."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def written(key: str, value: Any, known: Mapping[str, Setting], open_groups: set[str]) -> str:
    """The override that gives a value: `value_of` backwards. A sweep leaves it alone; a shell may want quotes around it.

    Args:
        known, open_groups: as in `value_of`.
    """
    if key in known and known[key].rules.get("literal"):
        return f"{key}={value}"
    if isinstance(value, str) and PLAIN.fullmatch(value) and value_of(key, value, known, open_groups) == value:
        return f"{key}={value}"
    return f"{key}={_in_grammar(value)}"


def _in_grammar(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        from hydra.core.override_parser.types import Quote, QuotedString

        return QuotedString(text=escaped(value), quote=Quote.single).with_quotes()
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_in_grammar(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_in_grammar, value)) + "]"
    return repr(value)


def _is_foreign(key: str, known: Mapping[str, Setting], open_groups: set[str]) -> bool:
    """Whether a key is a setting of a class of the user's, or of somebody else's, such as `task.params.size`."""
    group, *rest = key.split(".")
    if not rest or not all(re.fullmatch(r"[^\W\d][\w-]*", part) for part in rest):
        return False
    above = [".".join([group, *rest[:i]]) for i in range(1, len(rest))]
    return group in open_groups or any(known[name].kind is dict for name in above if name in known)


def _text(key: str, text: str) -> str | None:
    if text == "null":
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        value = parsed(key, text)
        return value if isinstance(value, str) else text
    return text


def _read(key: str, text: str, found: Setting) -> Any:
    value = parsed(key, text)
    if value is UNREADABLE:
        quotes = " A text with = in it needs quotes: ['agent=grpo']." if "=" in text else ""
        raise ConfigurationError(f"cannot read {key}={text:.{SHOWN}}; expected {found.expected}.{quotes}")
    return value


def _foreign(key: str, text: str) -> Any:
    value = parsed(key, text)
    is_text = key.endswith("._target_")
    if value is UNREADABLE and not is_text and text.lstrip().startswith(("[", "{", "'", '"')):
        raise ConfigurationError(f"cannot read {key}={text:.{SHOWN}}; a bracket, a brace or a quote does not close")
    return text if value is UNREADABLE or is_text else value


UNREADABLE = object()


def parsed(key: str, text: str) -> Any:
    """What Hydra reads in the text of a value, or `UNREADABLE`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_override(f"key={text}")
    except (HydraException, RecursionError):
        return UNREADABLE
    if read.is_sweep_override():
        raise ConfigurationError(
            f"{key}={text:.{SHOWN}} holds several values; expected one. train, evaluate, convert and oracle run with each of "
            "key=a,b; compare takes agents=[...] and seeds=[...], tune tries agents with each of "
            "<agent>.<setting>=a,b."
        )
    return read.value()


# Words that other programs have for a setting.
WORDS = {
    "lr": "agent.learning_rate", "episodes": "agent.total_episodes", "steps": "agent.total_episodes", "model": "backbone",
    "dataset": "task", "data": "task.path", "output_dir": "runs_dir", "out": "name", "device": "backbone.device",
    "max_tokens": "engine.max_new_tokens", "k": "plugin.num_options", "num_options": "plugin.num_options",
}  # fmt: skip


def _unknown(key: str, known: Mapping[str, Setting]) -> str:
    last, tails = key.rsplit(".", 1)[-1], {name.rsplit(".", 1)[-1]: name for name in known}
    near = f" Did you mean '{WORDS[key]}'?" if key in WORDS else did_you_mean(key, known)
    if not near and (hit := did_you_mean(last, tails)):
        tail = hit.split("'")[1]
        near = hit.replace(tail, tails[tail])
    within = [name for name in known if name.startswith(f"{key}.")]
    if within:
        return f"'{key}' is a group of settings; set one of {', '.join(name.rpartition('.')[2] for name in within)}"
    beside = sorted(
        name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == key.rpartition(".")[0] != ""
    )
    return (
        f"unknown key '{key:.{SHOWN}}'; expected one of {', '.join(beside) or 'the keys that --dry-run prints'}.{near}"
    )
