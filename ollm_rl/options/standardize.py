"""Inputs of unit size, whatever the backbone."""

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """(x - mean) / std with fixed statistics, so that nets see inputs of unit size whatever the backbone."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, x: Tensor) -> None:
        self.mean.copy_(x.float().mean(0))
        self.std.copy_(x.float().std(0).clamp_min(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.mean.dtype) - self.mean) / self.std
