"""Worked solutions streamed from the hub, to convert on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ollm_rl.common.settings import setting
from ollm_rl.errors import DataError, did_you_mean
from ollm_rl.reward.answers import extract_answer
from ollm_rl.tasks.base import Problem, Task, TaskConfig, bucket, check_split, format_answer
from ollm_rl.tasks.fields import TEXT, is_of, text_of
from ollm_rl.tasks.records import EXAMPLES
from ollm_rl.tasks.twins import canonical


@dataclass(frozen=True)
class HubSolutionsConfig(TaskConfig):
    """Of `HubSolutions`."""

    name: str = setting("open_math_reasoning", "which task it is, as `task=` says it; for tables and files")
    hub_id: str = setting("nvidia/OpenMathReasoning", "a data set, streamed; a local directory will do", path=True)
    hub_split: str = setting("cot", "its split")
    problem: str = setting("problem", "its column of problems")
    solution: str = setting("generated_solution", "its column of solutions")
    answer: str = setting("expected_answer", "its column of answers")
    max_characters: int = setting(8000, "of a solution", at_least=1)
    buffer: int = setting(10_000, "rows among which the stream is shuffled", at_least=1)
    num_examples: int = setting(0, "solved problems of our own that stand in every prompt", at_least=0)
    max_new_tokens: int = setting(2048, "token budget of an episode", at_least=1)


class HubSolutions(Task):
    """Worked solutions for conversion, streamed from a data set on the hub: no more rows are read than are asked for.

    By default nvidia/OpenMathReasoning (arXiv 2504.16891). A problem's split follows from a hash of its text (up to spacing
    and Unicode forms), so that all of its solutions are in one; outside of `sft` it counts once. Rows without an answer or with
    a longer solution are left out.
    """

    config_class = HubSolutionsConfig
    streamed = True

    def __init__(self, **settings: Any):
        self.config = config = HubSolutionsConfig.of(settings, "task 'open_math_reasoning'")
        self.hub_id, self.hub_split, self.columns = (
            config.hub_id,
            config.hub_split,
            (config.problem, config.solution, config.answer),
        )
        self.max_characters, self.buffer, self.max_new_tokens = (
            config.max_characters,
            config.buffer,
            config.max_new_tokens,
        )
        self.name, self.examples = config.name, EXAMPLES[: config.num_examples]
        self._known: dict[tuple[str, int, int], list[Problem]] = {}

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        check_split(split)
        if (split, n, seed) not in self._known:
            self._known[split, n, seed] = list(islice(self._stream(split, seed), n))
        return self._known[split, n, seed]

    def _stream(self, split: str, seed: int) -> Iterator[Problem]:
        seen: set[str] = set()
        for number, row in enumerate(self._rows(seed)):
            missing = [c for c in self.columns if c not in row]
            if missing:
                hint = did_you_mean(missing[0], [str(c) for c in row])
                raise DataError(f"{self.hub_id} has no column '{missing[0]}'; it has {sorted(row)}.{hint}")
            cells = [row[c] for c in self.columns]
            problem, solution, answer = (text_of(cell).strip() if is_of(cell, TEXT) else "" for cell in cells)
            whole = problem and solution and answer and len(solution) <= self.max_characters
            text = canonical(problem)
            if not whole or bucket(text) != split or (text in seen and split != "sft"):
                continue
            seen.add(text)
            if self.wants_box() and extract_answer(solution) is None:
                solution = f"{solution}\n{format_answer(answer)}"
            yield Problem(f"{self.hub_split}-{seed}-{number}", problem, answer, solution)

    def _rows(self, seed: int) -> Iterable[dict[str, Any]]:
        from datasets import load_dataset

        try:
            data = load_dataset(self.hub_id, split=self.hub_split, streaming=True)
            yield from data.shuffle(seed=seed, buffer_size=self.buffer)
        except Exception as error:  # datasets raises many kinds for one cause
            raise DataError(
                f"the data set {self.hub_id}, split {self.hub_split}, cannot be had from the hub "
                f"({type(error).__name__}). Give a local copy as a directory with task.hub_id=, or a file with task=jsonl."
            ) from error
