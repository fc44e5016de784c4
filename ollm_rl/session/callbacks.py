"""Callbacks: what somebody else wants to do while an agent learns."""

import logging
import math
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)


class Callback:
    """Called by agents while they learn; override what you need.

    >>> class Enough(ol.Callback):
    ...     def on_iteration_end(self, agent, step, metrics):
    ...         return metrics["reward"] < 0.9    # False ends training
    >>> agent.learn("runs/x", callbacks=[Enough()])
    """

    def on_training_start(self, agent: Any) -> None:
        """Before the first iteration, or the first one after an interruption."""

    def on_iteration_end(self, agent: Any, step: int, metrics: dict[str, Any]) -> bool | None:
        """After an update, before its metrics are logged and the checkpoint is written.

        Args:
            step: the iteration, from 1.
            metrics: what will be logged, `train_episodes` among them; figures that are added here are logged with them.

        Returns:
            False to end training with this iteration; its checkpoint is written.
        """

    def on_training_end(self, agent: Any) -> None:
        """After the last iteration."""


class Callbacks(Callback):
    """Several as one, called in order."""

    def __init__(self, callbacks: Sequence[Callback] = ()):
        self.callbacks = list(callbacks)

    def on_training_start(self, agent: Any) -> None:
        for callback in self.callbacks:
            callback.on_training_start(agent)

    def on_iteration_end(self, agent: Any, step: int, metrics: dict[str, Any]) -> bool:
        """All are called; False if one of them returned it."""
        wanted = [callback.on_iteration_end(agent, step, metrics) for callback in self.callbacks]
        return all(each is not False for each in wanted)

    def on_training_end(self, agent: Any) -> None:
        for callback in self.callbacks:
            callback.on_training_end(agent)


class EqualRewards(Callback):
    """Says so once where learners that compare episodes of a group find nothing to compare for `PATIENCE` iterations in a row."""

    PATIENCE = 10

    def __init__(self) -> None:
        self.in_a_row = 0

    def on_iteration_end(self, agent: Any, step: int, metrics: dict[str, Any]) -> None:
        self.in_a_row = self.in_a_row + 1 if metrics.get("frac_reward_zero_std") == 1 else 0
        if self.in_a_row == self.PATIENCE:
            log.warning(
                "%d iterations in a row all episodes of a problem got the same reward (%.3f in the mean), so nothing was learned from "
                "them. Look at the texts (the report, or ollm-rl view): easier problems, more agent.num_generations or a reward with "
                "steps between would help.", self.in_a_row, metrics.get("reward", math.nan),
            )  # fmt: skip
