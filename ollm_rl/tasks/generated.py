"""Tasks whose problems reasoning_gym generates, by seed."""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

from ollm_rl.answers import extract_answer
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.tasks.base import Problem, Task, bucket, check_split, stating

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
            solution = "\n".join([*([solution] if solution else []), stating(str(item["answer"]))])
        return Problem(id, item["question"], str(item["answer"]), solution, {"metadata": metadata})


class ChainSum(ReasoningGym):
    """Sums such as `6 + 0 - 1` from reasoning_gym, with solutions of mixed quality.

    Real SFT data mixes careful and hasty solutions; here a share of `direct_share` jumps straight to the
    answer and the rest goes step by step. `Problem.extra["style"]` says which (`direct` or `steps`); its
    difficulty is the number of terms. Problems of `tune` and `test` are unique; `sft` and `train` may repeat (there
    are only 200 sums of two one-digit terms).
    """

    def __init__(
        self,
        min_terms: int = 2,
        max_terms: int = 4,
        min_digits: int = 1,
        max_digits: int = 1,
        direct_share: float = 0.6,
        num_examples: int = 3,
        max_new_tokens: int = 48,
        name: str = "chain_sum",
    ):
        if not 2 <= min_terms <= max_terms:
            raise ConfigurationError(f"task: expected 2 <= min_terms <= max_terms, got {min_terms} and {max_terms}")
        if not 0 <= direct_share <= 1:
            raise ConfigurationError(f"task.direct_share={direct_share}; expected a number from 0 to 1")
        self.direct_share = direct_share
        params = dict(min_terms=min_terms, max_terms=max_terms, min_digits=min_digits, max_digits=max_digits)
        super().__init__("chain_sum", params, num_examples, max_new_tokens, name)

    def _key(self) -> str:
        return str(self.params)

    def _text(self, item: dict) -> str:
        return item["metadata"]["expression"]

    def _problem(self, item: dict, id: str, split: str, styles: random.Random) -> Problem:
        share = 0.0 if split == "examples" else self.direct_share
        style = "direct" if styles.random() < share else "steps"
        expression, terms = item["metadata"]["expression"], item["metadata"]["num_terms"]
        return Problem(
            id=id,
            problem=f"{expression} = ? Put the final answer in \\boxed{{}}.",
            answer=item["answer"],
            solution=solve_chain_sum(expression, steps=style == "steps"),
            extra={"style": style, "difficulty": terms, "metadata": item["metadata"]},
        )


def solve_chain_sum(expression: str, steps: bool) -> str:
    """A worked solution of a sum, one operation a line, or only its last line."""
    first, *rest = expression.split()
    total, lines = int(first), []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if operator == "+" else total - int(term)
        lines.append(f"{total} {operator} {term} = {result}")
        total = result
    return "\n".join([*(lines if steps else []), stating(str(total))])
