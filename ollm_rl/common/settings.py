"""Settings as frozen dataclasses: type, default, what is allowed and a line for the docs stand in one place.

A class of settings inherits from `Config` and declares each with `setting`. Everything else follows from it: the checks
of values given in Python, the reading and checking of `key=value` on the command line, Hydra's schemas, `--dry-run` and
the tables of `docs/configuration.md`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, NamedTuple, Self, get_args, get_origin, get_type_hints

from ollm_rl.errors import ConfigurationError, did_you_mean

MOST = 2**31 - 1  # of integers where nothing else is said
MOST_SEEDS = 2**32 - 1  # as many as numpy's oldest generators take
HUGE = 1e30  # numbers from here on overflow float32 in an optimiser


def setting(
    default: Any,
    doc: str = "",
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] = (),
    path: bool = False,
    of_run: str = "",
    literal: bool = False,
) -> Any:
    """A field of a `Config`.

    Args:
        default: its value where nobody sets it; lists and dictionaries are copied.
        doc: what it is, in a line.
        at_least, above, at_most: limits of a number.
        choices: the texts that are allowed.
        path: it names a file or directory: `~` is the home directory, commas are part of it.
        of_run: where in a run's directory such a one is, `policy` or `plugin`: the run's directory stands for it.
        literal: a text in which nothing has a meaning, not even `${...}`.
    """
    metadata = {
        "doc": doc, "at_least": at_least, "above": above, "at_most": at_most, "choices": tuple(choices),
        "path": path or bool(of_run), "of_run": of_run, "literal": literal,
    }  # fmt: skip
    if isinstance(default, list | dict):
        kept = default
        return field(default_factory=lambda: type(kept)(kept), metadata=metadata)
    return field(default=default, metadata=metadata)


class Setting(NamedTuple):
    """What is known of one setting.

    Attributes:
        kind: bool, int, float, str, list or dict. item: of a list's items. nullable: None is allowed.
    """

    name: str
    kind: type
    item: type | None
    nullable: bool
    default: Any
    rules: Mapping[str, Any]

    @property
    def expected(self) -> str:
        """What is allowed, in words."""
        return ("null or " if self.nullable else "") + self._kind()

    def _kind(self) -> str:
        if self.rules.get("choices"):
            return f"one of {', '.join(self.rules['choices'])}"
        if self.kind is int:
            low, high = self._limits
            return "an integer" if low is None else f"an integer from {low} to {high}"
        if self.kind is float:
            return f"a number{self._range()}"
        if self.kind is list:
            return f"a list such as [{','.join(map(str, self.default or ([1, 0.5] if self.item is float else ['a', 'b'])))}]"
        if self.kind is str:
            return f"a text such as {self.default}" if self.default else "a text"
        return {bool: "true or false", dict: "settings such as {key:1}"}.get(self.kind, "a value")

    def _range(self) -> str:
        low, above, high = (self.rules.get(rule) for rule in ("at_least", "above", "at_most"))
        if low is not None:
            return f" from {low} to {high}" if high is not None else f" of at least {low}"
        if above is not None:
            return f" above {above}" + (f", at most {high}" if high is not None else "")
        return ""

    @property
    def _limits(self) -> tuple[float | None, float]:
        """Least and most of an integer."""
        most = self.rules.get("at_most")
        return self.rules.get("at_least"), MOST if most is None else most

    def check(self, key: str, value: Any, said: str | None = None) -> None:
        """Whether `value` may stand here.

        Args:
            said: how it was written, for the message.

        Raises:
            ConfigurationError: not so; the message has what was expected.
        """
        if not self.allows(value):
            near, expected = did_you_mean(str(value), self.rules.get("choices") or ()), self.expected
            if isinstance(value, float) and not math.isfinite(value):
                expected = expected.replace("a number", "a finite number")
            shown = _shown(value) if said is None else f"{said:.120}"
            raise ConfigurationError(f"{key}={shown}; expected {expected}.{near}".removesuffix("."))

    def allows(self, value: Any) -> bool:
        if value is None:
            return self.nullable
        rules = self.rules
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind in (int, float):
            number = isinstance(value, int if self.kind is int else int | float) and not isinstance(value, bool)
            return number and math.isfinite(value) and abs(value) < HUGE and self._within(value)
        if self.kind is str:
            return isinstance(value, str) and (not rules.get("choices") or value in rules["choices"])
        if self.kind is list:
            good = isinstance(value, list | tuple)
            kinds = (int, float) if self.item is float else (self.item,)
            return good and all(self.item is None or type(item) in kinds for item in value)
        return isinstance(value, Mapping) if self.kind is dict else True

    def _within(self, value: float) -> bool:
        if self.kind is int:
            least, most = self._limits
            return (-MOST if least is None else least) <= value <= most
        low, above, high = (self.rules.get(rule) for rule in ("at_least", "above", "at_most"))
        return (low is None or value >= low) and (above is None or value > above) and (high is None or value <= high)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value!s:.120}"


def settings_of(kind: type) -> dict[str, Setting]:
    """The settings that a dataclass has, by name, in its order."""
    hints = get_type_hints(kind)
    return {f.name: _setting(f, hints[f.name]) for f in fields(kind)}


def _setting(f: Field[Any], hint: Any) -> Setting:
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    nullable = NoneType in kinds
    kind = next((k for k in kinds if k is not NoneType), object)
    item = next(iter(get_args(kind)), None) if get_origin(kind) is list else None
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    return Setting(f.name, get_origin(kind) or kind, item, nullable, default, f.metadata)


@dataclass(frozen=True)
class Config:
    """Base of all classes of settings: values are checked when one is made.

    Attributes:
        section: what stands before a setting's name in messages and on the command line, such as `agent`.

    Raises:
        ConfigurationError: a value that is not allowed.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, known in settings_of(type(self)).items():
            known.check(self.key(name), getattr(self, name))

    @classmethod
    def key(cls, name: str) -> str:
        """A setting's full name."""
        return f"{cls.section}.{name}" if cls.section else name

    @classmethod
    def of(cls, values: Mapping[str, Any], owner: str = "") -> Self:
        """From named values.

        Args:
            owner: whose settings these are, for the message.

        Raises:
            ConfigurationError: there is no such setting, or its value is not allowed.
        """
        known = settings_of(cls)
        if wrong := [name for name in values if name not in known]:
            whose = owner or cls.section or cls.__name__
            raise ConfigurationError(
                f"{whose} has no setting '{wrong[0]}'; it takes {', '.join(known) or 'none'}.{did_you_mean(wrong[0], known)}"
            )
        return cls(**values)

    @classmethod
    def among(cls, values: Mapping[str, Any]) -> Self:
        """From those of the named values that are its settings, as `of`."""
        known = settings_of(cls)
        return cls.of({name: value for name, value in values.items() if name in known})

    def refuse(self, name: str, expected: str) -> ConfigurationError:
        """The error that says so of a value that does not fit the others."""
        return ConfigurationError(f"{self.key(name)}={_shown(getattr(self, name))}; expected {expected}")


def defaults(kind: type) -> Iterator[tuple[str, Any]]:
    """Names and defaults of a dataclass's settings; those without a default are left out."""
    yield from ((name, known.default) for name, known in settings_of(kind).items() if known.default is not MISSING)
