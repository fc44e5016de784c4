"""What is measured, as types: shares with their intervals, sampled answers, searches, paired tests, points of curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from ollm_rl.common.config_files import RENAMED_CHOICES
from ollm_rl.errors import CheckpointError

Interval = tuple[float, float]


TEACHER = "teacher_forced"  # the search whose rows have figures of their own


@dataclass(kw_only=True)
class Record:
    """Figures under the names that they have in the file.

    Attributes:
        extra: what the file has besides, of another release or of an agent from outside.
    """

    ALWAYS: ClassVar[tuple[str, ...]] = ()  # written even where nothing is known

    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.name != "extra"]

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: a figure is missing that every file has.
        """
        own = set(cls.names())
        given = {k: tuple(v) if k.endswith("ci95") else v for k, v in found.items() if k in own and v is not None}
        try:
            return cls(**given, extra={k: v for k, v in found.items() if k not in own})
        except TypeError as error:
            raise CheckpointError(f"{cls.__name__} {error.args[0].partition(' ')[2]}: found {sorted(found)}") from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; what is not known (None, or empty) is left out."""
        values = {name: getattr(self, name) for name in self.names()}
        known = {k: _json(v) for k, v in values.items() if k in self.ALWAYS or not (v is None or v == {})}
        return {**known, **self.extra}


def _json(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Difference):
        return {"mean": value.mean, "ci95": list(value.ci95), "p": value.p}
    if isinstance(value, Mapping):
        return {k: _json(v) for k, v in value.items()}
    return [_json(v) for v in value] if isinstance(value, list | tuple) else value


@dataclass(kw_only=True)
class Share(Record):
    """A share of `n` problems that was solved, with its 95% interval (Wilson)."""

    n: int
    accuracy: float
    accuracy_ci95: Interval


Breakdown = dict[str, dict[str, Share]]  # by column (domain, difficulty, source) and value


@dataclass(kw_only=True)
class General(Record):
    """General texts, read with an agent and with the untouched backbone: means over texts, in nats a token.

    Attributes:
        kl: of the backbone's distribution from the agent's. loss, backbone_loss: of the texts. loss_change_ci95: of their difference, from a
            bootstrap over texts; `changes`: the difference of each text, of a pooled row its mean over seeds. same_token: share of positions at
            which both say the same.
    """

    n_texts: int
    n_tokens: int
    kl: float
    loss: float
    backbone_loss: float
    loss_change_ci95: Interval
    same_token: float
    changes: list[float]


@dataclass(kw_only=True)
class Variant(Share):
    """Greedy accuracy on a variant of the task that nobody trained on.

    Attributes:
        solved: whether each problem was; of a pooled row, not kept.
        before, change, change_ci95, change_p: accuracy before training, and the change (paired bootstrap).
        worse: `yes` where the interval of the change lies below zero, `perhaps` where only its middle does, else `no`.
    """

    solved: list[bool] | None = None
    no_answer_rate: float | None = None
    repetition_rate: float | None = None
    foreign_script_rate: float | None = None
    before: float | None = None
    change: float | None = None
    change_ci95: Interval | None = None
    change_p: float | None = None
    worse: str | None = None


@dataclass
class Sampled:
    """Of k sampled answers a problem: their mean accuracy, the share of problems that some of them solves (unbiased), and the share that
    the answer of most of them solves, with their 95% intervals (bootstrap over problems); None where it was not measured."""

    avg: float | None = None
    pass_: float | None = None
    maj: float | None = None
    avg_ci95: Interval | None = None
    pass_ci95: Interval | None = None
    maj_ci95: Interval | None = None


@dataclass(kw_only=True)
class Changes(Record):
    """What an agent does differently from the prior at the decision points of its greedy texts.

    Attributes:
        decisions: how many there are; `changed`: the share at which it says another token than the prior's likeliest.
        most_common: (the prior's token, the agent's, how often).
        by_quarter: that share in each quarter of a text's decisions.
        after: (the token before, decisions after it, the share of them that is changed), those after which most is changed.
    """

    decisions: int
    changed: float
    most_common: Sequence[tuple[str, str, int]] = ()
    by_quarter: Sequence[float] | None = None
    after: Sequence[tuple[str, int, float]] | None = None


@dataclass(kw_only=True)
class Deviations(Record):
    """How far the latents of solved texts are from the policy's own.

    Attributes:
        n_texts: texts that are counted; `mean`: choices a text that are not the policy's first; `none`: share of texts without one.
        ranks: share of all choices by rank (0: the policy's first); `log_prob`: of a text's choices, a mean in nats.
        position: where in the text deviations are, from 0 (beginning) to 1 (end), in quartiles.
    """

    ALWAYS = ("position",)

    n_texts: int
    mean: float
    none: float
    ranks: list[float]
    log_prob: float
    position: list[float] | None = None


@dataclass(kw_only=True)
class SearchFigures(Record):
    """What a search spent: means a problem, in tokens (`budget`: at most), texts, and seconds for all problems."""

    ALWAYS = ("mean_shortest_length", "deviations", "occupancy")

    search: str
    budget: int | None = None
    mean_tokens: float | None = None
    recomputed_tokens: float | None = None
    computed_over_distinct: float | None = None
    mean_tried: float | None = None
    verifier_timeouts: float | None = None
    mean_shortest_length: float | None = None
    deviations: Deviations | None = None
    occupancy: float | None = None
    search_seconds: float | None = None

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        found = dict(found)
        older = found.pop("departures", None)  # its name in earlier releases
        found["deviations"] = read_record(Deviations, found.get("deviations") or older)
        return super().from_dict(found)


@dataclass(kw_only=True)
class TeacherFigures(Record):
    """What the options can say of gold solutions: shares of the texts said to the token, of tokens said, and of tokens that some option says."""

    search: str = TEACHER
    exact_reproduction: float
    exact_reproduction_ci95: Interval | None = None
    tokens_reproduced: float
    tokens_covered: float | None = None
    mean_tokens: float | None = None


@dataclass(kw_only=True)
class Difference:
    """The mean of paired differences, with its 95% interval and two-sided p-value (bootstrap)."""

    mean: float
    ci95: Interval
    p: float

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        return cls(mean=found["mean"], ci95=tuple(found["ci95"]), p=found["p"])


@dataclass(kw_only=True)
class Rival(Record):
    """What could choose among a problem's texts in place of a learned verifier: its AUROC, and how much the verifier's is above it."""

    auroc: float
    above: Difference

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        return super().from_dict({**found, "above": Difference.of(found["above"])})


@dataclass(kw_only=True)
class Verification(Record):
    """How good a learned verifier is on the `samples` sampled texts of each of `n_problems` problems, and what it is worth.

    Attributes:
        n_mixed: problems with right and wrong texts. auroc: within those, a mean: the share of pairs of a right and a wrong text in which
            the right one has the larger value; rivals: of what could be used in its place.
        brier: the mean squared error of values; brier_of_mean: of saying the mean verdict of all texts.
        reliability: mean value, share of right texts, number of texts, in bins of the value.
        greedy, maj, weighted_maj, best_of, any_of: how many problems are solved by the greedy text, by the vote, by the vote weighted with
            values, by the text of the largest value, and by any text.
        weighted_at, best_at: weighted_maj and best_of with fewer texts, by their number.
        weighted_over_maj, ...: paired differences.
    """

    n_problems: int
    n_mixed: int
    samples: int
    auroc: float
    auroc_ci95: Interval
    rivals: dict[str, Rival] = field(default_factory=dict)
    brier: float
    brier_of_mean: float
    reliability: list[tuple[float, float, int]] = field(default_factory=list)
    greedy: float
    maj: float
    weighted_maj: float
    best_of: float
    any_of: float
    weighted_at: dict[int, float] = field(default_factory=dict)
    best_at: dict[int, float] = field(default_factory=dict)
    weighted_over_maj: Difference
    weighted_over_greedy: Difference
    best_over_maj: Difference
    best_over_greedy: Difference

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        found = dict(found)
        found["rivals"] = {name: Rival.from_dict(rival) for name, rival in found.get("rivals", {}).items()}
        for name in ("weighted_at", "best_at"):
            found[name] = {int(k): share for k, share in found.get(name, {}).items()}
        found["reliability"] = [tuple(line) for line in found.get("reliability", ())]
        found |= {name: Difference.of(found[name]) for name in cls.names() if "_over_" in name and name in found}
        return super().from_dict(found)


@dataclass(kw_only=True)
class PairedTest(Record):
    """What the second of two agents has more than the first, on the same `n` problems: of greedy and of sampled accuracy and, where rewards are
    others than 0 and 1, of the mean reward of greedy texts."""

    KINDS: ClassVar[tuple[str, ...]] = ("greedy", "sampled", "reward")

    agents: list[str]
    n: int
    greedy: Difference | None = None
    sampled: Difference | None = None
    reward: Difference | None = None

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        found = dict(found)
        found["agents"] = [RENAMED_CHOICES.get(agent, agent) for agent in found["agents"]]
        for kind in cls.KINDS:
            if found.get(kind) is not None:
                low, high = found.pop(f"{kind}_ci95")
                found[kind] = Difference(mean=found[kind], ci95=(low, high), p=found.pop(f"{kind}_p"))
        return super().from_dict(found)

    def to_dict(self) -> dict[str, Any]:
        values = {"agents": self.agents, "n": self.n}
        for kind in self.KINDS:
            if (found := getattr(self, kind)) is not None:
                values |= {kind: found.mean, f"{kind}_ci95": list(found.ci95), f"{kind}_p": found.p}
        return {**values, **self.extra}


@dataclass(kw_only=True)
class Point(Record):
    """The share of problems that a search solves within `budget` tokens a problem."""

    budget: int
    solved: float
    ci95: Interval


Curves = dict[str, list[Point]]  # by search


def read_record(kind: type[Any], found: Any) -> Any:
    return kind.from_dict(found) if isinstance(found, Mapping) else None
