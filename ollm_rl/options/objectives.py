"""What phase 1 of a conversion minimises: who is responsible for a gold token decides what the options become.

With CE_z the cross-entropy of option z on the gold token x, q(z | h, x) the encoder and pi0(z | h) the prior:

* `expected` (the paper's loss without its sampling): sum_z q(z) CE_z, exactly, over all K options.
* `em`: the same with the exact posterior, proportional to pi0(z) p_z(x), in place of the encoder, which imitates it.
* `gumbel`: the cross-entropy of one option, drawn from q by straight-through Gumbel-softmax (Jang et al. 2017,
  arXiv 1611.01144); encoder and decoder learn through the draw, as in the paper.
* `cover` (ours): if some options already decode to the gold token, q is a share `hard_assignment` of the *canonical* option,
  the lowest-numbered that does, and otherwise the posterior. If none does, the duplicate that is closest is recruited:
  an option that decodes to what a lower-numbered one gives anyway, so nothing is lost by moving it. Option 0 also
  learns every gold token (weight `first_option_weight`): it becomes the best single guess, and the others its alternatives.

The first three hold KL(q || uniform) at a target (the paper's is 0.2 nats) by a `KLController`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ollm_rl.options.config import ConversionConfig
from ollm_rl.options.modules import canonical


@dataclass
class Positions:
    """A batch of n positions, as an objective sees it.

    Attributes:
        logits_of: biases (n, M, d) to logits (n, M, S) float32 on the positions' shortlists.
        biases: (n, K, d), the decoder's.
        target: (n,), the place of the gold token in the shortlist.
        log_prior, log_q: (n, K), log-probabilities of prior and encoder.
    """

    logits_of: Callable[[Tensor], Tensor]
    biases: Tensor
    target: Tensor
    log_prior: Tensor
    log_q: Tensor

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """-log p(x) of each option: (n, M, S) -> (n, M)."""
        target = self.target[:, None, None].expand(-1, logits.shape[1], 1)
        return -logits.log_softmax(-1).gather(2, target)[..., 0]


@dataclass
class KLController:
    """The weight of KL(q || uniform), moved so that the KL stays at a target (augmented Lagrangian of the constraint).

    Below zero it pushes the KL up, where the encoder would use less than it may. No target: the weight stays zero.

    Attributes:
        target: in nats; None for no constraint.
        rate: change of the multiplier per step and nat of error. The part of the weight that follows the error at once,
            which keeps the multiplier from swinging, is 20 times that.
    """

    target: float | None
    rate: float
    multiplier: float = 0.0
    weight: float = 0.0

    def update(self, kl: float) -> None:
        if self.target is not None:
            error = kl - self.target
            self.multiplier = min(max(self.multiplier + self.rate * error, -0.5), 10.0)
            self.weight = min(max(self.multiplier + 20 * self.rate * error, -0.5), 10.0)


def kl_to_uniform(log_q: Tensor) -> Tensor:
    """KL(q || uniform) in nats: (n, K) -> (n,)."""
    return (log_q.exp() * log_q).sum(-1) + math.log(log_q.shape[-1])


def expected(at: Positions, config: ConversionConfig, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """See the module's text. Returns the loss, q's mean KL to the uniform distribution, and the options' logits."""
    logits = at.logits_of(at.biases)
    kl = kl_to_uniform(at.log_q).mean()
    loss = (at.log_q.exp() * at.cross_entropy(logits)).sum(-1).mean() + weight * kl
    return loss + _imitation(at.log_q.detach().exp(), at.log_prior), kl, logits


def em(at: Positions, config: ConversionConfig, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """See the module's text; with a KL weight w the best q is the posterior to the power 1 / (1 + w)."""
    logits = at.logits_of(at.biases)
    ce = at.cross_entropy(logits)
    log_q = ((at.log_prior - ce).detach() / (1 + weight)).log_softmax(-1)
    loss = (log_q.exp() * ce).sum(-1).mean()
    return loss + _imitation(log_q.exp(), at.log_prior, at.log_q), kl_to_uniform(log_q).mean(), logits


def gumbel(at: Positions, config: ConversionConfig, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """See the module's text."""
    draw = F.gumbel_softmax(at.log_q, config.temperature, hard=True)
    drawn = at.logits_of((draw[..., None] * at.biases).sum(1, keepdim=True))
    kl = kl_to_uniform(at.log_q).mean()
    loss = at.cross_entropy(drawn).mean() + weight * kl
    with torch.no_grad():
        logits = at.logits_of(at.biases)
    return loss + _imitation(at.log_q.detach().exp(), at.log_prior), kl, logits


def cover(at: Positions, config: ConversionConfig, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """See the module's text."""
    logits = at.logits_of(at.biases)
    ce = at.cross_entropy(logits)
    with torch.no_grad():
        hit = logits.argmax(-1) == at.target[:, None]
        covered = hit.any(-1)
        # A duplicate costs nothing to move; among those, the closest one that the prior needs least.
        cost = ce + 100.0 * canonical(logits.argmax(-1)) + 10.0 * at.log_prior.exp()
        latent = torch.where(covered, hit.float().argmax(-1), cost.argmin(-1))
        hard = F.one_hot(latent, logits.shape[1]).float()
        soft = config.hard_assignment * hard + (1 - config.hard_assignment) * (at.log_prior - ce).softmax(-1)
        q = torch.where(covered[:, None], soft, hard)
    loss = ((q * ce).sum(-1) + config.first_option_weight * ce[:, 0]).mean() + _imitation(hard, at.log_prior, at.log_q)
    return loss, kl_to_uniform(q.clamp_min(1e-9).log()).mean(), logits


def _imitation(q: Tensor, *students: Tensor) -> Tensor:
    """Mean cross-entropy of the students' log-probabilities (n, K) under q."""
    return sum((-(q * student).sum(-1).mean() for student in students), torch.zeros((), device=q.device))


Objective = Callable[[Positions, ConversionConfig, float], tuple[Tensor, Tensor, Tensor]]
OBJECTIVES: dict[str, Objective] = {"cover": cover, "expected": expected, "em": em, "gumbel": gumbel}
