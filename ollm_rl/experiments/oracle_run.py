"""Searches over all problems of a run, with their rows, curves and episodes to look at."""

import time

from torch import Tensor

from ollm_rl.common.run_dir import RESULTS, Run
from ollm_rl.config.compose import Settings
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.evaluator import evaluate_answers
from ollm_rl.evaluation.records import TEACHER, Point
from ollm_rl.evaluation.replay import SHOWN, replay
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row
from ollm_rl.experiments.factories import make_oracle
from ollm_rl.experiments.single import SessionCache, is_done
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.summary import summarize_searches
from ollm_rl.oracle.teacher import PICKERS, teacher_forced
from ollm_rl.oracle.tree import Policy
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.agent import Answer
from ollm_rl.session.base import BaseSession
from ollm_rl.session.loading import agent_of


def run_oracle(settings: Settings, run: Run, sessions: SessionCache, seed: int) -> Results:
    """The oracle's rows, one a search, and their curves, on the same problems as the agents.

    Raises:
        CheckpointError: it is done, and more training is wanted, which is none of its affair.
    """
    with run.unless_refused():
        if is_done(run.path, run.grown, settings, learn=False):
            return Results.load(run.path)
        config = settings.config
        session = sessions.session(settings, seed)
        problems = session.problems(config.evaluate.split, config.oracle.num_problems, seed)
        policy, results = search_policy(session, settings), Results([], config.task.name, config.backbone.name)
        for i, name in enumerate(dict.fromkeys([config.oracle.search, *config.oracle.also])):
            if name == TEACHER:
                results.rows += [session.run_on_model(teacher_forced, problems, picker, seed) for picker in PICKERS]
                continue
            search = make_oracle(session, config, policy, name)
            deployed = search.config.judge != "verdict"
            agent = f"search_{search.name}" if deployed else "oracle" if not i else f"oracle_{search.name}"
            row, curve = solve_and_store(session, search, problems, run, seed, agent)
            results.rows.append(row)
            if curve:
                results.curves[name] = curve
        for row in results.rows:
            row.directory = run.path
        results.directory, results.conversion = run.path, session.conversion
        run.write_json("conversion.json", session.conversion)
        run.write_json(RESULTS, results.to_dict())
        return results


def search_policy(session: BaseSession, settings: Settings) -> Policy:
    """Log-probabilities to search with: those of the policy given by `policy=`, else the prior's."""
    if settings.config.policy is not None:
        agent = agent_of(session, settings.config.agent, settings.config.policy)
        if agent.policy is not None and not agent.acts_on_logits and not hasattr(agent.policy, "sees"):
            return agent.policy
        raise ConfigurationError(f"agent '{settings.agent_name}' has no log-probabilities of states to search with")

    def prior(hidden: Tensor, mask: Tensor) -> Tensor:
        return session.plugin.prior_log_probs(hidden, mask)  # sent to a worker, it asks the plug-in there

    return prior


def solve_and_store(
    session: BaseSession, oracle: Oracle, problems: list, run: Run, seed: int, agent: str = "oracle"
) -> tuple[Row, list[Point]]:
    """Search all problems; the row, under the name `agent`, and the curve. Episodes to look at are kept under that name."""
    name, start = oracle.name, time.monotonic()
    searches = oracle.solve(problems, seed, run.path / f"searches_{name}.jsonl")
    if oracle.config.judge != "verdict":
        answers = [Answer(s.solution or Episode(s.problem), s.spent, s.tried) for s in searches]
        title = f"{oracle.search}/{oracle.config.judge}"
        found = evaluate_answers(session, agent, answers, title, oracle.budget, seed)
        run.save_rollouts(f"oracle_{name}", found.greedy)
        return found.row, []
    row, curve = summarize_searches(searches, name, oracle.budget, agent, seed)
    solved = [s.shortest for s in searches if s.shortest is not None]
    run.save_rollouts(f"oracle_{name}", solved)
    run.write_json(row.replays, session.run_on_model(replay, solved[: 2 * SHOWN]))
    assert row.search is not None
    row.search.occupancy, row.search.search_seconds = oracle.occupancy, time.monotonic() - start
    return row, curve
