"""Settings of the oracle's searches. Imports no torch."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ollm_rl.common.settings import Config, setting
from ollm_rl.errors import ConfigurationError, did_you_mean

TREES = ("best_first", "puct", "beam", "exhaustive")
SEARCHES = (*TREES, "best_of_n", "teacher_forced")
JUDGES = ("verdict", "value", "vote", "weighted_vote")
VALUED = ("value", "weighted_vote")  # those that ask a learned verifier
GIVING_UP = "it takes a learned verifier (judge=value or weighted_vote) and texts that are followed one by one (best_first, puct, exhaustive)"


def can_give_up(search: str, judge: str) -> bool:
    """Whether a text of this search can be left before its end."""
    return judge in VALUED and search not in ("best_of_n", "beam")


@dataclass(frozen=True)
class SearchConfig(Config):
    """One search."""

    section: ClassVar[str] = "oracle"

    search: str = setting("best_first", f"{', '.join(SEARCHES)}, or <module>.<class> of a frontier of your own")
    budget: int = setting(1000, "generated tokens per problem", at_least=1)
    max_tries: int | None = setting(
        None, "texts per problem; null: no limit, and 16 where no verdict is asked", at_least=1
    )
    max_seconds: float | None = setting(
        None, "for all problems, then every search stops with what it has; null: no limit", above=0
    )
    stop_when_solved: bool = setting(True, "false: a search goes on for the shortest solved text")
    width: int | None = setting(
        None, "most texts of one problem at the same time; null: 8 of beam and best_of_n, 32 of the others", at_least=1
    )
    slots: int = setting(64, "most texts of all problems at the same time", at_least=1)
    keep_gib: float = setting(2.0, "memory for keys and values that branches go on from", at_least=0)
    deviation_penalty: float = setting(
        0.0, "best_first: nats that a text is put back by for every choice that is not the policy's first"
    )
    length_penalty: float = setting(
        1.0, "best_first: puts branches that need fewer tokens first; 1 is by probability per token, 0 by probability"
    )
    exploration: float = setting(1.5, "puct: weight of the policy's probability")
    judge: str = setting(
        "verdict",
        "what says that a text will do. verdict: the reward, so that no search can be deployed; value: a learned verifier, the likeliest text; vote: the most frequent answer; weighted_vote: that of the largest sum of values",
        choices=JUDGES,
    )
    accept: float = setting(
        0.9, "judge=value: a search ends with a text that is right with this probability", at_least=0, at_most=1
    )
    give_up: float = setting(
        0.0,
        "judge=value, weighted_vote: best_first, puct and exhaustive leave a text, once there is another one, that will be right with less than this probability; 0: never",
        at_least=0,
        at_most=0.99,
    )
    params: dict[str, Any] = setting({}, "settings of a frontier of your own")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_search(self.search)
        if self.judge != "verdict" and self.search == "teacher_forced":
            raise self.refuse("judge", "verdict: teacher forcing has the gold solution in sight")
        if self.give_up and not can_give_up(self.search, self.judge):
            raise self.refuse("give_up", f"0 for {self.search} judged by {self.judge}: {GIVING_UP}")


@dataclass(frozen=True)
class OracleConfig(SearchConfig):
    """What the command `oracle` does."""

    critic: str | None = setting(None, "puct: directory of a critic, such as a run's of agent=ppo", of_run="policy")
    value: str | None = setting(
        None,
        "judge=value, weighted_vote: directory of a learned verifier, such as a run's with value.enabled=true; null: policy's",
        of_run="policy",
    )
    num_problems: int = setting(200, "problems that are searched", at_least=1)
    also: list[str] = setting(
        [], "other searches on the same problems, for the table and the plots: <search>, or <search>/<judge>"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.also:
            search, _, judge = name.partition("/")
            check_search(search)
            if search == "teacher_forced" and judge not in ("", "verdict"):
                raise ConfigurationError(
                    f"oracle.also: {name}; teacher forcing has the gold solution in sight, so nothing else judges"
                )
            if judge not in ("", *JUDGES):
                raise ConfigurationError(
                    f"oracle.also: unknown judge '{judge}' in '{name}'; expected one of {', '.join(JUDGES)}.{did_you_mean(judge, JUDGES)}"
                )
        if self.params and not any("." in name for name in (self.search, *self.also)):
            raise ConfigurationError(
                f"oracle.params={self.params} are settings of a frontier of your own, and oracle.search={self.search} is none"
            )

    @property
    def asks_value(self) -> str:
        """The setting by which a learned verifier is asked; "" if none is."""
        if self.judge in VALUED:
            return f"oracle.judge={self.judge}"
        return next((f"oracle.also=[{name}]" for name in self.also if name.partition("/")[2] in VALUED), "")


def check_search(name: str) -> None:
    """Whether there can be a search of that name; one with dots is the user's own and is looked up later.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in SEARCHES and not ("." in name and all(part.isidentifier() for part in name.split("."))):
        raise ConfigurationError(
            f"unknown search '{name}' of the oracle; expected one of {', '.join(SEARCHES)}, or <module>.<class>."
            f"{did_you_mean(name, SEARCHES)}"
        )
