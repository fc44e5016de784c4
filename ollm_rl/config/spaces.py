"""What a tuning varies, read from overrides with several values: `key=a,b`, `key=interval(low,high)`, `{key:a,other:b},{key:c}`.

The notation is Hydra's: lists as in sweeps, ranges as in its Optuna sweeper (`tag(log,interval(1e-5,1e-3))`). Imports no torch.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ollm_rl.errors import ConfigurationError

Value = str | float  # of an axis: the text of an option, or a number of a range
Override = tuple[str, str]  # a setting and the text of its value


@dataclass(frozen=True)
class Axis:
    """Settings that are varied together: one, or several that belong together.

    Attributes:
        name: the setting's; of several, all their names.
        options: what can be chosen, by its text: the overrides that it stands for. Empty for a range.
        low, high: limits of a range, both within. log: it is searched by its logarithm. integer: of whole numbers.
    """

    name: str
    options: dict[str, tuple[Override, ...]] = field(default_factory=dict)
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    @property
    def keys(self) -> set[str]:
        """The settings that it varies."""
        return {key for option in self.options.values() for key, _ in option} or {self.name}

    @property
    def values(self) -> list[Value]:
        """All options; of a range, its limits."""
        return [*self.options] if self.options else [self.low, self.high]

    def overrides(self, value: Value) -> tuple[Override, ...]:
        """What a value stands for. Numbers of ranges have four digits."""
        if self.options:
            return self.options[str(value)]
        return ((self.name, str(round(float(value))) if self.integer else f"{float(value):.4g}"),)

    def sample(self, random: np.random.Generator) -> Value:
        """A value at random."""
        if self.options:
            return [*self.options][int(random.integers(len(self.options)))]
        if self.log:
            return math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        if self.integer:
            return float(random.integers(int(self.low), int(self.high) + 1))
        return random.uniform(self.low, self.high)


def read_axis(said: str, key: str, text: str, integer: bool = False) -> Axis | None:
    """The axis that the text of an override stands for; None if it has one value only.

    Args:
        said: the override, for messages.
        key: the setting; "" if the text has settings that belong together, each option as `{key:value,...}`.
        integer: the setting is a whole number.

    Raises:
        ConfigurationError: the text cannot be read, or is no list and no range.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_override(f"key={text}")
    except (HydraException, RecursionError) as error:
        if not key:
            raise ConfigurationError(f"cannot read {said:.120}; {_JOINT}") from error
        return None  # a text that is taken as it stands, or a mistake that is said when it is set
    value = read.value()
    if not key:
        return _joint(said, value.list if isinstance(value, ChoiceSweep) else [value])
    if isinstance(value, IntervalSweep):
        return _range(said, key, value, integer)
    if not read.is_sweep_override():
        return None
    texts = [*read.sweep_string_iterator()]
    if again := [x for i, x in enumerate(texts) if x in texts[:i]]:
        raise ConfigurationError(f"{said:.120} has {again[0]} twice; expected each once")
    return Axis(key, {each: ((key, each),) for each in texts})


_JOINT = "expected settings that are tried together, {key:value,...},{key:value,...}"


def _joint(said: str, options: Sequence[Any]) -> Axis:
    if not all(isinstance(option, dict) for option in options):
        raise ConfigurationError(f"{said:.120}; {_JOINT}")
    pairs = [tuple((str(k), _text(v)) for k, v in option.items()) for option in options]
    named = {",".join(f"{k}={v}" for k, v in some) or "as it is": some for some in pairs}
    if len(named) < len(pairs):
        raise ConfigurationError(f"{said:.120} has the same settings twice; expected each once")
    return Axis("+".join(dict.fromkeys(k for some in pairs for k, _ in some)) or "nothing", named)


def _text(value: Any) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return value.with_quotes() if hasattr(value, "with_quotes") else str(value)


def _range(said: str, key: str, found: Any, integer: bool) -> Axis:
    low, high, log = found.start, found.end, "log" in found.tags
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (low, high))
    if not numbers or not low < high or found.tags - {"log"} or (log and low <= 0):
        raise ConfigurationError(
            f"{said:.120}; expected interval(low,high) with low below high, or tag(log,interval(low,high)) with both above 0"
        )
    if integer and (low % 1 or high % 1):
        raise ConfigurationError(f"{said:.120}; expected whole numbers as limits")
    return Axis(key, {}, float(low), float(high), log, integer)


def product(axes: Sequence[Axis]) -> list[dict[str, Value]]:
    """Every combination of the options, by the axes' names."""
    names = [axis.name for axis in axes]
    return [dict(zip(names, some, strict=True)) for some in itertools.product(*(axis.values for axis in axes))]
