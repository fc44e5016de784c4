"""A learned verifier for an agent: sampled texts on training problems, their verdicts, and what is learned from them."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ollm_rl.common.progress import track
from ollm_rl.errors import ConfigurationError
from ollm_rl.options.config import ValueConfig
from ollm_rl.options.value import Value, fit_value
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.agent import Agent
from ollm_rl.session.base import BaseSession

log = logging.getLogger(__name__)
TOGETHER = 512  # texts between two looks at the bar


def learn_value(session: BaseSession, agent: Agent, config: ValueConfig | None = None, seed: int = 0) -> Value:
    """Learn a verifier from what an agent's sampled texts on problems of split `train` are worth, never from `tune` or `test`.

    >>> value = ol.learn_value(session, agent)
    >>> result = ol.evaluate(session, agent, value=value, samples=16)
    >>> value.save_pretrained("runs/notebook/policy")

    Raises:
        ConfigurationError: the agent acts on logits: there is no session that keeps its states.
        DataError: all texts are right, or all are wrong.
    """
    config = config or ValueConfig()
    if agent.acts_on_logits:
        raise ConfigurationError(
            f"value.enabled: {type(agent).__name__} chooses tokens, not latents; expected an agent with a latent policy"
        )
    problems = session.problems("train", config.num_problems, seed)
    seeds = np.random.default_rng((seed, 3)).integers(2**31, size=(len(problems), config.samples)).tolist()
    requests = [agent.request(p, s, False) for p, mine in zip(problems, seeds, strict=True) for s in mine]
    episodes: list[Episode] = []
    begun: list[Tensor] = []  # for each text
    with track("texts for the verifier", len(requests), "episodes") as bar:
        for at in range(0, len(requests), TOGETHER):
            asked = requests[at : at + TOGETHER]
            part = session.rollout(asked, PolicyAdapter(agent, False), keep_hidden=config.beginnings > 0, bar=bar)
            episodes += part
            if config.beginnings:
                for episode in part:
                    begun.append(episode.beginnings(config.beginnings))
                    episode.hidden = None  # of thousands of texts they would not fit
    owner = torch.arange(len(problems)).repeat_interleave(config.samples)
    judged = torch.tensor([e.judged for e in episodes])
    features = torch.stack([e.features for e in episodes])[judged]
    solved = torch.tensor([e.solved for e in episodes])[judged].to(features.device)
    value, found = fit_value(features, solved, owner[judged].to(features.device), config, seed)
    log.info(
        "learned verifier: %d texts, %.3f of them right; loss %.3f on problems held out (%.3f by the mean alone), epoch %d",
        len(features), float(solved.float().mean()), found["loss"], found["base"], found["epoch"],
    )  # fmt: skip
    counts = torch.tensor([len(each) for each in begun])[judged] if begun else torch.zeros(0)
    if counts.sum():
        rows = torch.cat([b for b, known in zip(begun, judged.tolist(), strict=True) if known and len(b)])
        each = counts.to(features.device)
        owners = owner[judged].to(features.device).repeat_interleave(each)
        value.beginnings, found = fit_value(rows, solved.repeat_interleave(each), owners, config, seed)
        log.info(
            "of %d beginnings: loss %.3f on problems held out (%.3f by the mean alone), epoch %d",
            len(rows), found["loss"], found["base"], found["epoch"],
        )  # fmt: skip
    return value


def give_values(value: Value, episodes: Sequence[Episode]) -> None:
    """Say of every episode how likely it is to be right (`Episode.value`); it looks at no verdict."""
    if not episodes:
        return
    with torch.inference_mode():
        found = value(torch.stack([e.features for e in episodes]))
    for episode, likely in zip(episodes, found.tolist(), strict=True):
        episode.value = likely
