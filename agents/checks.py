"""What every learner checks in the same way: its settings before it begins, and that numbers stay finite while it learns."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ollm_rl.errors import ConfigurationError, TrainingError
from ollm_rl.trajectory import Episode

MAX_REWARD = 1e15  # float32 holds the squares of sums of such numbers
HUGE = 1e30  # settings from here on overflow float32 in an optimiser
REMEDY = "Lower agent.learning_rate, or look at the rewards (rollouts/); the last checkpoint is from before."


def at_least(low: float, **settings: Any) -> None:
    """Refuse settings of an agent that are less than `low`, beyond float32 or no numbers.

    Raises:
        ConfigurationError: naming the first.
    """
    _check(f"at least {low}", lambda value: value >= low, settings)


def above(low: float, **settings: Any) -> None:
    """Refuse settings of an agent that are `low` or less, beyond float32 or no numbers.

    Raises:
        ConfigurationError: naming the first.
    """
    _check(f"a number above {low}", lambda value: value > low, settings)


def within(low: float, high: float, **settings: Any) -> None:
    """Refuse settings of an agent that are not between `low` and `high`, both included.

    Raises:
        ConfigurationError: naming the first.
    """
    _check(f"a number from {low} to {high}", lambda value: low <= value <= high, settings)


def _check(expected: str, right: Any, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE
        if not number or not right(value):
            raise ConfigurationError(f"agent.{name}={value}; expected {expected}")


def check_finite(what: str, values: Tensor | float | Iterable[Tensor]) -> None:
    """Raise if a loss, gradients or weights are not finite any more: what follows would be learned from nothing.

    Raises:
        TrainingError: `what` is NaN or infinite.
    """
    tensors = (
        [values] if isinstance(values, Tensor) else values if isinstance(values, Iterable) else [torch.tensor(values)]
    )
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise TrainingError(f"{what}: NaN or infinite, so training was stopped. {REMEDY}")


def check_weights(what: str, weights: Mapping[str, Tensor] | nn.Module) -> None:
    """`check_finite` for what is about to be saved."""
    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    for name, tensor in named.items():
        if tensor.is_floating_point():
            check_finite(f"{what}, {name}", tensor)


def check_episodes(episodes: Sequence[Episode]) -> None:
    """There is something to learn from, and its rewards can be calculated with in float32.

    Raises:
        TrainingError: no episode, or a reward that is too large.
    """
    if not episodes:
        raise TrainingError("an iteration gave no episode, so training was stopped. Look at the task's problems.")
    for episode in episodes:
        if not math.isfinite(episode.reward) or abs(episode.reward) > MAX_REWARD:
            raise TrainingError(
                f"a reward of {episode.reward} (problem {episode.problem.id}); expected a number between -{MAX_REWARD:g} and "
                f"{MAX_REWARD:g}. Mend the reward function, and run the same command again to continue."
            )


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float | None = None) -> float:
    """One step of the optimiser down the gradient of `loss`, whose norm is clipped to `max_norm`; the loss.

    Raises:
        TrainingError: the loss or its gradient is not finite; no weight has been touched.
    """
    check_finite("the loss", loss)
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
    check_finite("the gradient", norm)
    optimizer.step()
    return loss.item()
