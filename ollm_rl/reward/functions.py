"""Rewards of finished episodes, with the signature of TRL: `f(prompts, completions, **columns) -> list[float]`.

A reward written for TRL runs here unchanged, and `MathVerify` runs in TRL's trainers. The columns are those of the
problem (`answer`, `solution`, `problem`, `id` and whatever its data set has), `completion_ids`, and TRL's `log_extra`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ollm_rl.common.settings import Config, setting
from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.answers import extract_answer, texts_of
from ollm_rl.reward.verifier import TIMEOUT_S, Verifier


@dataclass(frozen=True)
class MathVerifyConfig(Config):
    """Of `MathVerify`."""

    section: ClassVar[str] = "reward"

    timeout_s: float = setting(TIMEOUT_S, "limit of one symbolic comparison, in seconds", above=0)
    column: str = setting("answer", "the column of the gold answer")


class MathVerify:
    """1.0 if the final answer equals the gold one, which stands in a column of the problem; else 0.0.

    >>> ol.MathVerify(timeout_s=5)(completions=["The answer is \\\\boxed{1/2}."], answer=["0.5"])
    [1.0]

    The settings are those of `MathVerifyConfig`.
    """

    config_class = MathVerifyConfig
    __name__ = "math_verify"  # TRL's trainers name rewards by it

    def __init__(self, **settings: Any):
        config = MathVerifyConfig.of(settings, "reward math_verify")
        self.verifier, self.column = Verifier(config.timeout_s), config.column
        self.settings = asdict(config)

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        *,
        log_extra: Callable[..., Any] | None = None,
        **columns: Sequence[Any],
    ) -> list[float]:
        if self.column not in columns:
            found = ", ".join(sorted(columns)) or "none"
            raise ConfigurationError(f"math_verify needs the column '{self.column}' with gold answers; found {found}")
        golds = [str(gold) for gold in columns[self.column]]
        if "" in golds:
            where = golds.index("")
            raise ConfigurationError(
                f"math_verify has nothing to compare with: the column '{self.column}' is empty for {columns.get('id', {where: where})[where]!r}"
            )
        texts = texts_of(completions)
        verdicts = self.verifier.check_many(list(zip(golds, texts, strict=True)))
        if log_extra is not None:
            log_extra("verdict", [v.reason for v in verdicts])
        return [float(v.correct) for v in verdicts]

    def close(self) -> None:
        self.verifier.close()


class ReasoningGym:
    """The score that the problem's own reasoning_gym data set gives, from 0 to 1; answers that are no mathematics too.

    >>> session = ol.Session(backbone, plugin, ol.make_task("chain_sum"), reward=ol.ReasoningGym())
    """

    __name__ = "reasoning_gym"
    settings: dict[str, Any] = {}

    def __call__(
        self, prompts: Sequence[Any] | None = None, completions: Sequence[Any] = (), **columns: Sequence[Any]
    ) -> list[float]:
        import reasoning_gym

        if "metadata" not in columns:
            raise ConfigurationError("reward=reasoning_gym judges problems of task=reasoning_gym and chain_sum only")
        scores = []
        rows = zip(texts_of(completions), columns["metadata"], columns["problem"], columns["answer"], strict=True)
        for text, metadata, question, gold in rows:
            score = reasoning_gym.get_score_answer_fn(metadata["source_dataset"])
            entry = {"question": question, "answer": gold, "metadata": metadata}
            scores.append(float(score(answer=extract_answer(text), entry=entry)))  # type: ignore[call-arg]
        return scores
