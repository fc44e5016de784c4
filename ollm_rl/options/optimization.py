"""What the phases of a conversion's training share: the optimiser, its schedule, and where a training stands."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ollm_rl.common.finite import descend
from ollm_rl.options.objectives import KLController

LOG_EVERY = 10  # steps
REMEDY = "Lower convert.learning_rate; the backbone's hidden states may be out of its precision's range (backbone.dtype=float32)."


@dataclass
class Trained:
    """All that a phase of training changes."""

    plugin: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    controller: KLController | None = None

    def state(self) -> dict:
        return {
            "plugin": self.plugin.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.schedule.last_epoch,
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "controller": vars(self.controller) if self.controller is not None else {},
        }

    def restore(self, state: dict) -> None:
        self.plugin.load_state_dict(state["plugin"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["steps"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        if self.controller is not None:
            vars(self.controller).update(state["controller"])


class Progress:
    """Where a training stands: written after every epoch, so that an interrupted one goes on; and its metrics.

    Args:
        path: directory to keep it in; None keeps nothing.
        log: takes a step and its metrics.
    """

    def __init__(self, path: Path | None = None, log: Callable[[int, dict], None] | None = None):
        self.path, self._log = path, log

    def log(self, step: int, metrics: dict) -> None:
        if self._log is not None:
            self._log(step, metrics)

    def save(self, phase: str, epoch: int, trained: Trained) -> None:
        if self.path is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        scratch = self.path / f"state.{os.getpid()}.pt"
        torch.save({"phase": phase, "epoch": epoch, **trained.state()}, scratch)
        scratch.replace(self.path / "state.pt")

    def restore(self, phase: str, trained: Trained, epochs: int) -> int:
        """Load what was saved, and say how many epochs of the phase are done."""
        file = self.path / "state.pt" if self.path is not None else None
        if file is None or not file.exists():
            return 0
        state = torch.load(file, weights_only=True)
        if state["phase"] == phase:
            trained.restore(state)
            return state["epoch"]
        if phase == "prior":
            return 0
        trained.plugin.load_state_dict(state["plugin"])  # phase 1 is over
        return epochs


def step(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    """One step down the gradient of `loss`."""
    descend(optimizer, loss, max_norm=1.0, remedy=REMEDY)
    schedule.step()


class Together(torch.optim.Optimizer):
    """Optimisers of different parameters that step as one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:
        for part in self.parts:
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def optimizer_of(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, steps: int, muon: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, or Muon for matrices and AdamW for the rest; the rate rises for a tenth of the steps and falls to nothing along a cosine.

    Muon (Jordan et al. 2024) orthogonalises the step of a matrix; scaled to the size of AdamW's steps (Liu et al. 2025,
    arXiv 2502.16982), so that both take the same rate.
    """

    def factor(step: int) -> float:
        rise = max(1.0, 0.1 * steps)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, steps - rise))))

    of_all = list(parameters)
    given: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    optimizer: torch.optim.Optimizer
    if muon:
        matrices = torch.optim.Muon([p for p in of_all if p.ndim == 2], adjust_lr_fn="match_rms_adamw", **given)
        optimizer = Together(matrices, torch.optim.AdamW([p for p in of_all if p.ndim != 2], **given))
    else:
        optimizer = torch.optim.AdamW(of_all, **given)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
