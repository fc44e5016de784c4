"""Searches over all problems of a run, with their rows, curves and episodes to look at."""

import time

from torch import Tensor

from ollm_rl.common.run_dir import RESULTS, Run, stored_json
from ollm_rl.config.compose import Settings
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.comparison import replays_of
from ollm_rl.evaluation.replay import replay
from ollm_rl.experiments.factories import make_agent, make_oracle
from ollm_rl.experiments.single import SHOWN, SessionCache, is_done
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.summary import summarize_searches
from ollm_rl.oracle.teacher import PICKERS, teacher_forced
from ollm_rl.oracle.tree import Policy
from ollm_rl.session.local import Session


def run_oracle(
    settings: Settings, run: Run, sessions: SessionCache, seed: int
) -> tuple[list[dict], dict[str, list[dict]]]:
    """The oracle's rows, one a search, and their curves, on the same problems as the agents.

    Raises:
        CheckpointError: it is done, and more training is wanted, which is none of its affair.
    """
    with run.unless_refused():
        if is_done(run.path, run.grown, settings, learn=False):
            stored = stored_json(run.path / RESULTS)
            return stored["rows"], stored["curves"]
        config = settings.config
        session = sessions.session(settings, seed)
        problems = session.problems(config.evaluate.split, config.oracle.num_problems, seed)
        policy, rows, curves = search_policy(session, settings), [], {}
        for name in dict.fromkeys([config.oracle.search, *config.oracle.also]):
            if name == "teacher_forced":
                rows += [{**session.run_on_model(teacher_forced, problems, picker), "seed": seed} for picker in PICKERS]
                continue
            agent = "oracle" if name == config.oracle.search else f"oracle_{name}"
            search = make_oracle(session, config, policy, name)
            row, curves[name] = solve_and_store(session, search, problems, run, seed, agent)
            rows.append(row)
        run.write_json("conversion.json", session.conversion)
        results = {"task": session.task.name, "backbone": session.backbone.name, "rows": rows, "curves": curves}
        run.write_json(RESULTS, results)
        return rows, curves


def search_policy(session: Session, settings: Settings) -> Policy:
    """Log-probabilities to search with: those of the policy given by `policy=`, else the prior's."""
    if settings.config.policy is not None:
        agent = make_agent(session, settings.config.agent, settings.config.policy)
        if callable(getattr(agent, "policy", None)):
            return agent.policy
        raise ConfigurationError(f"agent '{settings.agent_name}' has no log-probabilities to search with")

    def prior(hidden: Tensor, mask: Tensor) -> Tensor:
        return session.plugin.prior_log_probs(hidden, mask)  # sent to a worker, it asks the plug-in there

    return prior


def solve_and_store(
    session: Session, oracle: Oracle, problems: list, run: Run, seed: int, agent: str = "oracle"
) -> tuple[dict, list[dict]]:
    """Search all problems; the row, under the name `agent`, and the curve. Episodes to look at are kept under that name."""
    name, start = oracle.search, time.monotonic()
    searches = oracle.solve(problems, seed, run.path / f"searches_{name}.jsonl")
    row, curve = summarize_searches(searches, name, oracle.budget)
    solved = [s.shortest for s in searches if s.shortest is not None]
    run.save_rollouts(f"oracle_{name}", solved)
    run.write_json(replays_of(agent), session.run_on_model(replay, solved[: 2 * SHOWN]))
    row |= {"agent": agent, "seed": seed, "occupancy": oracle.occupancy, "search_seconds": time.monotonic() - start}
    return row, curve
