"""Callbacks: what somebody else wants to do while an agent learns."""

from collections.abc import Sequence
from typing import Any


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
