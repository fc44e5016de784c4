"""Worked solutions by sampling: what a model says about problems with answers, as far as the judge finds it right.

Rejection sampling as in STaR (Zelikman et al. 2022, arXiv 2203.14465) and RFT (Yuan et al. 2023, arXiv 2308.01825): what the backbone says in
one of several tries, a plug-in can learn to say. Later rounds ask what was learned from earlier ones, as ReST-EM does (Singh et al. 2023,
arXiv 2312.06585).
"""

import copy
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ollm_rl.common.cache import cache_dir, key_of, made_by_one
from ollm_rl.common.distributed import processes
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import SOLUTIONS, Run
from ollm_rl.errors import CheckpointError, DataError
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.conversion import convert, drawn
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.policies import LatentPolicy, Sampling, sample_tokens
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.judge import Judge
from ollm_rl.rollout.sampler import Act, Request
from ollm_rl.session.base import BaseSession
from ollm_rl.session.loading import load_agent
from ollm_rl.session.local import session_with
from ollm_rl.session.saving import PLUGIN, read_description
from ollm_rl.tasks import Problem, Task
from ollm_rl.tasks.twins import whole

log = logging.getLogger(__name__)

CHUNK = 32  # problems between two records
MOST_PROBLEMS, GENERATED = (
    100_000,
    8,
)  # of a split that has an end; of one that has none, for each solution that is wanted
HELDOUT = 100  # solutions of split `tune` are enough to report on
SHOWN = 8  # texts in the report
NO_OPTIONS = PlugInConfig(
    num_options=2, encoder_width=8, decoder_width=8, prior_width=8, reader_depth=0, shortlist=2
)  # of a session that is asked for tokens only
# A session in which the model with these options is: a plug-in, the sizes of a new one, or the directory of one.
Opens = Callable[[PlugIn | PlugInConfig | str], BaseSession]


class Plain:
    """The backbone's own distribution over tokens at a temperature, as the engine asks for it."""

    def __init__(self, temperature: float):
        self.temperature = temperature

    @torch.inference_mode()
    def __call__(self, hidden: Tensor, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        return sample_tokens(logits / self.temperature, uniforms)


@dataclass
class Sampler:
    """Who is asked for texts.

    Attributes:
        name: for the log. key: what its texts depend on.
        home: the session that was opened for it. session: where it acts, which may have another model.
        request: the episode by which it answers.
    """

    name: str
    key: list[Any]
    home: BaseSession
    session: BaseSession
    act: Act
    from_logits: bool = False
    request: Callable[[Problem, int], Request] = Request

    def __call__(self, asked: Sequence[tuple[Problem, int]]) -> list[Episode]:
        requests = [self.request(problem, seed) for problem, seed in asked]
        return self.session.rollout(requests, self.act, keep_hidden=False, from_logits=self.from_logits)


def sample_solutions(
    backbone: Backbone,
    task: Task,
    reward: Callable[..., Any] | Judge | None = None,
    engine: dict[str, Any] | None = None,
    **settings: Any,
) -> Task:
    """The task with worked solutions by sampling, to convert on.

    >>> task = ol.sample_solutions(backbone, task, num_solutions=1000, rounds=2)
    >>> task.sampled["sft"]["problems_solved"], task.problems("sft", 1)[0].solution
    >>> plugin = ol.convert(backbone, task)

    Args:
        reward, engine: as for `ol.Session`.
        settings: `num_solutions`, `samples_per_problem`, `sampling_temperature`, `sampled_by`, `rounds` and the others of `convert`;
            `solutions="both"` begins with the task's own.

    Raises:
        ConfigurationError: there is no such setting.
        DataError: no problem was solved.
    """
    config = ConversionConfig.of({"solutions": "sampled", **settings})
    found, _ = with_solutions(partial(session_with, backbone, task, reward, engine or {}, config.seed), task, config)
    return found


def with_solutions(
    open_with: Opens, task: Task, config: ConversionConfig, and_convert: bool = False
) -> tuple[Task, PlugIn | None]:
    """The task with sampled solutions in `sft`, beside its own (`convert.solutions=both`) or in their place (`sampled`), and in `tune` where it has
    none; the task itself with `given`.

    Texts are kept in the cache, chunk by chunk, and an interrupted collection goes on from there. Verdicts are not kept: what is read from the cache
    is judged again, for a reward may have been mended. `Task.sampled` says how many problems gave how many solutions.

    Args:
        open_with: how a session is opened, in this process or on workers.
        and_convert: convert on what was found, where it was sampled; the plug-in is given too.

    Raises:
        CheckpointError: there is no agent in `convert.sampled_by`.
        DataError: there are no problems in `sft`, or none of them was solved.
    """
    if config.solutions == "given":
        return task, None
    given = task.problems("sft", config.num_solutions, config.seed) if config.solutions == "both" else []
    own = [p for p in given if p.solution is not None]
    wanted = max(0, config.num_solutions - len(own))
    sft, tune = (
        _Collection(task, config, "sft", wanted),
        _Collection(task, config, "tune", min(HELDOUT, config.num_heldout)),
    )
    plugin: PlugIn | None = None
    with ExitStack() as opened:
        home: BaseSession | None = None
        for turn in range(config.rounds if wanted else 0):
            # What is to be found is shared out over the rounds, so that later ones are asked as well.
            share = -(-wanted * (turn + 1) // config.rounds)
            if not (sft.lacks(share) or tune.lacks(tune.wanted)):
                continue
            if home is not None:
                plugin = converted_by(home, _solved(task, own, sft, tune), config)
            opened.close()
            sampler = opened.enter_context(_sampler(open_with, plugin, config))
            home = sampler.home
            sft.ask(sampler, share)
            tune.ask(sampler, tune.wanted)
            sft.must_have_found()
        solved = _solved(task, own, sft, tune)
        plugin = converted_by(home, solved, config) if and_convert and home is not None else None
    solved.sampled = {"sft": sft.figures(), "tune": tune.figures(), "given": len(own)}
    return solved, plugin


def write_solutions(task: Task, run: Run) -> None:
    """What was sampled, if anything was: figures in `solutions.json`, the solutions in `solutions.jsonl`, as `task=jsonl` reads them."""
    if (figures := getattr(task, "sampled", None)) is None:
        return
    run.write_json(SOLUTIONS, figures)
    sampled = {"sft": MOST_PROBLEMS, "tune": MOST_PROBLEMS if has_end(task) else HELDOUT}
    lines = [_line(split, p) for split, n in sampled.items() for p in task.problems(split, n) if p.solution]
    (run.path / "solutions.jsonl").write_text("".join(lines), encoding="utf-8")


def convert_there(session: BaseSession, sft: list[Problem], tune: list[Problem], config: ConversionConfig) -> PlugIn:
    """The plug-in of these solutions, converted where the model is; to be sent."""
    task = copy.copy(session.task)
    found = {"sft": sft, "tune": tune}
    task.problems = lambda split, n, seed=0: found.get(split, [])[:n]  # type: ignore[method-assign]
    config = replace(config, solutions="given", sampled_by=None, rounds=ConversionConfig.rounds)
    return copy.deepcopy(convert(session.backbone, task, config)).cpu()


def converted_by(session: BaseSession, task: Task, config: ConversionConfig) -> PlugIn:
    """The plug-in of a task, converted where the model of the session is."""
    sft, tune = (
        drawn(task, split, n, config.seed) for split, n in (("sft", config.num_solutions), ("tune", config.num_heldout))
    )
    found: PlugIn = session.run_on_model(convert_there, sft, tune, config)
    return found


def _line(split: str, problem: Problem) -> str:
    asked = [*problem.turns, ("user", problem.problem)]
    row = {
        **problem.extra,
        "id": problem.id,
        **(
            {"prompt": [{"role": r, "content": t} for r, t in asked]} if problem.turns else {"problem": problem.problem}
        ),
        **({"answer": problem.answer} if problem.answer else {}),
        "solution": problem.solution,
        "split": split,
    }
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def has_end(task: Task) -> bool:
    """Whether its problems are rows, and not generated as many as are wanted."""
    return bool(getattr(task, "table", ()))


@contextmanager
def _sampler(open_with: Opens, plugin: PlugIn | None, config: ConversionConfig) -> Iterator[Sampler]:
    """Who samples in the first round, or in one after it, where there is a plug-in of what was found."""
    where = config.sampled_by
    if plugin is not None:
        with _opened(open_with, plugin) as session:
            prior = Sampling(LatentPolicy.from_prior(session.plugin))
            yield Sampler("the prior of what was found so far", ["prior", plugin.digest()], session, session, prior)
    elif where is None:
        with _opened(open_with, NO_OPTIONS) as session:
            key = ["backbone", config.sampling_temperature]
            yield Sampler("the backbone", key, session, session, Plain(config.sampling_temperature), True)
    else:
        folder = Path(where).expanduser()
        known = read_description(folder) if folder.is_dir() else None
        if known is None or known.get(PLUGIN) is None:
            raise CheckpointError(
                f"convert.sampled_by={where} holds no agent with its plug-in; expected the directory that a run or agent.save wrote, such as "
                "runs/<name>/policy"
            )
        with _opened(open_with, str(known[PLUGIN])) as session:
            agent = load_agent(where, session)
            files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json"))
            key = ["agent", *(p.read_bytes() for p in files)]
            acting = agent.acting_session or session
            yield Sampler(
                where,
                key,
                session,
                acting,
                PolicyAdapter(agent, False),
                agent.acts_on_logits,
                partial(agent.request, deterministic=False),
            )


@contextmanager
def _opened(open_with: Opens, plugin: PlugIn | PlugInConfig | str) -> Iterator[BaseSession]:
    session = open_with(plugin)
    try:
        yield session
    finally:
        if session.lm is None:  # one in this process has its judge from others, who still need it
            session.close()


def _solved(task: Task, own: list[Problem], sft: "_Collection", tune: "_Collection") -> Task:
    """The task with what was found so far."""
    found, right, moved = copy.copy(task), sft.right(), list[Problem]()
    if tune.wanted and not (tune.right() or tune.given):
        # Something has to be there to report on: a tenth of the problems that were solved, which then are in `sft` no more.
        mine = {p.id for p in own}
        solved = [i for i in dict.fromkeys(p.id for p in right) if i not in mine]
        kept = mine | set(solved[: -max(1, len(solved) // 10)])
        if not kept:
            tune.must_have_found()
        right, moved = [p for p in right if p.id in kept], [p for p in right if p.id not in kept]
        log.warning("no problem of tune was solved: %d solutions of sft are held out in its place", len(moved))
    solutions = {p.id: p.solution for p in reversed(tune.right())}
    found.problems = partial(_problems, task, [*own, *right, *sft.wrong()], solutions, moved)  # type: ignore[method-assign]
    return found


def _problems(
    task: Task, sft: list[Problem], tune: dict[str, str | None], moved: list[Problem], split: str, n: int, seed: int = 0
) -> list[Problem]:
    """As `Task.problems`. tune: solutions of its problems by their ids. moved: problems that are in it besides, after all others."""
    if split == "sft":
        drawn = list(sft)
        random.Random(seed).shuffle(drawn)
        return drawn[:n]
    found = task.problems(split, n, seed)
    if split != "tune":
        return found
    return [*(replace(p, solution=p.solution or tune.get(p.id)) for p in found), *moved][:n]


class _Collection:
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
            most = MOST_PROBLEMS if has_end(task) else GENERATED * wanted
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
