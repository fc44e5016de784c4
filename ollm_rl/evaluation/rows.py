"""The rows of `results.json` as types: what was measured of an agent, of a search, and of both over several seeds.

An attribute has the name of its key in the file, but for three: `sampled[k]` is `avg@k`, `pass@k` and `maj@k`, and the figures of a search
(`search`) and of teacher forcing (`teacher`) stand in the file beside the row's own. Files of earlier releases are read; keys that
are not known here are kept in `extra` and written again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from ollm_rl.common.config_files import RENAMED_CHOICES
from ollm_rl.evaluation.records import (
    TEACHER,
    Breakdown,
    Changes,
    General,
    Interval,
    Record,
    Sampled,
    SearchFigures,
    Share,
    TeacherFigures,
    Variant,
    Verification,
    read_record,
)

_SAMPLED = re.compile(r"(avg|pass|maj)(?:@|_at_)(\d+)(_ci95)?")


@dataclass(kw_only=True)
class Scores(Record):
    """How good an agent is at one time, on `n_problems` problems.

    Attributes:
        accuracy: of one greedy answer a problem (of a search: the solved share), with its 95% interval.
        sampled: by the number of samples k. mean_sampled_length: of sampled texts, in tokens. distinct_answers, text_distance: of a problem's sampled texts, see
            `ollm_rl.evaluation.metrics.diversity`.
        mean_length: of greedy texts, in tokens; `mean_decisions`: tokens at which options disagreed; `mean_reward`: their reward,
            with its 95% interval (bootstrap over problems) where rewards are others than 0 and 1.
        no_answer_rate, repetition_rate, foreign_script_rate: shares of greedy texts that degenerate so.
        verdicts: how many greedy answers got which verdict.
        ood: by the name of the variant.
        hand_over: of greedy texts in which the agent chose at the first decisions only, and the prior at all others; by the number of
            decisions, or their share.
    """

    n_problems: int
    accuracy: float
    accuracy_ci95: Interval
    sampled: dict[int, Sampled] = field(default_factory=dict)
    mean_sampled_length: float | None = None
    distinct_answers: float | None = None
    text_distance: float | None = None
    mean_length: float | None = None
    mean_decisions: float | None = None
    mean_reward: float | None = None
    mean_reward_ci95: Interval | None = None
    no_answer_rate: float | None = None
    repetition_rate: float | None = None
    foreign_script_rate: float | None = None
    verdicts: dict[str, int] = field(default_factory=dict)
    breakdown: Breakdown = field(default_factory=dict)
    ood: dict[str, Variant] = field(default_factory=dict)
    hand_over: dict[str, Share] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        found = dict(found)
        sampled: dict[int, Sampled] = {}
        for key in [key for key in found if _SAMPLED.fullmatch(key)]:
            which, k, interval = _SAMPLED.fullmatch(key).groups()  # type: ignore[union-attr]
            if (value := found.pop(key)) is None:
                continue
            name = f"{which}_ci95" if interval else {"pass": "pass_"}.get(which, which)
            setattr(sampled.setdefault(int(k), Sampled()), name, tuple(value) if interval else value)
        found["sampled"] = dict(sorted(sampled.items()))
        parts: Mapping[str, Mapping[str, Any]] = found.get("breakdown") or {}
        found["breakdown"] = {
            column: {v: Share.from_dict(s) for v, s in part.items()} for column, part in parts.items()
        }
        found["ood"] = {name: Variant.from_dict(v) for name, v in (found.get("ood") or {}).items()}
        found["hand_over"] = {name: Share.from_dict(v) for name, v in (found.get("hand_over") or {}).items()}
        return super().from_dict(found)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values.pop("sampled", None)
        figures: dict[str, Any] = {}
        for k, each in self.sampled.items():
            figures |= {f"avg@{k}": each.avg, f"pass@{k}": each.pass_, f"maj@{k}": each.maj}
            intervals = {f"{name}@{k}_ci95": getattr(each, f"{name}_ci95") for name in ("avg", "pass", "maj")}
            figures |= {name: list(interval) for name, interval in intervals.items() if interval is not None}
            figures |= {"avg_at_8": each.avg, "pass_at_8": each.pass_} if k == 8 else {}  # for readers who know these
        return _after(values, "accuracy_ci95", figures)


@dataclass(kw_only=True)
class AgentRow(Scores):
    """What rows of one seed and of several have.

    Attributes:
        train_episodes, train_tokens, train_seconds: what learning from rewards took; `setup_seconds`: fitting to solutions before.
        total_seconds: from nothing to the trained agent: the backbone's adapter, conversion or set-up, and learning; evaluations left out. None
            where one of them is not known.
        trainable_parameters: of all that was trained for it: adapter, plug-in and policy.
        before: the scores before learning from rewards, and `length_change` the relative change of `mean_length` since.
        kl_from_start: nats an episode between the agent and what it began as.
        threshold, episodes_to_threshold, seconds_to_threshold: of a comparison; null where it was not reached.
        area_under_curve: the mean reward of training over the first `area_episodes` episodes, those that every learner had.
        general: what it makes of general texts. search, teacher: the figures of a search, or of teacher forcing. value: those of a learned verifier.
    """

    agent: str
    train_episodes: float = 0
    train_tokens: float = 0
    train_seconds: float = 0.0
    setup_seconds: float | None = None
    total_seconds: float | None = None
    trainable_parameters: float | None = None
    before: Scores | None = None
    length_change: float | None = None
    kl_from_start: float | None = None
    threshold: float | None = None
    episodes_to_threshold: float | None = None
    seconds_to_threshold: float | None = None
    area_under_curve: float | None = None
    area_episodes: float | None = None
    general: General | None = None
    search: SearchFigures | None = None
    teacher: TeacherFigures | None = None
    value: Verification | None = None

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        found = dict(found)
        found["agent"] = RENAMED_CHOICES.get(found.get("agent", ""), found.get("agent"))
        found["before"] = read_record(Scores, found.get("before"))
        found["general"] = read_record(General, found.get("general"))
        found["value"] = read_record(Verification, found.get("value"))
        kind = TeacherFigures if found.get("search") == TEACHER else SearchFigures
        if found.get("search") is not None:
            own = {k: found.pop(k) for k in [*kind.names(), "departures"] if k in found}
            found["teacher" if kind is TeacherFigures else "search"] = kind.from_dict(own)
        return super().from_dict(found)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        for name in ("search", "teacher"):
            values = _after(values, "accuracy_ci95", values.pop(name, {}))
        if self.search or self.teacher:  # nothing is sampled: null, for readers who know these
            values |= {key: values.get(key) for key in ("avg_at_8", "pass_at_8")}
            values = {k: v for k, v in values.items() if k != "verdicts" or v}
        return _after({"agent": values.pop("agent")}, "agent", values)


@dataclass(kw_only=True)
class Row(AgentRow):
    """An agent with a seed.

    Attributes:
        directory: of the run that it comes from, with its metrics, rollouts and episodes to look at; None if nothing was written.
        task: where a file has rows of several.
    """

    ALWAYS = ("verdicts", "breakdown")

    seed: int = 0
    task: str | None = None
    changes: Changes | None = None
    directory: Path | None = None

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        found = dict(found)
        found["changes"] = read_record(Changes, found.get("changes"))
        return super().from_dict(found)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values.pop("directory", None)  # `Results` knows from where it is meant
        return _after({k: values.pop(k) for k in ("task", "agent", "seed") if k in values}, "seed", values)

    @property
    def replays(self) -> str:
        """The file in `directory` with its episodes to look at: `replays.json`, and of a second search one of its own."""
        return "replays.json" if self.search is None or self.agent == "oracle" else f"replays_{self.agent}.json"

    def add(self, learned: Mapping[str, Any]) -> None:
        """Take over what an agent's `learn` says of itself; what is no figure of a row is kept in `extra`."""
        for key, value in learned.items():
            if key in self.names():
                setattr(self, key, value)
            else:
                self.extra[key] = value

    def scores(self) -> Scores:
        """What greedy texts say: the `before` of an agent that begins as this one is."""
        left_out = (
            "sampled",
            "mean_sampled_length",
            "distinct_answers",
            "text_distance",
            "breakdown",
            "hand_over",
            "extra",
        )
        return Scores(**{f.name: getattr(self, f.name) for f in fields(Scores) if f.name not in left_out})


@dataclass(kw_only=True)
class PooledRow(AgentRow):
    """An agent over its seeds: accuracy over all problems of all seeds, means of the rest where every seed has it.

    Attributes:
        episodes_to_threshold_reached, seconds_to_threshold_reached: how many seeds reached it.
    """

    ALWAYS = ("breakdown",)

    seeds: list[int]
    episodes_to_threshold_reached: int = 0
    seconds_to_threshold_reached: int = 0


def _after(values: dict[str, Any], key: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `more` behind `key`: a person reads the file too."""
    at = [*values].index(key) + 1
    items = list(values.items())
    return dict([*items[:at], *more.items(), *items[at:]])
