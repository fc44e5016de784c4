"""Numbers that stay finite while something is learned, for policies and plug-ins alike: NaN is never saved."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ollm_rl.errors import TrainingError

REMEDY = "Lower agent.learning_rate, or look at the rewards (rollouts/); the last checkpoint is from before."


def check_finite(what: str, values: Tensor | float | Iterable[Tensor], remedy: str = REMEDY) -> None:
    """Raise if a loss, gradients or weights are not finite any more: what follows would be learned from nothing.

    Raises:
        TrainingError: `what` is NaN or infinite.
    """
    tensors = (
        [values] if isinstance(values, Tensor) else values if isinstance(values, Iterable) else [torch.tensor(values)]
    )
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise TrainingError(f"{what}: NaN or infinite, so training was stopped. {remedy}")


def check_weights(what: str, weights: Mapping[str, Tensor] | nn.Module, remedy: str = REMEDY) -> None:
    """`check_finite` for what is about to be saved."""
    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    for name, tensor in named.items():
        if tensor.is_floating_point():
            check_finite(f"{what}, {name}", tensor, remedy)


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float | None = None, remedy: str = REMEDY
) -> float:
    """One step of the optimiser down the gradient of `loss`, whose norm is clipped to `max_norm`; the loss.

    Raises:
        TrainingError: the loss or its gradient is not finite; no weight has been touched.
    """
    check_finite("the loss", loss, remedy)
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
    check_finite("the gradient", norm, remedy)
    optimizer.step()
    return loss.item()
