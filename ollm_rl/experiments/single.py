"""One agent with one seed: trained, evaluated, and its row written."""

import logging
from pathlib import Path
from typing import Any

from ollm_rl.common.locate import locate
from ollm_rl.common.run_dir import RESULTS, Run, stored_json
from ollm_rl.config.compose import Settings, to_dict
from ollm_rl.errors import CheckpointError
from ollm_rl.evaluation.evaluator import evaluate, evaluate_ood, kl_from_start
from ollm_rl.evaluation.replay import changes, replay
from ollm_rl.experiments.factories import make_agent
from ollm_rl.session.local import Session
from ollm_rl.session.opening import open_session, task_of

log = logging.getLogger(__name__)
SHOWN = 4  # solved and failed episodes that the report shows per agent


def open_workers(settings: Settings, seed: int) -> Session:
    """The session of a driver whose workers have the model, if there are to be any; else as `open_session`."""
    if not settings.config.rollout.num_workers:
        return open_session(settings, seed)
    from ollm_rl.cluster.session import ClusterSession

    return ClusterSession(settings, task_of(settings.config), seed)


class SessionCache:
    """Opens the session when it is first needed: an experiment whose cells are all done loads no model."""

    _space: Session | None = None

    def __init__(self) -> None:
        self.known: dict[
            tuple[str, int], dict
        ] = {}  # how an agent (by `identity`) stood with a seed: many begin as one

    def session(self, settings: Settings, seed: int) -> Session:
        """The session, set to `seed`."""
        if self._space is None:
            self._space = open_workers(settings, seed)
        self._space.seed = seed
        return self._space

    def close(self) -> None:
        if self._space is not None:
            self._space.close()


def run_trial(settings: Settings, run: Run, sessions: SessionCache, seed: int, learn: bool = True) -> dict:
    """Train (if it learns) and evaluate one agent with one seed; its row, from `results.json` if already there.

    Raises:
        CheckpointError: it is done, more training is wanted, and the agent cannot go on from where it ended.
    """
    with run.unless_refused():
        if is_done(run.path, run.grown, settings, learn):
            log.info("%s: already done", run.path)
            return stored_json(run.path / RESULTS)["rows"][0]
        session = sessions.session(settings, seed)
        agent = make_agent(session, settings.config.agent, settings.config.policy)
        problems = session.problems(settings.config.evaluate.split, settings.config.evaluate.num_problems, seed)
        return _run_trial(settings, run, sessions, seed, learn, session, agent, problems)


def is_done(path: Path, grown: dict, settings: Settings, learn: bool = True) -> bool:
    """Whether a run has its results, and nothing more is wanted of it.

    Args:
        grown: limits of training that are larger now (`Run.grown`).

    Raises:
        CheckpointError: it has its results, and more is wanted that cannot be had.
    """
    if not (path / RESULTS).exists() or not grown:
        return (path / RESULTS).exists()
    if learn and getattr(locate(settings.config.agent._target_), "trains_on", False):
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
    session: Session,
    agent: Any,
    problems: list,
) -> dict:
    config = settings.config
    run.write_json("conversion.json", session.conversion)
    row: dict[str, Any] = {"seed": seed, "train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}
    if config.policy is None and callable(getattr(agent, "prepare", None)):
        agent.prepare(run)
    begun, learns = _identity(agent), getattr(agent, "learns_from_rewards", "total_episodes" in config.agent)
    if learn:
        if learns:
            row["before"] = _before(settings, run, session, agent, problems, seed, sessions.known.get((begun, seed)))
            if begun:
                sessions.known[begun, seed] = row["before"]
        row |= agent.learn(run) or {}
        agent.save(run.path / "policy")
    found = evaluate(session, agent, settings.agent_name, problems, config.evaluate.samples, seed)
    run.save_rollouts("greedy", found.greedy)
    run.save_rollouts("sampled", found.sampled)
    row = {**found.row, **row, **_further(settings, session, agent, problems, seed)}
    if "before" in row:
        row["length_change"] = row["mean_length"] / max(row["before"]["mean_length"], 1e-9) - 1
    if begun and begun == _identity(agent):
        sessions.known[begun, seed] = _standing(row)
    if not getattr(agent, "acts_on_logits", False):
        shown = [e for e in found.greedy if e.solved][:SHOWN] + [e for e in found.greedy if not e.solved][:SHOWN]
        run.write_json("replays.json", session.run_on_model(replay, shown))
        if "before" in row:
            row["changes"] = session.run_on_model(changes, found.greedy)
    run.write_json(RESULTS, {"task": session.task.name, "backbone": session.backbone.name, "rows": [row]})
    return row


def _before(
    settings: Settings, run: Run, session: Session, agent: Any, problems: list, seed: int, known: dict | None
) -> dict:
    """What an agent is before it learns from rewards: greedy accuracy, degeneration and out-of-distribution accuracy.

    It is kept, for when a run is resumed the agent is no longer what it was.

    Args:
        known: of an agent that is the same and was evaluated before.
    """
    path = run.path / "before.json"
    if not path.exists():
        if known is None:
            found = evaluate(session, agent, f"{settings.agent_name} before training", problems, 0, seed).row
            known = _standing({**found, **_out_of_distribution(settings, session, agent, seed)})
        run.write_json(path.name, known)
    return stored_json(path)


def _standing(row: dict) -> dict:
    """The figures of greedy texts in a row."""
    dropped = (
        "agent", "seed", "breakdown", "before", "length_change", "kl_from_start", "train_", "setup_", "trainable_", "avg", "pass",
        "maj@",
    )  # fmt: skip
    return {k: v for k, v in row.items() if not k.startswith(dropped) and v is not None}


def _identity(agent: Any) -> str:
    return agent.identity() if callable(getattr(agent, "identity", None)) else ""


def _out_of_distribution(settings: Settings, session: Session, agent: Any, seed: int) -> dict:
    n = settings.config.evaluate.num_ood
    if not n or not session.task.ood_variants:
        return {}
    return {"ood": session.run_on_model(evaluate_ood, agent, to_dict(settings.config.task), n, seed)}


def _further(settings: Settings, session: Session, agent: Any, problems: list, seed: int) -> dict:
    """Figures of a trained agent that are asked for by `evaluate.num_ood` and `evaluate.num_kl`."""
    found, n = _out_of_distribution(settings, session, agent, seed), settings.config.evaluate.num_kl
    kl = kl_from_start(session, agent, problems[:n], seed) if n else None
    return found if kl is None else {**found, "kl_from_start": kl}
