"""What a command would take on this machine, measured: pieces of its own work for some seconds, then proportion.

Nothing is kept of what the pieces make; `ollm_rl.experiments.pieces` times them.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from statistics import fmean
from typing import Any

import psutil
from omegaconf import OmegaConf
from torch import Tensor

from ollm_rl.common.cost import Meter, peak_memory
from ollm_rl.common.locate import locate
from ollm_rl.common.run_dir import Run
from ollm_rl.config.compose import Settings, to_dict
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.evaluation.records import TEACHER
from ollm_rl.evaluation.replay import SHOWN, changes
from ollm_rl.experiments.factories import make_oracle
from ollm_rl.experiments.oracle_run import search_policy
from ollm_rl.experiments.pieces import FEWEST, Estimate, Measuring, Phase
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.config import ConversionConfig
from ollm_rl.options.conversion import convert, drawn, is_converted
from ollm_rl.options.modules import PlugIn
from ollm_rl.oracle.config import VALUED
from ollm_rl.session.agent import Agent, declared, train
from ollm_rl.session.loading import agent_of
from ollm_rl.session.local import Session, shared_backbone
from ollm_rl.session.opening import backbone_settings, conversion_config, open_session, plugin_path, task_of
from ollm_rl.tasks import Problem
from ollm_rl.tasks.prompts import Prompter

log = logging.getLogger(__name__)
FEWEST_SOLUTIONS = 32
FIRST_TOKENS = 12_000  # of a first piece, at most
ENOUGH = 128  # episodes of an iteration which alone says what the others take
PLOTS = 4  # of a report, about
ITERATIVE = (
    "total_episodes",
    "problems_per_iteration",
    "num_generations",
)  # settings of agents that learn in equal iterations


class Commands(Measuring):
    """Measures what the commands are made of."""

    def __init__(self, seconds: float):
        super().__init__(seconds)
        self.asked: dict[str, tuple[Phase, Phase | None]] = {}  # evaluations by the identity that an agent begins with
        self.solutions: list[int] = []  # their tokens, where the conversion was only begun

    def opened(self, settings: Settings) -> Session:
        """The session, with a plug-in of a piece of the conversion if the real one is not there."""
        config, found = settings.config, self.found
        process = psutil.Process()
        found.phases.append(Phase("start", time.time() - process.create_time(), time.process_time()))
        wall, cpu = time.perf_counter(), time.process_time()
        backbone = shared_backbone(**backbone_settings(config))
        self.on_cpu = backbone.device.type == "cpu"
        task, conversion = task_of(config), conversion_config(config)
        path, plugin = plugin_path(config), None
        cached = path is None and is_converted(backbone, task, conversion)
        if cached:
            plugin = convert(backbone, task, conversion)
        load = Phase("load the model", time.perf_counter() - wall, time.process_time() - cpu)
        if path is None and not cached:
            plugin, phases = self._conversion(backbone, task, conversion)
        session = open_session(settings, plugin=path or plugin)
        some = session.problems(config.evaluate.split, 1, config.seed)
        warm = self.run(lambda: session.engine.admit([session.prompter.encode(p) for p in some]))
        session.engine.clear()
        load.cpu_seconds, load.seconds = load.cpu_seconds + warm.seconds, load.seconds + warm.seconds
        found.phases.append(load)
        if path is None and not cached:
            found.phases += phases
            found.notes.append(
                "the options are not converted yet: texts are taken to be as long as the task's solutions are on average"
            )
        return session

    def limit(self, session: Session, length: Callable[[list[int]], float]) -> None:
        """Let no text be longer than what `length` says of the solutions, where the conversion was only begun: options that have seen
        few solutions hardly end a text, so that each would run into the token budget."""
        if self.solutions:
            engine = session.engine
            engine.max_new_tokens = max(1, min(session.engine_settings["max_new_tokens"], ceil(length(self.solutions))))

    def _conversion(self, backbone: Backbone, task: Any, config: ConversionConfig) -> tuple[PlugIn, list[Phase]]:
        """A conversion on few solutions, twice as many the second time; what all of them would take."""
        prompter = Prompter.for_task(backbone, task)

        def length(problems: Sequence[Problem]) -> int:
            different = {(p.problem, p.solution): len(prompter.encode_solution(p.solution or "")) for p in problems}
            return sum(different.values())

        every = drawn(task, "sft", config.num_solutions, config.seed)
        self.solutions = [len(prompter.encode_solution(p.solution or "")) for p in every]
        held = drawn(task, "tune", config.num_heldout, config.seed)
        epochs = {"options": config.epochs, "prior": config.prior_epochs, "reader": config.reader_epochs}
        epochs["without reader"] = config.reader_epochs
        limit, n, count = self.spent + 0.3 * self.budget, min(FEWEST_SOLUTIONS, len(every)), 0
        made: list[PlugIn] = []
        with tempfile.TemporaryDirectory() as folder, _cache_in(folder):
            while True:
                count, few = count + 1, min(len(held), max(8, n // 8))
                small = replace(config, num_solutions=n, num_heldout=few, epochs=1, prior_epochs=1, reader_epochs=1)
                meter = Meter()
                piece = self.run(lambda config=small: made.append(convert(backbone, task, config)))  # type: ignore[misc]
                meter.stop()
                if n == len(every) or (count > 1 and self.spent + 2 * piece.seconds > limit):
                    break
                n = min(2 * n, len(every))
        read = length(every + held) / max(1, length(drawn(task, "sft", n, config.seed) + held[:few]))
        # What no bar stands for, such as the report on the options, is spread over the phases.
        each = piece.seconds / max(1e-9, sum(meter.phases.values()))
        found = []
        for name, seconds in meter.phases.items():
            times = len(every) / n * epochs[name] if name in epochs else read
            found.append(self.phase(f"convert: {name}", seconds * each * times))
        states = [p for p in found if p.name.endswith("hidden states")]
        if states:
            tokens = length(every + held)
            self.found.rates["solution tokens read a second"] = tokens / max(1e-9, sum(p.seconds for p in states))
        return made[-1], found

    @staticmethod
    def _first(session: Session, texts: int) -> int:
        """Problems of a first piece of an evaluation with so many texts each: they fill the engine's slots, for a step of few rows takes
        about as long as one of many; a quarter of them for one text each, where reading the prompts is most of the work; fewer where
        texts are long."""
        slots, longest = session.engine.num_slots, session.engine.max_new_tokens
        fill = slots // (4 if texts == 1 else texts)
        return max(FEWEST, min(fill, FIRST_TOKENS // (longest * texts)))

    def trial(
        self, settings: Settings, session: Session, label: str, share: float
    ) -> tuple[list[Phase], Phase | None, str]:
        """An agent with one seed: its phases, the evaluation before it learns apart, and the agent's identity as it begins."""
        config, name = settings.config, settings.agent_name
        self.limit(session, fmean)
        agent = agent_of(session, config.agent, config.policy)
        begun = agent.identity()
        wanted = config.evaluate
        problems = session.problems(wanted.split, wanted.num_problems, config.seed)
        n = len(problems)
        phases: list[Phase] = []
        learns = agent.learns_from_rewards and label != "evaluate"
        extra = wanted.num_ood * len(session.task.ood_variants) + len(wanted.hand_over) * n
        once: Phase | None = None
        before = None
        if extra or (learns and (wanted.every is not None or begun not in self.asked)):
            once = self.grown(
                f"{name}: evaluate before",
                lambda at, m: evaluate(session, agent, name, problems[at : at + m], 0),
                n,
                0.15 * share,
                self._first(session, 1),
            )
            before = once if learns else None
        if learns:
            learner, phase = self._training(settings, session, agent, 0.4 * share)
            agent = learner or agent
            phases += [phase] if phase else []
            if phase and wanted.every is not None and once is not None:
                rounds = config.agent.total_episodes // (self._per_iteration(config) * wanted.every)
                phases.append(
                    replace(once, name=f"{name}: evaluate while training") * (rounds * wanted.every_problems / n)
                )
        asked, looked = self._answers(session, agent, name, begun, wanted, problems, share)
        phases.append(asked)
        if extra and once is not None:
            phases.append(replace(once, name=f"{name}: other problems") * (extra * (2 if learns else 1) / n))
        texts = n * (wanted.samples + 1)
        if config.value.enabled:
            more = config.value.num_problems * config.value.samples / texts
            phases.append(replace(asked, name=f"{name}: learned verifier") * more)
        if looked is not None:
            phases.append(looked * (min(2 * SHOWN, n) + (n if learns else 0)))
        return phases, before, begun

    def _answers(
        self,
        session: Session,
        agent: Agent,
        name: str,
        begun: str,
        wanted: Any,
        problems: Sequence[Problem],
        share: float,
    ) -> tuple[Phase, Phase | None]:
        """The evaluation of an agent, and looking at one of its texts again. Of agents that begin alike the first one's stand for all."""
        if begun and begun in self.asked:
            asked, looked = self.asked[begun]
            named = looked and replace(looked, name=f"{name}: look again")
            return replace(asked, name=f"{name}: evaluate"), named
        kept: list[Any] = []

        def answers(at: int, m: int) -> None:
            kept[:] = [evaluate(session, agent, name, problems[at : at + m], wanted.samples, 0).greedy]

        first = self._first(session, wanted.samples + 1)
        asked, looked = self.grown(f"{name}: evaluate", answers, len(problems), 0.3 * share, first), None
        greedy = [] if agent.acts_on_logits else [e for e in kept[0] if e.tokens]
        if greedy:
            looked = self.grown(
                f"{name}: look again",
                lambda at, m: changes(session, greedy[at : at + m]),
                len(greedy),
                0.1 * share,
                self._first(session, 1),  # texts are replayed side by side, as they are generated
            ) * (1 / len(greedy))
        if begun:
            self.asked[begun] = asked, looked
        return asked, looked

    @staticmethod
    def _per_iteration(config: Any) -> int:
        return int(config.agent.problems_per_iteration * config.agent.num_generations)

    def _training(
        self, settings: Settings, session: Session, agent: Agent, share: float
    ) -> tuple[Agent | None, Phase | None]:
        """One iteration of learning, then two if they are small; the agent that has learned for a moment, and the phase."""
        config, name = settings.config, settings.agent_name
        iterative = all(key in config.agent for key in ITERATIVE)
        if not iterative or agent.needs_model or agent.acts_on_logits:
            self.found.notes.append(
                f"training of {name} is not estimated: it does not learn in equal iterations on stored states alone"
            )
            return None, None
        per = self._per_iteration(config)
        total = -(-config.agent.total_episodes // per)
        last: list[Agent] = []

        def learn(at: int, iterations: int) -> None:
            own = OmegaConf.create({**to_dict(config.agent), "total_episodes": per * iterations})
            learner = agent_of(session, own, config.policy)
            with tempfile.TemporaryDirectory() as folder:
                run = Run(folder, "measured", "")
                try:
                    train(learner, run)
                    lines = [line for line in run.metrics() if "time/update_s" in line]
                finally:
                    run.close()
            if lines:
                self.found.rates["seconds of an update"] = sum(line["time/update_s"] for line in lines) / len(lines)
            last[:] = [learner]

        phase = self.grown(f"{name}: train", learn, total, share, first=1, least=1 if per >= ENOUGH else 2)
        return last[0], phase

    def search(self, settings: Settings, session: Session, share: float) -> list[Phase]:
        """The oracle's searches with one seed."""
        config, phases = settings.config, []
        self.limit(session, max)
        problems = session.problems(config.evaluate.split, config.oracle.num_problems, config.seed)
        policy = search_policy(session, settings)
        names = list(dict.fromkeys([config.oracle.search, *config.oracle.also]))
        for name in names:
            judge = name.partition("/")[2] or config.oracle.judge
            if name == TEACHER or judge in VALUED:
                self.found.notes.append(f"{name} is not estimated")
                continue
            oracle = make_oracle(session, config, policy, name)
            found: list[Any] = []

            def solve(at: int, m: int, oracle: Any = oracle, found: list[Any] = found) -> None:
                found[:] = oracle.solve(problems[at : at + m], config.seed)

            phases.append(self.grown(f"oracle {name}", solve, len(problems), 0.8 * share / len(names)))
            solved = [s.shortest for s in found if s.shortest is not None][: 2 * SHOWN]
            if solved:
                again = self.run(lambda solved=solved: changes(session, solved))  # type: ignore[misc]
                phases.append(self.phase(f"oracle {name}: look again", again.seconds))
        return phases

    def report(self, name: str = "report") -> Phase:
        """Plots and pages."""
        import io

        import matplotlib

        matplotlib.use("Agg")
        from matplotlib.figure import Figure

        from ollm_rl.report import html  # noqa: F401

        def draw() -> None:
            figure = Figure(figsize=(8, 5))
            axes = figure.subplots()
            axes.plot(range(100), range(100), label="a")
            axes.legend()
            figure.savefig(io.BytesIO(), dpi=150, format="png")

        first, again = self.run(draw), self.run(draw)
        return self.phase(name, first.seconds + (PLOTS - 1) * again.seconds)


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    before = os.environ.get("OLLM_RL_CACHE")
    os.environ["OLLM_RL_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["OLLM_RL_CACHE"]
        else:
            os.environ["OLLM_RL_CACHE"] = before


def _unmeasured(trial: Settings, settings: Settings) -> str:
    """Why an agent's part cannot be measured in a session of these settings; "" if it can."""
    if trial.config.backbone != settings.config.backbone:
        return "its backbone is another"
    # An adapter or a head is fitted first, as a rule: before that its texts run into the token budget, and would cost more than all that is measured.
    if not trial.config.policy and declared(locate(trial.config.agent._target_), "needs_model"):
        return "it trains more than a policy over the options"
    return ""


def measure(
    command: str, settings: Settings, trials: Sequence[Settings], seeds: int, searches: bool, seconds: float
) -> Estimate:
    """What a command would take.

    Args:
        trials: the settings of every agent; `seeds` how many seeds each of them, and the oracle if `searches`, has.
    """
    measuring = Commands(seconds)
    found = measuring.found
    session = measuring.opened(settings)
    try:
        engine = session.engine
        tokens, read = engine.num_tokens, 0
        if measuring.on_cpu:
            engine.profiler.enabled = True
        prefill = engine._prefill

        def counted_prefill(rows: Tensor, prompts: list[tuple[int, ...]]) -> Tensor:
            nonlocal read
            read += sum(map(len, prompts))
            return prefill(rows, prompts)

        engine._prefill = counted_prefill  # type: ignore[method-assign]
        known: set[str] = set()
        left_out = {each.agent_name: why for each in trials if (why := _unmeasured(each, settings))}
        found.notes += [f"{name} is not estimated: {why}" for name, why in left_out.items()]
        measured = [each for each in trials if each.agent_name not in left_out]
        kinds = len(measured) + bool(searches)
        for each in measured:
            phases, before, begun = measuring.trial(each, session, command, 1 / kinds)
            if before is not None and begun not in known:
                phases.insert(0, before)
            known |= {begun} if begun else set()
            found.phases += [phase * seeds for phase in phases]
        if searches:
            found.phases += [phase * seeds for phase in measuring.search(settings, session, 1 / kinds)]
        if command != "convert":
            found.phases.append(measuring.report())
        spent = engine.profiler.seconds
        if measuring.on_cpu and (decoding := spent["decode"] + spent["head"] + spent["options"]):
            found.rates["decode rows a second"] = (engine.num_tokens - tokens) / decoding * measuring.stretch
        if measuring.on_cpu and spent["prefill"]:
            found.rates["prompt tokens a second"] = read / spent["prefill"] * measuring.stretch
        for phase in found.phases[2:]:  # what comes before was timed by the clock
            phase.seconds = phase.cpu_seconds * measuring.stretch
        for child in psutil.Process().children(recursive=True):  # the judge's
            found.phases[1].cpu_seconds += sum(child.cpu_times()[:2])
        found.took, found.memory_gib = time.monotonic() - measuring.begun, max(peak_memory())
        return found
    finally:
        engine.profiler.enabled = False
        session.close()
