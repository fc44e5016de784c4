"""The objective of GRPO: from the rewards of groups to the loss of a minibatch of decisions.

With one decision a token these are the formulas of TRL's `GRPOTrainer`, to which `tests/agents/test_trl_parity.py` compares
them; the names are its names.
"""

import math

import torch
from torch import Tensor


def pass_at_k_rewards(rewards: Tensor, k: int) -> Tensor:
    """Each episode's share in pass@k: the mean, over all k episodes of its group that include it, of their best reward.

    Minus their mean they are, up to a factor, unbiased policy-gradient weights of the expected best of k (Walder and
    Karkhanis 2025, "Pass@K Policy Optimization"). k = 1 gives the rewards themselves. The larger k is, the less an
    episode earns for being right where the others are right as well.

    Args:
        rewards: (P, G), G episodes of each of P problems; any real numbers.
    """
    group = rewards.shape[1]
    ascending, order = rewards.sort(1)
    # Of the C(G - 1, k - 1) sets that include the episode of rank i, rank j is the best of weights[i, j].
    weights = rewards.new_zeros(group, group)
    for i in range(group):
        weights[i, i] = math.comb(i, k - 1)
        for j in range(i + 1, group):
            weights[i, j] = math.comb(j - 1, k - 2) if k > 1 else 0
    weights /= math.comb(group - 1, k - 1)
    return torch.empty_like(rewards).scatter_(1, order, ascending @ weights.T)


def group_advantages(rewards: Tensor, scale_rewards: str) -> Tensor:
    """Rewards minus their group's mean, divided by a standard deviation (DeepSeekMath, eq. 3).

    Args:
        rewards: (P, G), G episodes of each of P problems.
        scale_rewards: `group` divides by the group's deviation, `batch` by that of all, `none` not at all.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale_rewards == "none":
        return centred
    std = rewards.std(1, keepdim=True) if scale_rewards == "group" else rewards.std()
    return centred / (std + 1e-4)


def grpo_loss(
    new: Tensor,
    old: Tensor,
    advantage: Tensor,
    epsilon: float,
    epsilon_high: float,
    reference: Tensor | None = None,
    beta: float = 0.0,
    use_bias_correction_kl: bool = False,
) -> Tensor:
    """The clipped surrogate of each decision, plus beta times the k3 estimate of the KL to the reference: (N,).

    Args:
        use_bias_correction_kl: times the probability ratio, which makes its gradient that of the reverse KL without bias
            (DeepSeek-V3.2).
    """
    ratio = (new - old).exp()
    surrogate = torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantage)
    if reference is None or beta == 0:
        return -surrogate
    gap = reference - new
    kl = gap.exp() - gap - 1
    return -surrogate + beta * (kl * ratio if use_bias_correction_kl else kl)


def decision_weights(
    owner: Tensor, counts: Tensor, loss_type: str, max_decisions: int, episodes: int, per_minibatch: float
) -> Tensor:
    """Weights (N,) whose sum with the losses is TRL's reduction of `loss_type` over a minibatch.

    `grpo`: mean over each episode's decisions that count, then over episodes (DeepSeekMath, eq. 3). `bnpo`: mean over all of
    them. `dapo`: their sum, divided by how many a minibatch has on average (Yu et al. 2025, "DAPO", eq. 8). `dr_grpo`: their sum
    divided by episodes times `max_decisions`, a constant (Liu et al. 2025, "Understanding R1-Zero-Like Training").

    Args:
        owner: (N,) the episode of each decision. counts: (N,) 1.0 where it counts, else 0.0.
        episodes: in the minibatch. per_minibatch: decisions that count, in an average minibatch.
    """
    if loss_type == "grpo":
        per_episode = counts.new_zeros(int(owner.max()) + 1).index_add_(0, owner, counts)
        return counts / per_episode.clamp_min(1)[owner] / episodes
    if loss_type == "dr_grpo":
        return counts / (episodes * max_decisions)
    return counts / max(float(counts.sum()) if loss_type == "bnpo" else per_minibatch, 1.0)
