"""Tuning: settings of one or several agents, tried side by side with equal budgets on problems that nobody reports.

    ollm-rl tune agent=grpo                                                          # its default space
    ollm-rl tune agents=[grpo,ppo] agent.learning_rate=1e-4,3e-4 grpo.minibatches=2,4 ppo.num_epochs=4,8

`tuning_plan.py` reads what is to be tried; this file tries it. Every trial is a run of its own in `<run>/trials/`.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ollm_rl.common.locate import locate
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import METRICS, RESULTS, Run, whole_lines
from ollm_rl.config.spaces import Value
from ollm_rl.errors import CheckpointError, TrainingError
from ollm_rl.evaluation.comparison import add_areas, trailing
from ollm_rl.evaluation.metrics import bootstrap
from ollm_rl.evaluation.overview import Text, num
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row
from ollm_rl.experiments.single import SessionCache, run_trial
from ollm_rl.experiments.tuning_plan import EPISODES, Plan, Trial
from ollm_rl.session.agent import declared, takes_callbacks
from ollm_rl.session.callbacks import Callback

TUNE, TRIALS, STATE = "tune.json", "trials", "ray"  # in the directory of a tuning; the last is Ray Tune's
FAILED, EPISODES_DONE = "failed", "train_episodes"


class ReportProgress(Callback):
    """Tells Ray Tune of every iteration but the last, after which no trial is stopped."""

    def __init__(self, report: Any, run: Run, episodes: int):
        self.report, self.run, self.episodes = report, run, episodes

    def on_iteration_end(self, agent: Any, step: int, metrics: dict[str, Any]) -> None:
        before = [m for m in self.run.metrics() if m["step"] < step and "reward" in m]
        if metrics["train_episodes"] < self.episodes:
            reward = trailing([*before, metrics])[-1]
            self.report({"reward": reward, "train_episodes": metrics["train_episodes"]})


def run_one(plan: Plan, root: Path, point: dict[str, Any], report: Any) -> dict[str, Any]:
    """Train and evaluate one agent with one choice of settings, in a process of its own.

    Returns:
        `score`, or `failed` with the reason: settings with which training leaves the finite numbers are a result too.
    """
    trial = plan.trial(point["agent"], point["values"])
    root.mkdir(parents=True, exist_ok=True)
    seed, sessions = trial.settings.config.seed, SessionCache()
    with FileLock(root / f".{trial.name}.lock"):  # a sampler may ask for the same twice
        run = Run(root, trial.name, trial.settings.yaml())
        watched = EPISODES in trial.settings.config.agent and takes_callbacks(
            locate(trial.settings.config.agent._target_)
        )
        callbacks = [ReportProgress(report, run, plan.config.episodes)] if watched or plan.config.early_stopping else []
        try:
            results = run_trial(trial.settings, run, sessions, seed, callbacks=callbacks)
            return {"score": _score(results.rows[0], plan.config.metric)}
        except TrainingError as error:
            return {FAILED: str(error)}
        finally:
            run.close()
            sessions.close()


def _score(row: Row, metric: str) -> float | None:
    """A row's figure of that name."""
    if metric == "area":
        add_areas([row])
        return row.area_under_curve
    if metric == "accuracy":
        return row.accuracy
    if not row.sampled:  # what a search answers is one text
        return row.accuracy
    sampled = row.sampled[max(row.sampled)]
    return {"avg@k": sampled.avg, "pass@k": sampled.pass_, "maj@k": sampled.maj}[metric]


class Tuning:
    """A tuning in the process that was started: what has been tried, and what came of it.

    Attributes:
        trials: by their names, in the order in which they are tried; `rows` those that have ended, as `tune.json` has them.
    """

    def __init__(self, plan: Plan, run: Run):
        self.plan, self.run, self.config = plan, run, plan.config
        self.root = run.path.resolve() / TRIALS
        self.trials: dict[str, Trial] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        sizes = {name: plan.size(name) for name in plan.axes}
        self.total = sum(sizes.values())
        # A trial counts as its episodes, if it has some.
        self.whole = self.config.episodes if EPISODES in plan.trial([*sizes][0], {}).settings.config.agent else 1
        self.seen: dict[str, float] = {}  # how much of each trial is done
        self.logged = {line["trial"] for line in run.metrics()}

    def search(self) -> None:
        """Try all that the plan has; what was tried before an interruption is not tried again.

        Raises:
            TrainingError: all trials of an agent failed.
            KeyboardInterrupt: interrupted.
            the first other error of a trial; the others are stopped.
        """
        names, config = [*self.plan.axes], self.config
        # Trials are stopped by the rewards of others; those should be of the same agent.
        groups = [[name] for name in names] if config.early_stopping else [names]
        with track("tune", self.total * self.whole, "episodes" if self.whole > 1 else "trials") as self.bar:
            if config.search == "optuna":
                for name in names:
                    self._optuna(name)
            elif config.search == "coordinate":
                held: dict[str, dict[str, Value]] = {name: {} for name in names}
                for number in range(max(map(len, self.plan.axes.values()))):
                    for group in groups:
                        self._try([(n, values) for n in group for values in self.plan.stage(n, number, held[n])])
                    held = {name: self.best(name).values for name in names}
            else:
                for group in groups:
                    self._try([(name, values) for name in group for values in self.plan.points(name)])

    def best(self, agent: str) -> Trial:
        """The trial with the best score; of several, the first.

        Raises:
            TrainingError: none has a score.
        """
        mine = [self.rows[name] for name in self.trials if name in self.rows and self.rows[name]["agent"] == agent]
        scored = [row for row in mine if row["score"] is not None]
        if not scored:
            why = next((row[FAILED] for row in mine if FAILED in row), "none came to its end")
            raise TrainingError(f"no setting of {agent} has a score: {why}")
        return self.trials[max(scored, key=lambda row: row["score"])["trial"]]

    def _try(self, points: Sequence[tuple[str, dict[str, Value]]]) -> None:
        """Those that were not tried yet, at once."""
        trials = [self.plan.trial(agent, values) for agent, values in points]
        new = {trial.name: trial for trial in trials if trial.name not in self.trials}
        self.trials |= new
        if not all((self.root / name / RESULTS).exists() for name in new):
            from ollm_rl.cluster.tuner import run_trials

            wanted = [{"agent": trial.agent, "values": trial.values} for trial in _in_turn([*new.values()])]
            digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]
            for ended in run_trials(self._state(digest), partial(run_one, self.plan, self.root), wanted, self._setup()):
                self._end(ended.config, ended.metrics)
        for trial in new.values():
            self._end({"agent": trial.agent, "values": trial.values}, {})

    def _optuna(self, agent: str) -> None:
        from ollm_rl.cluster.tuner import run_optuna

        axes, config = self.plan.axes[agent], self.config
        found = run_optuna(
            self._state(f"optuna-{agent}"), partial(run_one, self.plan, self.root), {"agent": agent}, axes, config.num_samples,
            self.plan.settings.config.seed, self._setup(),
        )  # fmt: skip
        for ended in found:
            self._end(ended.config, ended.metrics)

    def _state(self, name: str) -> Path:
        return self.run.path.resolve() / STATE / name

    def _setup(self) -> Any:
        """What all searches of Ray Tune get: a `Setup` (of a module that needs Ray)."""
        from ollm_rl.cluster.tuner import EarlyStopping, Setup, Watcher

        config = self.config
        stopping = EarlyStopping(config.grace_episodes, config.episodes, config.reduction_factor)
        return Setup(
            self.plan.settings.config.rollout, Watcher(self._progress, self._end),
            stopping if config.early_stopping else None, config.max_concurrent,
        )  # fmt: skip

    def _progress(self, point: dict[str, Any], metrics: dict[str, Any]) -> None:
        key = json.dumps([point["agent"], point["values"]])
        now = min(metrics.get(EPISODES_DONE, 0), self.whole - 1)
        if now > self.seen.get(key, 0):
            self._advance(key, now)

    def _advance(self, key: str, now: float) -> None:
        before, self.seen[key] = self.seen.get(key, 0), now
        scored = [row for row in self.rows.values() if row["score"] is not None]
        best = max(scored, key=lambda row: row["score"], default=None)
        note = f"{len(self.rows)} of {self.total} trials" + (
            f", best {best['agent']} {best['score']:.3f}" if best else ""
        )
        self.bar.advance(int(now - before), note)

    def _end(self, point: dict[str, Any], metrics: dict[str, Any]) -> None:
        """A trial has ended, now or in an earlier call: take up what came of it."""
        trial = self.plan.trial(point["agent"], point["values"])
        if trial.name not in self.rows:
            self.trials.setdefault(trial.name, trial)
            row = self.rows[trial.name] = self._row(trial, metrics)
            if trial.name not in self.logged:
                self.logged.add(trial.name)
                said = {key: row[key] for key in ("accuracy", "area", "train_episodes", "train_seconds") if key in row}
                figures = {f"{trial.agent}/score": row["score"], **{f"{trial.agent}/{k}": v for k, v in said.items()}}
                self.run.log_metrics(len(self.logged), {"agent": trial.agent, "trial": trial.name, **figures})
        self._advance(json.dumps([point["agent"], point["values"]]), self.whole)

    def _row(self, trial: Trial, metrics: dict[str, Any]) -> dict[str, Any]:
        path = self.root / trial.name
        row: dict[str, Any] = {"agent": trial.agent, "settings": trial.chosen, "trial": trial.name, "score": None}
        if (path / RESULTS).exists():
            [found] = Results.load(path).rows
            add_areas([found])
            row["score"] = _score(found, self.config.metric)
            for k, sampled in found.sampled.items():
                ci95 = _interval(path, found.n_problems)
                row |= {
                    f"avg@{k}": sampled.avg,
                    f"avg@{k}_ci95": ci95,
                    f"pass@{k}": sampled.pass_,
                    f"maj@{k}": sampled.maj,
                }
            row |= {"accuracy": found.accuracy, "accuracy_ci95": found.accuracy_ci95, "area": found.area_under_curve}
            return row | {key: getattr(found, key) for key in ("n_problems", "train_episodes", "train_seconds")}
        if "score" in metrics:
            raise CheckpointError(
                f"{path} was tried, but its {RESULTS} is gone. Restore it, or delete {self._state('')} and repeat the command."
            )
        lines = [line for line in whole_lines(path / METRICS) if "reward" in line and line.get(EPISODES_DONE)]
        learner = Row(agent=trial.agent, n_problems=0, accuracy=0.0, accuracy_ci95=(0.0, 1.0), directory=path)
        add_areas([learner])
        row |= {"area": learner.area_under_curve}
        row |= {key: (lines[-1] if lines else {}).get(key, 0) for key in ("train_episodes", "train_seconds")}
        return row | ({FAILED: metrics[FAILED]} if FAILED in metrics else {"stopped": True})

    def result(self, overrides: Sequence[str]) -> dict[str, Any]:
        """What `tune.json` has.

        Args:
            overrides: of the command line, for the record.
        """
        config, best = self.plan.settings.config, {name: self.best(name) for name in self.plan.axes}
        return {
            "command": shlex.join(["ollm-rl", "tune", *overrides]), "task": config.task.name, "backbone": config.backbone.name,
            "split": self.config.split, "n": self.config.num_problems, "samples": self.config.samples, "seed": config.seed,
            "search": self.config.search, "metric": self.config.metric, "episodes": self.config.episodes,
            "rows": [{**self.rows[name], "trial": f"{TRIALS}/{name}"} for name in self.trials],
            "best": {name: trial.chosen for name, trial in best.items()},
            "overrides": {name: trial.overrides for name, trial in best.items()},
        }  # fmt: skip


def _in_turn(trials: list[Trial]) -> list[Trial]:
    """Of agents with a long set-up, which their trials share, one begins at once; the others would only wait for it, and come last."""
    long = [t for t in trials if declared(locate(t.settings.config.agent._target_), "long_setup")]
    first = list({trial.agent: trial for trial in reversed(long)}.values())
    rest = [trial for trial in trials if trial not in first]
    return [*first, *(t for t in rest if t not in long), *(t for t in rest if t in long)]


def _interval(path: Path, n: int) -> tuple[float, float] | None:
    """95% of the mean of sampled answers over problems (bootstrap)."""
    solved = [line.get("solved", line["reward"] >= 1.0) for line in whole_lines(path / "rollouts" / "sampled.jsonl")]
    if not solved or len(solved) % n:
        return None
    return bootstrap(np.array(solved, dtype=float).reshape(n, -1).mean(1)).ci95


def tune(plan: Plan, run: Run, overrides: Sequence[str]) -> dict[str, Any]:
    """Try all that a plan has, and write `tune.json`; what it holds.

    Raises: as `Tuning.search`.
    """
    tuning = Tuning(plan, run)
    with run.unless_refused():
        tuning.search()
    result = tuning.result(overrides)
    run.write_json(TUNE, result)
    return result


def tuning_table(result: dict[str, Any]) -> Text:
    """The trials, best first, those of each agent together; the best of each agent above them all."""
    k, metric = result["samples"], result["metric"]
    first, rest = [], []
    for agent in result["best"]:
        mine = [row for row in result["rows"] if row["agent"] == agent]
        mine.sort(key=lambda row: -np.inf if row["score"] is None else row["score"], reverse=True)
        first.append(mine[0])
        rest += mine[1:]
    head = ["agent", "settings", *([f"avg@{k} [95% interval]"] if k else []), "accuracy", "area", "episodes", "train s"]
    body = []
    for row in [*first, *rest]:
        said = "failed" if FAILED in row else "stopped" if "stopped" in row else ""
        sampled = [_cell(row, f"avg@{k}") or said] if k else []
        cells = [row["agent"], settings_text(row["settings"]), *sampled, _cell(row, "accuracy") or said]
        body.append([*cells, num(row["area"]), num(row["train_episodes"], 0), num(row["train_seconds"], 0)])
    title = f"{result['task']} with {result['backbone']}, split {result['split']}, n = {result['n']}; best by {metric.replace('@k', f'@{k}')}"
    return Text(title, "", head, body, len(first))


def _cell(row: dict[str, Any], figure: str) -> str:
    if row.get(figure) is None:
        return ""
    low, high = row.get(f"{figure}_ci95") or (None, None)
    return num(row[figure]) + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def settings_text(settings: dict[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults"
