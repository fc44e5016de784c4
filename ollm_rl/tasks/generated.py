"""Tasks whose problems reasoning_gym generates, by seed."""

import hashlib
import random
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.reward.answers import extract_answer
from ollm_rl.tasks.base import Problem, Task, bucket, check_split, format_answer

CHUNK = 2_000  # problems that are generated at a time


class ReasoningGym(Task):
    """Any data set of reasoning_gym by name.

    Its solutions are the worked ones where the data set has them, and the bare answer otherwise. Judge answers that
    are no mathematics with `reward=reasoning_gym`. Problems of `tune` and `test` are unique.

    Args:
        dataset: its name in reasoning_gym.
        params: its settings.
        num_examples: solved problems in every prompt.
        max_new_tokens: token budget of an episode.
    """

    def __init__(
        self,
        dataset: str,
        params: dict[str, Any] | None = None,
        num_examples: int = 3,
        max_new_tokens: int = 128,
        name: str = "reasoning_gym",
    ):
        from reasoning_gym.factory import DATASETS

        if dataset not in DATASETS:
            raise ConfigurationError(
                f"task.dataset={dataset}: reasoning_gym has no such data set.{did_you_mean(str(dataset), DATASETS)} "
                f"It has {', '.join(sorted(DATASETS))}."
            )
        self.name, self.dataset, self.params = name, dataset, dict(params or {})
        self.max_new_tokens = max_new_tokens
        self._generate(0, 1)  # wrong settings show here
        self.examples = self._draw("examples", num_examples, 0)

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
            for item in self._generate(int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") >> 1, CHUNK):
                if bucket(self._text(item)) == split:
                    number = item["metadata"].get("source_index", 0)
                    yield self._problem(item, f"{split}-{seed}-{part}-{number}", split, styles)

    def _generate(self, seed: int, size: int):
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(self.dataset, seed=seed, size=size, **self.params)
        except (TypeError, AssertionError, ValueError) as error:
            raise ConfigurationError(
                f"task.params={self.params}: {self.dataset} does not take them ({error})"
            ) from error

    def _key(self) -> str:
        return f"{self.dataset}/{self.params}"

    def _text(self, item: dict) -> str:
        """What decides the split."""
        return item["question"]

    def _problem(self, item: dict, id: str, split: str, styles: random.Random) -> Problem:
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

    Args:
        direct_share: share of the solutions that say the answer only.
        wording: what a problem says, with `{problem}` where its own part comes.
    """

    def __init__(self, dataset: str, params: dict, direct_share: float, wording: str, num_examples: int, **rest):
        if not 0 <= direct_share <= 1:
            raise ConfigurationError(f"task.direct_share={direct_share}; expected a number from 0 to 1")
        if "{problem}" not in wording:
            raise ConfigurationError(
                f"task.wording={wording!r}; expected {{problem}} in it, where the problem's own part comes"
            )
        self.direct_share, self.wording = direct_share, wording
        super().__init__(dataset, params, num_examples, **rest)

    @abstractmethod
    def own_part(self, item: dict) -> str:
        """What the wording does not say; it decides the split."""

    @abstractmethod
    def steps(self, item: dict) -> list[str]:
        """The lines of a careful solution, before the one that states the answer."""

    @abstractmethod
    def difficulty(self, item: dict) -> int:
        """A number that grows with the work."""

    def _key(self) -> str:
        return str(self.params)

    def _text(self, item: dict) -> str:
        return self.own_part(item)

    def _problem(self, item: dict, id: str, split: str, styles: random.Random) -> Problem:
        share = 0.0 if split == "examples" else self.direct_share
        style = "direct" if styles.random() < share else "steps"
        lines = self.steps(item) if style == "steps" else []
        return Problem(
            id=id,
            problem=self.wording.replace("{problem}", self.own_part(item)),
            answer=item["answer"],
            solution="\n".join([*lines, format_answer(item["answer"])]),
            extra={"style": style, "difficulty": self.difficulty(item), "metadata": item["metadata"]},
        )


class ChainSum(MixedQuality):
    """Sums such as `6 + 0 - 1` from reasoning_gym; the difficulty is the number of terms."""

    ood_variants: ClassVar[dict[str, dict]] = {
        "more terms": {"min_terms": 5, "max_terms": 6, "max_new_tokens": 96},
        "larger numbers": {"min_digits": 2, "max_digits": 2, "max_new_tokens": 96},
        "another wording": {"wording": r"What is {problem}? Give the result in \boxed{}."},
    }

    def __init__(
        self,
        min_terms: int = 2,
        max_terms: int = 4,
        min_digits: int = 1,
        max_digits: int = 1,
        direct_share: float = 0.6,
        wording: str = r"{problem} = ? Put the final answer in \boxed{}.",
        num_examples: int = 3,
        max_new_tokens: int = 48,
        name: str = "chain_sum",
    ):
        if not 2 <= min_terms <= max_terms:
            raise ConfigurationError(f"task: expected 2 <= min_terms <= max_terms, got {min_terms} and {max_terms}")
        params = dict(min_terms=min_terms, max_terms=max_terms, min_digits=min_digits, max_digits=max_digits)
        super().__init__(
            "chain_sum", params, direct_share, wording, num_examples, max_new_tokens=max_new_tokens, name=name
        )

    def own_part(self, item: dict) -> str:
        return item["metadata"]["expression"]

    def steps(self, item: dict) -> list[str]:
        first, *rest = item["metadata"]["expression"].split()
        total, lines = int(first), []
        for operator, term in zip(rest[::2], rest[1::2], strict=True):
            result = total + int(term) if operator == "+" else total - int(term)
            lines.append(f"{total} {operator} {term} = {result}")
            total = result
        return lines

    def difficulty(self, item: dict) -> int:
        return item["metadata"]["num_terms"]


class LegCounting(MixedQuality):
    """Word problems such as `3 spiders, 2 dogs` from reasoning_gym: how many legs? The difficulty is the number of kinds.

    A careful solution recalls the legs of each animal, multiplies and adds up.
    """

    ood_variants: ClassVar[dict[str, dict]] = {
        "more animals": {"min_animals": 4, "max_animals": 5, "max_new_tokens": 144},
        "larger numbers": {"min_instances": 6, "max_instances": 12, "max_new_tokens": 96},
        "another wording": {
            "wording": r"A farm keeps {problem}. Count all their legs and give the number in \boxed{}."
        },
    }

    def __init__(
        self,
        min_animals: int = 1,
        max_animals: int = 3,
        min_instances: int = 1,
        max_instances: int = 5,
        direct_share: float = 0.6,
        wording: str = r"How many legs are there in total if you have {problem}? Put the final answer in \boxed{}.",
        num_examples: int = 3,
        max_new_tokens: int = 80,
        name: str = "leg_counting",
    ):
        params = dict(
            min_animals=min_animals, max_animals=max_animals, min_instances=min_instances, max_instances=max_instances
        )
        super().__init__(
            "leg_counting", params, direct_share, wording, num_examples, max_new_tokens=max_new_tokens, name=name
        )

    def own_part(self, item: dict) -> str:
        return ", ".join(_named(count, animal) for animal, count in item["metadata"]["animals"].items())

    def steps(self, item: dict) -> list[str]:
        from reasoning_gym.arithmetic.leg_counting import ANIMALS

        lines, total = [], 0
        for i, (animal, count) in enumerate(item["metadata"]["animals"].items()):
            legs = count * ANIMALS[animal]
            lines.append(f"{_named(count, animal)}: {count} * {ANIMALS[animal]} = {legs}")
            if i:
                lines.append(f"{total} + {legs} = {total + legs}")
            total += legs
        return lines

    def difficulty(self, item: dict) -> int:
        return item["metadata"]["num_animals"]


def _named(count: int, animal: str) -> str:
    return f"{count} {animal}{'s' if count > 1 else ''}"
