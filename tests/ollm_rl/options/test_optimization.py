"""Optimisers of conversion: what each steps, and that they go on from what was saved."""

import copy

import pytest
import torch
from torch import nn

from ollm_rl.options.optimization import optimizer_of, step

STEPS = 10


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 1))


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    return (model(x)[:, 0] - x.sum(-1)).square().mean()


def trained(model: nn.Module, optimizer, schedule, seeds) -> list[torch.Tensor]:
    for seed in seeds:
        step(loss_of(model, seed), optimizer, schedule)
    return [p.detach().clone() for p in model.parameters()]


def test_matrices_take_orthogonal_steps_and_the_rest_those_of_adamw():
    model, plain = net(), net()
    before = [p.detach().clone() for p in model.parameters()]
    both = trained(model, *optimizer_of(model.parameters(), 1e-2, 0.0, STEPS, muon=True), range(1))
    adamw = trained(plain, *optimizer_of(plain.parameters(), 1e-2, 0.0, STEPS), range(1))
    for old, new, other in zip(before, both, adamw, strict=True):
        if old.ndim == 2:
            sizes = torch.linalg.svdvals(new - old)
            assert sizes.max() < 2 * sizes.min()  # Muon's iteration brings them near to each other
        else:
            assert torch.equal(new, other)


@pytest.mark.parametrize("muon", [False, True])
def test_an_optimiser_goes_on_from_what_was_saved(muon):
    model = net()
    optimizer, schedule = optimizer_of(model.parameters(), 1e-2, 0.01, STEPS, muon)
    trained(model, optimizer, schedule, range(4))
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict(), schedule.last_epoch))
    whole = trained(model, optimizer, schedule, range(4, 8))

    again = net()
    again.load_state_dict(kept[0])
    optimizer, schedule = optimizer_of(again.parameters(), 1e-2, 0.01, STEPS, muon)
    optimizer.load_state_dict(kept[1])
    schedule.last_epoch = kept[2]
    resumed = trained(again, optimizer, schedule, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_the_rate_rises_and_falls_for_both_optimisers():
    model = net()
    optimizer, schedule = optimizer_of(model.parameters(), 1e-2, 0.0, STEPS, muon=True)
    rates = []
    for seed in range(STEPS):
        step(loss_of(model, seed), optimizer, schedule)
        rates.append({group["lr"] for group in optimizer.param_groups})
    assert all(len(rate) == 1 for rate in rates)
    assert rates[-1] == {0.0}
    assert max(max(rate) for rate in rates) <= 1e-2
