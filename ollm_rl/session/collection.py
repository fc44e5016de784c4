"""What was said about the problems of a split, chunk by chunk, and which of it is right."""

import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ollm_rl.common.cache import cache_dir, key_of, made_by_one
from ollm_rl.common.distributed import processes
from ollm_rl.common.progress import track
from ollm_rl.errors import DataError
from ollm_rl.options.config import ConversionConfig
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.samplers import Sampler
from ollm_rl.tasks import Problem, Task
from ollm_rl.tasks.base import ALL, has_end
from ollm_rl.tasks.twins import whole

log = logging.getLogger(__name__)

CHUNK = 32  # problems between two records
GENERATED = 8  # problems for each solution that is wanted, of a split without an end
SHOWN = 8  # texts in the report


class Collection:
    """What was said about the problems of a split, over all rounds.

    Attributes:
        wanted: solutions, at most.
        said: of each problem, in the order in which they were sampled: text, whether it is right, whether it was cut off and whether it was judged.
        rounds: figures of each.
    """

    def __init__(self, task: Task, config: ConversionConfig, split: str, wanted: int):
        self.task, self.config, self.split, self.wanted = task, config, split, wanted
        self.problems: list[Problem] = []
        self.said: list[list[dict[str, Any]]] = []
        self.rounds: list[dict[str, Any]] = []
        self.given = 0  # problems of tune that have a solution of their own
        if wanted:
            most = ALL if has_end(task) else GENERATED * wanted
            self.problems = _once(task.problems(split, most, config.seed))
            if split == "tune":  # what is there stays there
                unsolved = [p for p in self.problems if p.solution is None]
                self.given = len(self.problems) - len(unsolved)
                self.wanted = max(0, wanted - self.given)
                self.problems = unsolved if self.wanted else self.problems
            self.said = [[] for _ in self.problems]
            if not self.problems and self.wanted and not self.given:
                raise DataError(
                    f"convert.solutions={config.solutions}: task '{task.name}' has no problems in split '{split}' to sample solutions of"
                )

    def lacks(self, wanted: int) -> bool:
        """Whether there are fewer solutions, and somebody to ask for more."""
        return self._have() < wanted and bool(self._open())

    def _have(self) -> int:
        return sum(len(self._texts(i)) for i in range(len(self.said)))

    def _open(self) -> list[int]:
        """Problems to ask about: those that were asked about without success first, then the others."""
        tried = [i for i, said in enumerate(self.said) if said and not self._texts(i)]
        return tried + [i for i, said in enumerate(self.said) if not said]

    def ask(self, sampler: Sampler, wanted: int) -> None:
        """One round, until there are so many solutions."""
        if not self.lacks(wanted):
            return
        order, have = self._open(), self._have()
        session, config = sampler.session, self.config
        path = cache_dir() / "solutions" / key_of(
            session.backbone.fingerprint, str(session.backbone.dtype), session.run_on_model(_prompts, [self.problems[i] for i in order]),
            config.samples_per_problem, session.engine_settings["max_new_tokens"], config.seed, "v3", *sampler.key,
        )  # fmt: skip
        us = processes()
        if not us.is_main:  # who then reads what the main process has sampled
            us.wait()
        with made_by_one(path):
            asked, texts, right = self._sampled(sampler, order, path / "texts.jsonl", wanted, have)
        if us.is_main:
            us.wait()
        found = self._have() - have
        self.rounds.append(
            {"sampler": sampler.name, "problems": asked, "texts": texts, "texts_right": right, "new_solutions": found}
        )
        log.info(
            "%s, round %d, %s: %d problems, %d of %d texts right, %d new solutions (%s)", self.split, len(self.rounds), sampler.name, asked, right,
            texts, found, path,
        )  # fmt: skip

    def _sampled(self, sampler: Sampler, order: list[int], file: Path, wanted: int, have: int) -> tuple[int, int, int]:
        """Numbers of problems asked about, of texts, and of right ones."""
        known, asked, texts, right = [json.loads(line) for line in _whole_lines(file)], 0, 0, 0
        draw = np.random.default_rng((self.config.seed, len(order)))
        seeds = draw.integers(2**31, size=(len(order), self.config.samples_per_problem)).tolist()
        each = self.config.samples_per_problem
        with track(f"solutions of {self.split}", len(order), "problems", len(known)) as bar:
            # Chunk by chunk, whether they are known or not: what is found does not depend on what was kept before.
            while asked < len(order) and have < wanted:
                part = list(range(asked, min(asked + CHUNK, len(order))))
                new = part[max(0, len(known) - asked) :]
                said = _read([self.problems[order[i]] for i in part], known[part[0] : part[-1] + 1])
                episodes = sampler.session.run_on_model(_judged, said) if said else []
                if new:
                    added = sampler([(self.problems[order[i]], seed) for i in new for seed in seeds[i]])
                    episodes, lines = [*episodes, *added], [added[k : k + each] for k in range(0, len(added), each)]
                    _append(file, [[_kept(e) for e in line] for line in lines])
                for k, i in enumerate(part):
                    found = [_record(e) for e in episodes[k * each : (k + 1) * each]]
                    before = len(self._texts(order[i]))
                    self.said[order[i]] += found
                    have += len(self._texts(order[i])) - before
                    texts, right = texts + len(found), right + sum(x["solved"] for x in found)
                if not asked:
                    self._judgeable()
                asked += len(part)
                if new:
                    bar.advance(len(new), f"{have} solutions")
        return asked, texts, right

    def _texts(self, i: int) -> list[str]:
        """Solutions of a problem, each once, in the order in which they were sampled."""
        right = (x["text"].strip() for x in self.said[i] if x["solved"])
        return list(dict.fromkeys(text for text in right if text))[: self.config.solutions_per_problem]

    def right(self) -> list[Problem]:
        """One solution of every problem, then a second of those that have it, and so on: hard problems count as much as easy ones."""
        texts = [self._texts(i) for i in range(len(self.said))]
        turns = range(self.config.solutions_per_problem)
        pairs = [(i, turn) for turn in turns for i in range(len(texts)) if turn < len(texts[i])]
        return [replace(self.problems[i], solution=texts[i][turn]) for i, turn in pairs[: self.wanted]]

    def wrong(self) -> list[Problem]:
        """As many wrong texts, at most one a problem, as `convert.wrong_share` asks for."""
        if not (share := self.config.wrong_share):
            return []
        texts = [
            (i, next((x["text"].strip() for x in said if self._is_wrong(x)), None)) for i, said in enumerate(self.said)
        ]
        wrong = [replace(self.problems[i], solution=text) for i, text in texts if text is not None]
        most = round(len(self.right()) * share / (1 - share))
        return random.Random(self.config.seed).sample(wrong, min(len(wrong), most))

    def _is_wrong(self, record: dict[str, Any]) -> bool:
        return record["judged"] and not (record["cut"] or record["solved"]) and bool(record["text"].strip())

    def must_have_found(self) -> None:
        """Raises: DataError: nothing was found."""
        if not self.wanted or self.right():
            return
        asked, texts = sum(bool(said) for said in self.said), [x for said in self.said for x in said]
        cut = sum(x["cut"] for x in texts)
        room = (
            f" {cut:,} of {len(texts):,} texts were cut off by the token budget (engine.max_new_tokens)." if cut else ""
        )
        raise DataError(
            f"none of {asked} problems of split '{self.split}' was solved in {self.config.samples_per_problem} tries each.{room} Give worked solutions, "
            "examples (task.examples), more tries (convert.samples_per_problem), a larger split (task.split), easier problems or a stronger backbone"
        )

    def _judgeable(self) -> None:
        """Raises: DataError: the reward has no opinion on any text so far."""
        texts = [x for said in self.said for x in said]
        if not any(x["judged"] for x in texts):
            raise DataError(
                f"the reward gave None for all {len(texts)} texts that were sampled of split '{self.split}', so none is known to be right; check reward="
            )

    def figures(self) -> dict[str, Any]:
        per = Counter(len(self._texts(i)) for i, said in enumerate(self.said) if said)
        found = self.right()
        some = random.Random(self.config.seed).sample(found, min(SHOWN, len(found)))
        return {
            "problems_sampled": sum(per.values()), "problems_solved": sum(n for texts, n in per.items() if texts),
            "texts": sum(map(len, self.said)), "texts_right": sum(x["solved"] for said in self.said for x in said),
            "solutions": len(found), "wrong_texts_kept": len(self.wrong()),
            "problems_with_n_solutions": {str(n): per[n] for n in sorted(per)}, "rounds": self.rounds,
            "shown": [{"problem": p.problem, "solution": p.solution} for p in some],
        }  # fmt: skip


def _prompts(session: Any, problems: list[Problem]) -> list[Any]:
    """What the model will see: the beginning of all prompts, one as a whole, and what tells the others apart."""
    prompter = session.prompter
    return [prompter.prefix, prompter.text("1 A"), [prompter.own(p) for p in problems]]


def _judged(session: Any, episodes: list[Episode]) -> list[Episode]:
    session.judge(episodes, session.prompter)
    return episodes


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Without the second solutions of a problem."""
    first: dict[str, Problem] = {}
    for p in problems:
        first.setdefault(whole(p), p)
    return list(first.values())


def _kept(episode: Episode) -> dict[str, Any]:
    """An episode as a record of the cache."""
    return {"text": episode.text, "tokens": list(map(int, episode.tokens)), "stop": episode.stop, "seed": episode.seed}


def _read(problems: list[Problem], lines: list[list[dict[str, Any]]]) -> list[Episode]:
    """The episodes of the first problems, as far as there are records of them."""
    pairs = zip(problems, lines, strict=False)
    return [
        Episode(p, **{k: record[k] for k in ("seed", "tokens", "stop", "text")}) for p, line in pairs for record in line
    ]


def _append(file: Path, lines: list[list[dict[str, Any]]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _record(episode: Episode) -> dict[str, Any]:
    """What counts of an episode that was judged."""
    return {
        "text": episode.text,
        "solved": episode.solved and not episode.truncated and bool(episode.text.strip()),
        "cut": episode.truncated,
        "judged": episode.judged,
    }


def _whole_lines(file: Path) -> list[str]:
    """The lines of a record, without one that was cut off; the file is cut back to them."""
    if not file.exists():
        return []
    raw = file.read_bytes()
    end = raw.rfind(b"\n") + 1
    if end < len(raw):
        with file.open("r+b") as opened:
            opened.truncate(end)
    return raw[:end].decode().split("\n")[:-1]  # other line ends may stand in texts
