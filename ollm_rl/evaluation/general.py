"""Whether anything else got worse: texts that have nothing to do with any task, read with an agent and with the untouched backbone.

The texts (`general.txt`) were written for this.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ollm_rl.evaluation.metrics import bootstrap
from ollm_rl.evaluation.records import General
from ollm_rl.models.attention import KVCache
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.next_token import by_mixture
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.session.agent import Agent
from ollm_rl.session.local import Session, shared_backbone

Scores = Callable[
    [list[int]], tuple[Tensor, Tensor]
]  # (t, V) log-probabilities after each token, (t,) the greedy tokens


@cache
def general_texts() -> list[str]:
    """English prose of many kinds, a paragraph each."""
    text = (resources.files("ollm_rl") / "evaluation" / "general.txt").read_text(encoding="utf-8")
    return [paragraph.replace("\n", " ") for paragraph in text.strip().split("\n\n")]


@torch.inference_mode()
def general(session: Session, agent: Agent, num_texts: int) -> General | None:
    """What an agent makes of general texts, beside the backbone without adapter and options.

    A latent policy's distribution is the mixture of the options, weighted by the policy, which gives every token some probability. None
    for an agent that says nothing of texts that are not its own.
    """
    scores = scores_of(session, agent)
    if scores is None:
        return None
    mine = session.backbone
    plain = mine
    if mine.adapter is not None:
        plain = shared_backbone(mine.name, str(mine.dtype).removeprefix("torch."), str(mine.device), mine.revision)
    nats, losses, own, same, n = [], [], [], [], 0
    for text in general_texts()[:num_texts]:
        tokens: list[int] = mine.tokenizer(text)["input_ids"]
        theirs, first = backbone_scores(plain, tokens)
        found, greedy = scores(tokens)
        gold = torch.tensor(tokens[1:], device=found.device)
        here, there = found[:-1], theirs[:-1]
        nats.append(float((there.exp() * (there - here)).sum(-1).mean()))
        losses.append(float(F.nll_loss(here, gold)))
        own.append(float(F.nll_loss(there, gold)))
        same.append(float((greedy[:-1] == first[:-1]).float().mean()))
        n += len(tokens) - 1
    changes = [mine_ - theirs_ for mine_, theirs_ in zip(losses, own, strict=True)]
    return General(
        n_texts=len(nats), n_tokens=n, kl=float(np.mean(nats)), loss=float(np.mean(losses)), backbone_loss=float(np.mean(own)),
        loss_change_ci95=bootstrap(np.array(changes)).ci95, same_token=float(np.mean(same)), changes=changes,
    )  # fmt: skip


def scores_of(session: Session, agent: Agent) -> Scores | None:
    """How an agent's log-probabilities of texts are had; None if they cannot be."""
    if callable(own := getattr(agent, "scores", None)):
        return lambda tokens: _with_greedy(own(tokens))
    if agent.acts_on_logits or type(agent.policy) is not LatentPolicy or session.lm is None:
        return None
    lm, policy = session.lm, agent.policy
    return lambda tokens: mixture_scores(lm, policy, tokens)


@torch.inference_mode()
def backbone_scores(backbone: Backbone, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (t, V) float32 after each token of a text, and the likeliest tokens (t,)."""
    [states] = backbone.texts([tokens], KVCache(1, len(tokens), None))
    return _with_greedy(backbone.logits(states).float().log_softmax(-1))


@torch.inference_mode()
def mixture_scores(lm: OptionLM, policy: LatentPolicy, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """log sum_z pi(z | h) p(x | h, z), (t, V) float32, and the tokens (t,) that the policy's likeliest latents say."""
    backbone = lm.backbone
    [states] = backbone.texts([tokens], KVCache(1, len(tokens), None), reader=lm.reader)
    found = lm.options(states)
    chosen = policy(states, found.mask).argmax(-1)
    return by_mixture(backbone, lm.plugin, states, policy), found.tokens.gather(1, chosen[:, None])[:, 0]


def _with_greedy(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    return log_probs, log_probs.argmax(-1)
