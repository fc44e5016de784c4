"""Tasks whose problems reasoning_gym generates, by seed."""

import hashlib
import random
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ollm_rl.common.settings import setting
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.reward.answers import extract_answer
from ollm_rl.tasks.base import Problem, Task, TaskConfig, bucket, check_split, format_answer

CHUNK = 2_000  # problems that are generated at a time


@dataclass(frozen=True)
class ReasoningGymConfig(TaskConfig):
    """Of `ReasoningGym`."""

    name: str = setting("reasoning_gym", "which task it is, as `task=` says it; for tables and files")
    dataset: str = setting("gsm_symbolic", "a data set of reasoning_gym")
    params: dict[str, Any] = setting({}, "its settings, as task.params.<name>=<value>")
    max_new_tokens: int = setting(128, "token budget of an episode", at_least=1)


@dataclass(frozen=True)
class WordedConfig(TaskConfig):
    """Of tasks that say what they ask in words that can be set."""

    wording: str = setting("{problem}", "what a problem says, with {problem} where its own part comes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{problem}" not in self.wording:
            raise ConfigurationError(
                f"task.wording={self.wording!r}; expected {{problem}} in it, where the problem's own part comes"
            )


@dataclass(frozen=True)
class MixedQualityConfig(WordedConfig):
    """Of tasks with solutions of mixed quality."""

    direct_share: float = setting(0.6, "share of solutions that jump straight to the answer", at_least=0, at_most=1)


@dataclass(frozen=True)
class ChainSumConfig(MixedQualityConfig):
    """Of `ChainSum`."""

    name: str = setting("chain_sum", "which task it is, as `task=` says it; for tables and files")
    min_terms: int = setting(2, "numbers of a sum, at least", at_least=2)
    max_terms: int = setting(4, "numbers of a sum, at most", at_least=2)
    min_digits: int = setting(1, "digits of a number, at least", at_least=1)
    max_digits: int = setting(1, "digits of a number, at most", at_least=1)
    wording: str = setting(r"{problem} = ? Put the final answer in \boxed{}.", "what a problem says")
    max_new_tokens: int = setting(48, "token budget of an episode", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_terms > self.max_terms:
            raise ConfigurationError(
                f"task: expected 2 <= min_terms <= max_terms, got {self.min_terms} and {self.max_terms}"
            )


@dataclass(frozen=True)
class LegCountingConfig(MixedQualityConfig):
    """Of `LegCounting`."""

    name: str = setting("leg_counting", "which task it is, as `task=` says it; for tables and files")
    min_animals: int = setting(1, "kinds of animals in a problem, at least", at_least=1)
    max_animals: int = setting(3, "kinds of animals in a problem, at most", at_least=1)
    min_instances: int = setting(1, "animals of a kind, at least", at_least=1)
    max_instances: int = setting(5, "animals of a kind, at most", at_least=1)
    wording: str = setting(
        r"How many legs are there in total if you have {problem}? Put the final answer in \boxed{}.",
        "what a problem says",
    )
    max_new_tokens: int = setting(80, "token budget of an episode", at_least=1)


class ReasoningGym(Task):
    """Any data set of reasoning_gym by name.

    Its solutions are the worked ones where the data set has them, and the bare answer otherwise. Judge answers that
    are no mathematics with `reward=reasoning_gym`. Problems of `tune` and `test` are unique.
    """

    config_class: ClassVar[type[TaskConfig]] = ReasoningGymConfig
    config: Any

    def __init__(self, **settings: Any):
        self.config = config = self.config_class.of(settings, f"task '{self.config_class.name}'")
        self.name, self.max_new_tokens = config.name, config.max_new_tokens
        self._open(config)
        next(iter(self._generate(0, 1)), None)  # wrong settings show here
        self.examples = self._draw("examples", config.num_examples, 0)

    def _open(self, config: Any) -> None:
        """Take `dataset` and `params` from the settings."""
        from reasoning_gym.factory import DATASETS

        if config.dataset not in DATASETS:
            raise ConfigurationError(
                f"task.dataset={config.dataset}: reasoning_gym has no such data set.{did_you_mean(config.dataset, DATASETS)} "
                f"It has {', '.join(sorted(DATASETS))}."
            )
        self.dataset, self.params = config.dataset, dict(config.params)

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        check_split(split)
        return self._draw(split, n, seed)

    def _draw(self, split: str, n: int, seed: int) -> list[Problem]:
        unique = split in ("tune", "test")
        seen: set[str] = set()
        found: list[Problem] = []
        for i, problem in enumerate(self._stream(split, seed)):
            if len(found) == n or i > 50 * n + 10_000:  # a small space can run out of unique problems
                break
            if not (unique and problem.problem in seen):
                seen.add(problem.problem)
                found.append(problem)
        return found

    def _stream(self, split: str, seed: int) -> Iterator[Problem]:
        styles = random.Random(f"{split}/{seed}")
        for part in range(10_000):
            source = f"{self._key()}/{split}/{seed}/{part}"
            usable = False
            for item in self._generate(int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") >> 1, CHUNK):
                usable = True
                if bucket(self._text(item)) == split:
                    number = item["metadata"].get("source_index", 0)
                    yield self._problem(item, f"{split}-{seed}-{part}-{number}", split, styles)
            if not usable:
                raise ConfigurationError(
                    f"task '{self.name}': none of {CHUNK} problems that were drawn is one of its settings ({self.params}); "
                    "widen them"
                )

    def _generate(self, seed: int, size: int) -> Iterator[dict[str, Any]]:
        import reasoning_gym

        try:
            yield from reasoning_gym.create_dataset(self.dataset, seed=seed, size=size, **self.params)
        except (TypeError, AssertionError, ValueError) as error:
            raise ConfigurationError(
                f"task.params={self.params}: {self.dataset} does not take them ({error})"
            ) from error

    def _key(self) -> str:
        return f"{self.dataset}/{self.params}"

    def _text(self, item: dict[str, Any]) -> str:
        """What decides the split."""
        return str(item["question"])

    def _problem(self, item: dict[str, Any], id: str, split: str, styles: random.Random) -> Problem:
        metadata = {"source_dataset": self.dataset, **item["metadata"]}
        worked = metadata.get("answer_cot")
        solution = str(worked).partition("####")[0].strip() if worked else ""
        if extract_answer(solution) is None:
            solution = "\n".join([*([solution] if solution else []), format_answer(str(item["answer"]))])
        return Problem(id, item["question"], str(item["answer"]), solution, {"metadata": metadata})


class MixedQuality(ReasoningGym):
    """Problems with solutions of mixed quality, as real SFT data has them: careful ones, and ones that jump to the answer.

    `Problem.extra["style"]` says which (`direct` or `steps`). Problems of `tune` and `test` are unique; `sft` and `train` may
    repeat (there are only 200 sums of two one-digit terms).
    """

    config: Any  # a `MixedQualityConfig`

    @abstractmethod
    def own_part(self, item: dict[str, Any]) -> str:
        """What the wording does not say; it decides the split."""

    @abstractmethod
    def steps(self, item: dict[str, Any]) -> list[str]:
        """The lines of a careful solution, before the one that states the answer."""

    @abstractmethod
    def difficulty(self, item: dict[str, Any]) -> int:
        """A number that grows with the work."""

    def _key(self) -> str:
        return str(self.params)

    def _text(self, item: dict[str, Any]) -> str:
        return self.own_part(item)

    def _problem(self, item: dict[str, Any], id: str, split: str, styles: random.Random) -> Problem:
        share = 0.0 if split == "examples" else self.config.direct_share
        style = "direct" if styles.random() < share else "steps"
        lines = self.steps(item) if style == "steps" else []
        return Problem(
            id=id,
            problem=self.config.wording.replace("{problem}", self.own_part(item)),
            answer=item["answer"],
            solution="\n".join([*lines, format_answer(item["answer"])]),
            extra={"style": style, "difficulty": self.difficulty(item), "metadata": item["metadata"]},
        )


class ChainSum(MixedQuality):
    """Sums such as `6 + 0 - 1` from reasoning_gym; the difficulty is the number of terms."""

    ood_variants: ClassVar[dict[str, dict[str, Any]]] = {
        "more terms": {"min_terms": 5, "max_terms": 6, "max_new_tokens": 96},
        "larger numbers": {"min_digits": 2, "max_digits": 2, "max_new_tokens": 96},
        "another wording": {"wording": r"What is {problem}? Give the result in \boxed{}."},
    }

    config_class = ChainSumConfig

    def _open(self, config: ChainSumConfig) -> None:
        self.dataset = "chain_sum"
        self.params = {name: getattr(config, name) for name in ("min_terms", "max_terms", "min_digits", "max_digits")}

    def own_part(self, item: dict[str, Any]) -> str:
        return str(item["metadata"]["expression"])

    def steps(self, item: dict[str, Any]) -> list[str]:
        first, *rest = item["metadata"]["expression"].split()
        total, lines = int(first), []
        for operator, term in zip(rest[::2], rest[1::2], strict=True):
            result = total + int(term) if operator == "+" else total - int(term)
            lines.append(f"{total} {operator} {term} = {result}")
            total = result
        return lines

    def difficulty(self, item: dict[str, Any]) -> int:
        return int(item["metadata"]["num_terms"])


class LegCounting(MixedQuality):
    """Word problems such as `3 spiders, 2 dogs` from reasoning_gym: how many legs? The difficulty is the number of kinds.

    A careful solution recalls the legs of each animal, multiplies and adds up.
    """

    ood_variants: ClassVar[dict[str, dict[str, Any]]] = {
        "more animals": {"min_animals": 4, "max_animals": 5, "max_new_tokens": 144},
        "larger numbers": {"min_instances": 6, "max_instances": 12, "max_new_tokens": 96},
        "another wording": {
            "wording": r"A farm keeps {problem}. Count all their legs and give the number in \boxed{}."
        },
    }

    config_class = LegCountingConfig

    def _open(self, config: LegCountingConfig) -> None:
        names = ("min_animals", "max_animals", "min_instances", "max_instances")
        self.dataset, self.params = "leg_counting", {name: getattr(config, name) for name in names}

    def own_part(self, item: dict[str, Any]) -> str:
        return ", ".join(_named(count, animal) for animal, count in item["metadata"]["animals"].items())

    def steps(self, item: dict[str, Any]) -> list[str]:
        from reasoning_gym.arithmetic.leg_counting import ANIMALS

        lines, total = [], 0
        for i, (animal, count) in enumerate(item["metadata"]["animals"].items()):
            legs = count * ANIMALS[animal]
            lines.append(f"{_named(count, animal)}: {count} * {ANIMALS[animal]} = {legs}")
            if i:
                lines.append(f"{total} + {legs} = {total + legs}")
            total += legs
        return lines

    def difficulty(self, item: dict[str, Any]) -> int:
        return int(item["metadata"]["num_animals"])


def _named(count: int, animal: str) -> str:
    return f"{count} {animal}{'s' if count > 1 else ''}"
