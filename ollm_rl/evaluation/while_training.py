"""Evaluation while an agent learns: held-out accuracy, which leaves the training as it would be without."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ollm_rl.evaluation.config import EvaluateConfig
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.session.agent import adapt
from ollm_rl.session.callbacks import Callback
from ollm_rl.tasks import Problem


class EvaluateWhileTraining(Callback):
    """One greedy answer to held-out problems after every `every` iterations.

    >>> agent.learn("runs/x", callbacks=[ol.EvaluateWhileTraining(every=5)])

    `eval/accuracy` (the share of rewards of at least 1), `eval/reward` (their mean) and `eval/n_problems` are logged with the
    iteration's other metrics. The problems are of split `tune`, never of `test`: whoever stops or chooses by them has used them.

    Args:
        every: iterations between evaluations. num_problems: how many problems, the same each time.
    """

    def __init__(self, every: int, num_problems: int = EvaluateConfig.every_problems):
        EvaluateConfig(every=every, every_problems=num_problems)  # which checks them
        self.every, self.num_problems = every, num_problems
        self.problems: list[Problem] = []

    def on_training_start(self, agent: Any) -> None:
        session = agent.session  # now: later its workers may be busy
        self.problems = session.problems("tune", self.num_problems, session.seed)

    def on_iteration_end(self, agent: Any, step: int, metrics: dict[str, Any]) -> None:
        if step % self.every:
            return
        session = agent.session
        with _same_random_numbers():
            found = evaluate(session, adapt(agent, session), f"iteration {step}", self.problems, 0, session.seed).greedy
        session.metrics()  # what evaluation took is not the next iteration's
        metrics |= {"eval/accuracy": float(np.mean([e.solved for e in found])), "eval/n_problems": len(found)}
        metrics |= {"eval/reward": float(np.mean([e.reward for e in found]))}


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """What is drawn after the block is what would be drawn without it."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)
