"""Tasks whose problems are records: rows of files, or of a data set on the hub."""

import logging
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

from ollm_rl.common.settings import setting
from ollm_rl.errors import ConfigurationError, DataError, did_you_mean
from ollm_rl.reward.answers import extract_answer, repair_escapes
from ollm_rl.tasks.base import (
    BOUNDS,
    SPLITS,
    Problem,
    Task,
    TaskConfig,
    bucket,
    check_split,
    format_answer,
    shared_out,
    values_of,
)
from ollm_rl.tasks.conversations import from_trl
from ollm_rl.tasks.fields import checked, likely_misspelt, renamed, shown, text_of
from ollm_rl.tasks.formats import read_rows
from ollm_rl.tasks.marks import VALIDATION, known_mark
from ollm_rl.tasks.reading import read_hub
from ollm_rl.tasks.twins import Row, canonical, separate, whole, with_own_ids

log = logging.getLogger(__name__)

MAX_EXAMPLE = 400  # characters of a solution that may stand in every prompt
KNOWN = ("id", "problem", "answer", "solution", "split")

# For data that has no worked solutions to show.
EXAMPLES = [
    Problem("example-1", "What is the sum of the first 10 positive integers?", "55",
            r"The sum is $\frac{10 \cdot 11}{2} = 55$. The answer is $\boxed{55}$."),
    Problem("example-2", "A bag holds 3 red and 5 blue balls. What is the probability that a ball drawn from it is red?",
            r"\frac{3}{8}", r"There are $3 + 5 = 8$ balls, and 3 of them are red. The answer is $\boxed{\frac{3}{8}}$."),
    Problem("example-3", "What is the larger root of $x^2 - 5x + 6 = 0$?", "3",
            r"Since $x^2 - 5x + 6 = (x - 2)(x - 3)$, the roots are 2 and 3. The answer is $\boxed{3}$."),
]  # fmt: skip


def told_of_boxes(task: Task, read: bool) -> Task:
    """The task, told whether the reward reads boxes: where it does not, what we added to state answers in one goes, our examples and
    the last lines of solutions."""
    task.boxed = read
    if not read:
        task.examples = [example for example in task.examples if example not in EXAMPLES]
        if isinstance(task, Jsonl):
            task.take_back_last_lines()
    return task


@dataclass(frozen=True)
class JsonlConfig(TaskConfig):
    """Of `Jsonl`."""

    name: str = setting("jsonl", "which task it is, as `task=` says it; for tables and files")
    path: str | None = setting(
        None,
        'file of {"problem", "answer", "solution"} rows (JSON lines or array, CSV, Parquet, .gz), or a directory',
        path=True,
    )
    paths: dict[str, Any] = setting(
        {}, "a file or directory for each split, {train: a.jsonl, test: b.jsonl}, in place of `path` or beside it"
    )
    hub_id: str | None = setting(None, "a data set on the hub, in place of a file", path=True)
    hub_config: str | None = setting(None, "its configuration, if it has several")
    columns: dict[str, Any] = setting(
        {}, "which columns hold what: {problem: question, answer: reward_model.ground_truth}"
    )
    split: dict[str, Any] = setting(
        {},
        "shares of the problems that nothing says a split of, such as {sft: 0.2, test: 0.3}; the other splits share the rest",
    )
    num_examples: int = setting(
        2,
        "`sft` rows with a short solution that stand in every prompt; where no row has one, problems of our own do",
        at_least=0,
    )
    examples: str | None = setting(
        None,
        "a file of solved problems, such as two of one's own, all of which stand in every prompt; num_examples does not count then",
        path=True,
    )
    domain: str | None = setting(None, "keep problems whose domain holds this text, in any case")
    source: str | None = setting(None, "keep problems whose source holds this text, in any case")
    min_difficulty: float | None = setting(None, "keep problems of at least this difficulty")
    max_difficulty: float | None = setting(None, "keep problems of at most this difficulty")
    easiest: int | None = setting(None, "keep so many of the least difficult problems of every split", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("split", self.split), ("paths", self.paths), ("columns", self.columns)):
            if unknown := [key for key in values if name != "columns" and key not in SPLITS]:
                raise ConfigurationError(
                    f"task.{name} names '{unknown[0]}'; expected some of {', '.join(SPLITS)}.{did_you_mean(str(unknown[0]), SPLITS)}"
                )
            if name != "split" and (wrong := [k for k, v in values.items() if not isinstance(v, str)]):
                what = "the name of a column" if name == "columns" else "a file or directory"
                raise ConfigurationError(f"task.{name}.{wrong[0]}={values[wrong[0]]!r}; expected {what}")
        shares = [v if isinstance(v, int | float) and not isinstance(v, bool) else -1 for v in self.split.values()]
        whole = sum(shares) > 1 + 1e-9 or (len(shares) == len(SPLITS) and abs(sum(shares) - 1) > 1e-9)
        if whole or any(not 0 <= share <= 1 for share in shares):
            raise self.refuse("split", "shares from 0 to 1 whose sum is at most 1, and 1 where all four are given")


@dataclass(frozen=True)
class GSM8KConfig(JsonlConfig):
    """Of `GSM8K`."""

    name: str = setting("gsm8k", "which task it is, as `task=` says it; for tables and files")
    path: str | None = setting(None, "a local copy; null reads the hub", path=True)
    hub_id: str | None = setting("openai/gsm8k", "the data set on the hub", path=True)
    hub_config: str | None = setting("main", "its configuration, if it has several")
    num_examples: int = setting(
        3,
        "`sft` rows with a short solution that stand in every prompt; where no row has one, problems of our own do",
        at_least=0,
    )


@dataclass(frozen=True)
class OmniMathConfig(JsonlConfig):
    """Of `OmniMath`."""

    name: str = setting("omni_math", "which task it is, as `task=` says it; for tables and files")
    path: str | None = setting(None, "a local copy; null reads the hub", path=True)
    hub_id: str | None = setting("KbsdJames/Omni-MATH", "the data set on the hub", path=True)
    num_examples: int = setting(3, "solved problems of our own that stand in every prompt", at_least=0)
    max_new_tokens: int = setting(512, "token budget of an episode", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split:
            raise self.refuse(
                "split",
                "none, for all problems of this benchmark are in split test; to convert and train on a part of them, read the file with task=jsonl",
            )


class Jsonl(Task):
    """Problems from files, or from a data set on the hub, with the fields `problem` and `answer`, and optionally `id`, `solution`, `split`,
    `domain` (a text or a list of texts), `difficulty` (a number) and `source`; `columns` says where they have other names.

    Rows in TRL's formats are read as they are (`ollm_rl.tasks.conversations`). An `answer` that is missing is what the solution states last;
    where it states none, the problem has none (`unanswered`), which a reward of one's own may not need.

    Splits: a line marked `test` is never in another split, and one marked `validation` is in `tune`. If some lines are
    marked `sft` or `tune`, all marks count as they stand. Other lines, those marked `train` included, are spread by a
    hash of the problem over `sft`, `train`, `tune` and, if no line is marked `test`, `test`.

    A problem that stands in several lines (up to spacing and Unicode forms) is in `test` if one of them is, else in `tune`
    if one of them is, and in no other split then. Outside of `sft`, where it may have several solutions, it counts once.

    Attributes:
        notes: what is odd in the data and was put right, also logged.
        left_out: the problems of lines that were left out for their twins.
        system_prompt: the system message that all rows have, or the one of the settings.
    """

    config_class: ClassVar[type[JsonlConfig]] = JsonlConfig
    config: Any
    _marked: dict[str, int]  # rows of each split that are there for their mark

    def __init__(self, **settings: Any):
        self.config = config = self.config_class.of(settings, f"task '{self.config_class.name}'")
        self.name, self.max_new_tokens = config.name, config.max_new_tokens
        if config.path is None and config.hub_id is None and not config.paths:
            raise ConfigurationError(
                "task=jsonl needs data; give task.path=<file or directory>, or task.hub_id=<data set on the hub>"
            )
        self.system_prompt, self._system = config.system_prompt, ("", "")
        self._columns = config.columns
        # A row's solution, by its problem and what it is with a last line of ours.
        self._given = dict[tuple[str, str], str]()
        rows, notes = with_own_ids([Row(*self._parse(row, where), where) for where, row in self._rows()])
        spread = self._spread(rows)
        self.by_split, self.left_out, more = separate(spread)
        self.notes = [*likely_misspelt(config.columns), *notes, *more]
        read = {split: len(found) for split, found in self.by_split.items()}
        self.examples = self._take_examples(config.num_examples)
        kept = {split: len(found) for split, found in self.by_split.items()}
        for note in self.notes:
            _say(f"task '{self.name}': {note}")
        self._filter()
        self.table = [self._line(split, spread[split], read[split], kept[split]) for split in SPLITS]

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        check_split(split)
        found = list(self.by_split[split])
        random.Random(seed).shuffle(found)
        return found[:n]

    def take_back_last_lines(self) -> None:
        """Solutions and examples as their rows have them, without the answers that were stated below them."""

        def given(problems: list[Problem]) -> list[Problem]:
            return [replace(p, solution=self._given.get((p.problem, p.solution or ""), p.solution)) for p in problems]

        self.by_split = {split: given(problems) for split, problems in self.by_split.items()}
        self.examples = given(self.examples)

    # Reading

    def _rows(self) -> Iterator[tuple[str, Any]]:
        for split, path in self.config.paths.items():
            for where, row in read_rows(path):
                yield where, {**row, "split": split} if isinstance(row, dict) else row
        if self.config.path is not None:
            yield from read_rows(self.config.path)
        elif self.config.hub_id is not None and not self.config.paths:
            yield from read_hub(self.config.hub_id, self.config.hub_config)

    def _line(self, split: str, rows: list[Row], read: int, kept: int) -> str:
        """How many problems a split has, and where they come from."""
        marked = self._marked[split]
        here = self.by_split[split]
        parts = [f"{marked:,} rows marked so"] if marked and rows else []
        parts += [f"{len(rows) - marked:,} by the hash of their text"] if len(rows) > marked else []
        parts += [f"{len(rows) - read:,} left out as twins"] if len(rows) > read else []
        parts += [f"{read - kept} moved into the prompt"] if read > kept else []
        parts += [f"{kept - len(here):,} left out by filters"] if kept > len(here) else []
        solved = sum(p.solution is not None for p in here)
        parts += [f"{solved:,} with a solution"] if here else []
        return f"{split} {len(here):,} problems" + (f" ({', '.join(parts)})" if parts else "")

    def _parse(self, row: Any, where: str) -> tuple[Problem, str | None]:
        """The problem and the split that the row is marked with."""
        if not isinstance(row, dict):
            raise DataError(f"{where} holds {type(row).__name__}, expected an object with 'problem' and 'answer'.")
        row, before = from_trl(renamed(row, self._columns, where), where)
        row = checked(row, where)
        problem = repair_escapes(text_of(row["problem"]))
        solution = repair_escapes(row["solution"]) if canonical(row.get("solution") or "") else None
        answer = self._answer(row, solution, where)
        if (
            answer and solution is not None and extract_answer(solution) is None
        ):  # options must learn to state the answer
            whole = f"{solution.rstrip()}\n{format_answer(answer)}"
            self._given[problem, whole], solution = solution, whole
        self._take_system(before.system, where)
        extra = {k: v for k, v in row.items() if k not in KNOWN}
        id = "" if row.get("id") is None else text_of(row["id"]).strip()
        mark = known_mark(row["split"]) if row.get("split") else None
        return Problem(id or where.rsplit(" ", 1)[-1], problem, answer, solution, extra, before.turns), mark

    def _answer(self, row: dict[str, Any], solution: str | None, where: str) -> str:
        """The gold answer; empty where there is none, which `unanswered` remembers."""
        if row.get("answer") is not None:
            if not canonical(given := text_of(row["answer"])):
                raise DataError(
                    f"{where} has {shown(given)} in the field 'answer', expected a text or a finite number."
                )
            return repair_escapes(given).strip(" \t\r\n")
        stated = extract_answer(solution) if solution is not None else None
        if stated is None and not self.unanswered:
            what = "no field" if "answer" not in row else "nothing in the field"
            found = f"; found fields {sorted(map(str, row))}" if "answer" not in row else ""
            hint = "" if "answer" in row else did_you_mean("answer", [str(k) for k in row])
            self.unanswered = f"{where} has {what} 'answer'{found}, and no solution that states one.{hint}"
        return stated or ""

    def _take_system(self, text: str | None, where: str) -> None:
        """All rows' system message, unless the settings have one."""
        if self.config.system_prompt is not None or text is None:
            return
        if self._system[1] and text != self._system[0]:
            raise DataError(
                f"{where} has another system message than {self._system[1]}, and all prompts begin with the same. Give "
                "task.system_prompt=<text>, which takes their place."
            )
        if not self._system[1]:
            self.system_prompt, self._system = text, (text, where)

    def _spread(self, rows: list[Row]) -> dict[str, list[Row]]:
        marks = {row.mark for row in rows}
        ours = bool(marks & {"sft", "tune"})
        found: dict[str, list[Row]] = {split: [] for split in SPLITS}
        others: list[tuple[str, Row]] = []
        for row in rows:
            if row.mark == "test" or (ours and row.mark in SPLITS):
                found[str(row.mark)].append(row)
            elif row.mark in VALIDATION:
                found["tune"].append(row)
            else:
                others.append((whole(row.problem), row))
        self._marked = {split: len(found[split]) for split in SPLITS}
        reported = {whole(row.problem) for split in ("tune", "test") for row in found[split]}
        bounds = shared_out(self.config.split) if self.config.split else BOUNDS
        hashed: dict[str, str] = {}  # a problem goes where its first row does
        for text, row in others:
            said = text if row.problem.turns else row.problem.problem
            split = bucket(hashed.setdefault(text, said), bounds)
            split = "sft" if split == "examples" else split
            split = "train" if text in reported or (split == "test" and "test" in marks) else split
            found[split].append(row)
        return found

    def _take_examples(self, n: int) -> list[Problem]:
        if self.config.examples is not None:
            return self._given_examples(self.config.examples)
        if not any(p.solution is not None for problems in self.by_split.values() for p in problems):
            return EXAMPLES[:n]
        short = [p for p in self.by_split["sft"] if p.solution is not None and len(p.solution) < MAX_EXAMPLE][:n]
        self.by_split["sft"] = [p for p in self.by_split["sft"] if p not in short]
        return short

    def _given_examples(self, path: str) -> list[Problem]:
        """Those of a file; problems that stand there are in no split."""
        found, mine = [], (self.unanswered, self.system_prompt, self._system)
        for where, row in read_rows(path, "task.examples"):
            # Our names, or TRL's, whatever the columns of the data are called.
            ours = isinstance(row, dict) and bool({"problem", "prompt", "messages"} & row.keys())
            self._columns = {} if ours else self.config.columns
            example, _ = self._parse(row, where)
            if example.solution is None:
                raise DataError(
                    f"{where} has no 'solution'; task.examples shows in every prompt how problems are solved."
                )
            found.append(example)
        # An example needs no answer, and is asked under the data's system message.
        self.unanswered, self.system_prompt, self._system = mine
        shown = {whole(p) for p in found}
        for split, problems in self.by_split.items():
            kept = [p for p in problems if whole(p) not in shown]
            if len(kept) < len(problems):
                self.notes = [
                    *self.notes,
                    f"{len(problems) - len(kept)} problems of {split} left out, which are examples",
                ]
            self.by_split[split] = kept
        return found

    # Filters

    def _filter(self) -> None:
        everything = [p for split in self.by_split.values() for p in split]
        for key, field in (
            ("domain", "domain"), ("source", "source"), ("min_difficulty", "difficulty"),
            ("max_difficulty", "difficulty"), ("easiest", "difficulty"),
        ):  # fmt: skip
            if (value := getattr(self.config, key)) is None:
                continue
            if not any(p.extra.get(field) is not None for p in everything):
                raise ConfigurationError(f"task.{key}={value}: no problem of task '{self.name}' has a '{field}'")
            for split, problems in self.by_split.items():
                self.by_split[split] = self._kept(problems, key, field, value)
            if not any(self.by_split.values()):
                there = sorted({str(x) for p in everything for x in values_of(p, field)})
                shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
                raise ConfigurationError(f"task.{key}={value} leaves no problem; values of '{field}' are {shown}")

    def _kept(self, problems: list[Problem], key: str, field: str, value: Any) -> list[Problem]:
        having = [p for p in problems if p.extra.get(field) is not None]
        if key == "easiest":
            return sorted(having, key=lambda p: (p.extra[field], p.id))[:value]
        if key == "min_difficulty":
            return [p for p in having if p.extra[field] >= value]
        if key == "max_difficulty":
            return [p for p in having if p.extra[field] <= value]
        return [p for p in having if any(value.casefold() in str(v).casefold() for v in values_of(p, field))]


@cache  # a task is made several times in a run
def _say(note: str) -> None:
    log.warning("%s", note)


class GSM8K(Jsonl):
    """Word problems of grade-school mathematics (Cobbe et al. 2021, arXiv 2110.14168), with worked solutions.

    Read from the hub, or from `path`, in the original form (`question`, `answer` with its `####`) or as `Jsonl`.
    """

    config_class = GSM8KConfig

    def _parse(self, row: Any, where: str) -> tuple[Problem, str | None]:
        if isinstance(row, dict) and "question" in row and "####" in str(row.get("answer")):
            solution, _, answer = str(row["answer"]).rpartition("####")
            solution = re.sub(r"<<[^<>]*>>", "", solution).strip()  # marks for a calculator
            row = {**row, "problem": row["question"], "answer": answer.strip(), "solution": solution}
            del row["question"]
        return super()._parse(row, where)


class OmniMath(Jsonl):
    """Omni-MATH (arXiv 2410.07985): competition problems with `domain`, `difficulty` and `source`.

    Read from `path`, a JSON-lines copy, or from the hub. It is a benchmark: all of its problems are in the split
    `test`. Its solutions are too long to stand in a prompt; short ones of our own do.
    """

    config_class = OmniMathConfig

    def _spread(self, rows: list[Row]) -> dict[str, list[Row]]:
        self._marked = dict.fromkeys(SPLITS, len(rows))
        return {split: [] for split in SPLITS} | {"test": rows}

    def _take_examples(self, n: int) -> list[Problem]:
        return EXAMPLES[:n] if self.config.examples is None else super()._take_examples(n)
