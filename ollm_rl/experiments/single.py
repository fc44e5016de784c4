"""One agent with one seed: trained, evaluated, and its row written."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ollm_rl.common.locate import locate
from ollm_rl.common.run_dir import POLICY, RESULTS, Run, stored_json
from ollm_rl.config.compose import Settings, to_dict
from ollm_rl.errors import CheckpointError, DataError
from ollm_rl.evaluation.evaluator import evaluate, evaluate_hand_over, evaluate_ood, kl_from_start
from ollm_rl.evaluation.general import general
from ollm_rl.evaluation.records import Variant
from ollm_rl.evaluation.replay import changes, replay, shown
from ollm_rl.evaluation.results import Results, Scores
from ollm_rl.evaluation.rows import Row
from ollm_rl.evaluation.while_training import EvaluateWhileTraining
from ollm_rl.models.adapters import COST, adapter_size
from ollm_rl.options.config import ValueConfig
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.options.reader import Reader
from ollm_rl.options.value import Value
from ollm_rl.session.agent import Agent, answers_itself, declared, store, train
from ollm_rl.session.base import BaseSession, problems_of
from ollm_rl.session.callbacks import Callback
from ollm_rl.session.loading import agent_of
from ollm_rl.session.local import Session
from ollm_rl.session.opening import conversion_config, open_session, plugin_path, say_splits, task_of, wants_samples
from ollm_rl.session.solutions import with_solutions, write_solutions
from ollm_rl.session.value import learn_value

log = logging.getLogger(__name__)
OF_SESSIONS = ("backbone", "plugin", "task", "reward", "engine", "convert", "rollout", "policy")


def open_workers(settings: Settings, seed: int) -> BaseSession:
    """The session of a driver whose workers have the model, if there are to be any; else as `open_session`."""
    if wants_samples(settings.config):  # hours before anything is evaluated
        problems_of(task_of(settings.config), settings.config.evaluate.split, 1)
    if not settings.config.rollout.num_workers:
        return open_session(settings, seed)
    from ollm_rl.cluster.session import ClusterSession

    config, task, plugin = settings.config, task_of(settings.config), None
    say_splits(task)
    if wants_samples(config):  # all workers sample, and one converts
        opens = partial(ClusterSession, settings, task, seed)
        task, plugin = with_solutions(opens, task, conversion_config(config), and_convert=plugin_path(config) is None)
    return ClusterSession(settings, task, seed, plugin)


class SessionCache:
    """Opens the session when it is first needed: an experiment whose trials are all done loads no model.

    Trials of a comparison share it, but for arms with another backbone, plug-in or task, which share theirs.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, BaseSession] = {}  # by what makes one
        # How an agent (by `identity`) stood with a seed: many begin as one.
        self.known: dict[tuple[str, int], Scores] = {}

    def session(self, settings: Settings, seed: int) -> BaseSession:
        """The session, set to `seed`."""
        key = json.dumps({k: v for k, v in to_dict(settings.config).items() if k in OF_SESSIONS}, sort_keys=True)
        if key not in self._sessions:
            self._sessions[key] = open_workers(settings, seed)
        session = self._sessions[key]
        session.seed = seed
        return session

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()


def run_trial(
    settings: Settings,
    run: Run,
    sessions: SessionCache,
    seed: int,
    learn: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Results:
    """Train (if it learns) and evaluate one agent with one seed; its results, a row, are read if they are already there.

    Args:
        callbacks: called while it learns.

    Raises:
        CheckpointError: it is done, more training is wanted, and the agent cannot go on from where it ended.
    """
    with run.unless_refused():
        if is_done(run.path, run.grown, settings, learn):
            log.info("%s: already done", run.path)
            return Results.load(run.path)
        session = sessions.session(settings, seed)
        agent = agent_of(session, settings.config.agent, settings.config.policy)
        problems = session.problems(settings.config.evaluate.split, settings.config.evaluate.num_problems, seed)
        return _run_trial(settings, run, sessions, seed, learn, session, agent, problems, callbacks)


def is_done(path: Path, grown: dict, settings: Settings, learn: bool = True) -> bool:
    """Whether a run has its results, and nothing more is wanted of it.

    Args:
        grown: limits of training that are larger now (`Run.grown`).

    Raises:
        CheckpointError: it has its results, and more is wanted that cannot be had.
    """
    if not (path / RESULTS).exists() or not grown:
        return (path / RESULTS).exists()
    if learn and declared(locate(settings.config.agent._target_), "trains_on"):
        return False
    [(key, (before, now)), *_] = grown.items()
    why = f"agent '{settings.agent_name}' does not train on once it has ended" if learn else "nothing is trained here"
    raise CheckpointError(
        f"{path} is done with {key}={before}, and now {key}={now} is wanted, but {why}. Repeat that setting, choose another "
        "name=, or delete the directory."
    )


def _run_trial(
    settings: Settings,
    run: Run,
    sessions: SessionCache,
    seed: int,
    learn: bool,
    session: BaseSession,
    agent: Agent,
    problems: list,
    callbacks: Sequence[Callback],
) -> Results:
    config = settings.config
    run.write_json("conversion.json", session.conversion)
    write_solutions(session.task, run)
    before: Scores | None = None
    learned: dict[str, Any] = {}
    if config.policy is None:
        agent.prepare(run)
    begun = agent.identity()
    if learn:
        if agent.learns_from_rewards:
            before = _before(settings, run, session, agent, problems, seed, sessions.known.get((begun, seed)))
            if begun:
                sessions.known[begun, seed] = before
        every, n = config.evaluate.every, config.evaluate.every_problems
        learned = train(agent, run, [*([EvaluateWhileTraining(every, n)] if every is not None else []), *callbacks])
        store(agent, run.path / POLICY)
    value = _value(settings, run, session, agent, seed, learn)
    found = evaluate(
        session, agent, settings.agent_name, problems, config.evaluate.samples, seed, config.evaluate.ks, value
    )
    run.save_rollouts("greedy", found.greedy)
    run.save_rollouts("sampled", found.sampled)
    row = found.row
    row.directory, row.before = run.path, before
    row.add(learned)
    row.total_seconds = seconds_from_nothing(session, agent, row)
    row.trainable_parameters = parameters_trained(session, agent)
    row.ood = _out_of_distribution(settings, session, agent, seed)
    if (after := list(config.evaluate.hand_over)) and agent.learns_from_rewards and not agent.acts_on_logits:
        row.hand_over = evaluate_hand_over(session, agent, found.greedy, after)
    if (n := config.evaluate.num_kl) and row.search is None:  # what a search answers is no episode of a policy
        row.kl_from_start = kl_from_start(session, agent, problems[:n], seed)
    if (n := config.evaluate.num_general) and isinstance(session, Session):
        row.general = general(session, agent, n)
    if before and before.mean_length and row.mean_length is not None:
        row.length_change = row.mean_length / before.mean_length - 1
    if begun and begun == agent.identity():
        sessions.known[begun, seed] = row.scores()
    if not agent.acts_on_logits:
        run.write_json(row.replays, session.run_on_model(replay, shown(found.greedy)))
        if before:
            row.changes = session.run_on_model(changes, found.greedy)
    results = Results([row], config.task.name, config.backbone.name, conversion=session.conversion, directory=run.path)
    run.write_json(RESULTS, results.to_dict())
    return results


def seconds_from_nothing(session: BaseSession, agent: Agent, row: Row) -> float | None:
    """Seconds of all that was fitted for an agent; None if a part of it was not made here, and nobody knows."""
    parts: list[float | None] = [row.setup_seconds or 0.0, row.train_seconds]
    if (adapter := session.backbone.adapter) is not None:
        fit = Path(adapter) / COST
        parts.append(stored_json(fit)["seconds"] if fit.is_file() else None)
    if not agent.acts_on_logits:
        parts.append(session.conversion.get("seconds"))
    elif reader_of(session, agent) is not None:
        parts.append(session.conversion.get("reader", {}).get("seconds"))
    return None if None in parts else sum(p for p in parts if p is not None)


def reader_of(session: BaseSession, agent: Agent) -> Reader | None:
    """The plug-in's reader, if an agent over the vocabulary reads what it gives, though it chooses among no options."""
    return session.plugin.reader if getattr(agent, "reads_reader", False) else None


def parameters_trained(session: BaseSession, agent: Agent) -> int | None:
    """How many numbers were trained for an agent, those of a merged adapter included; None if an adapter's are not known."""
    own = 0 if agent.acts_on_logits else session.plugin.num_parameters
    if (reader := reader_of(session, agent)) is not None:
        own += sum(p.numel() for p in reader.parameters())
    if isinstance(agent.policy, nn.Module):
        net = agent.policy.state_dict()
        prior = LatentPolicy.from_prior(session.plugin).state_dict()  # which the plug-in has already
        if net.keys() != prior.keys() or any(not torch.equal(net[k].cpu(), v.cpu()) for k, v in prior.items()):
            own += sum(p.numel() for p in agent.policy.parameters())
    else:  # of an adapter
        own += int(getattr(agent, "num_parameters", 0))
    if (adapter := session.backbone.adapter) is None:
        return own
    try:
        return own + adapter_size(adapter)
    except CheckpointError:
        return None


def _value(settings: Settings, run: Run, session: BaseSession, agent: Agent, seed: int, learn: bool) -> Value | None:
    """The learned verifier of an agent, if one is wanted: the one beside its policy if that was learned so, else a new one."""
    config = ValueConfig(**to_dict(settings.config.value))
    if not config.enabled or agent.acts_on_logits or answers_itself(agent):
        return None
    facts = {
        "backbone": session.backbone.name, "fingerprint": session.backbone.fingerprint, "plugin": session.plugin.digest(),
        "task": session.task.name, "agent": agent.identity(), "seed": seed, "settings": asdict(config),
    }  # fmt: skip
    for place in [
        run.path / POLICY,
        *([] if learn or settings.config.policy is None else [Path(settings.config.policy)]),
    ]:
        if (
            (place / "value.json").is_file()
            and agent.identity()
            and stored_json(place / "value.json").items() >= facts.items()
        ):
            log.info("learned verifier: that of %s", place)
            return Value.from_pretrained(place).to(session.backbone.device)
    try:
        value = learn_value(session, agent, config, seed)
    except DataError as error:  # the policy is there, and can be evaluated
        log.warning("no learned verifier: %s", error)
        return None
    value.save_pretrained(run.path / POLICY, **facts)
    return value


def _before(
    settings: Settings, run: Run, session: BaseSession, agent: Agent, problems: list, seed: int, known: Scores | None
) -> Scores:
    """What an agent is before it learns from rewards: greedy accuracy, degeneration and out-of-distribution accuracy.

    It is kept, for when a run is resumed the agent is no longer what it was.

    Args:
        known: of an agent that is the same and was evaluated before.
    """
    path = run.path / "before.json"
    if not path.exists():
        if known is None:
            found = evaluate(session, agent, f"{settings.agent_name} before training", problems, 0, seed).row
            found.ood = _out_of_distribution(settings, session, agent, seed)
            known = found.scores()
        run.write_json(path.name, known.to_dict())
    return Scores.from_dict(stored_json(path))


def _out_of_distribution(settings: Settings, session: BaseSession, agent: Agent, seed: int) -> dict[str, Variant]:
    n = settings.config.evaluate.num_ood
    if not n or not session.task.ood_variants:
        return {}
    return session.run_on_model(evaluate_ood, agent, to_dict(settings.config.task), n, seed)
