"""Who is asked for worked solutions: the backbone, a trained agent, or the prior of a plug-in, in this process or on workers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ollm_rl.common.run_dir import PLUGIN, policy_dir
from ollm_rl.errors import CheckpointError
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.policies import LatentPolicy, Sampling, sample_tokens
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import Act, Request
from ollm_rl.session.base import BaseSession
from ollm_rl.session.loading import load_agent
from ollm_rl.session.saving import read_description
from ollm_rl.tasks import Problem

NO_OPTIONS = PlugInConfig(
    num_options=2, encoder_width=8, decoder_width=8, prior_width=8, reader_depth=0, shortlist=2
)  # of a session that is asked for tokens only
# A session in which the model with these options is: a plug-in, the sizes of a new one, or the directory of one.
Opens = Callable[[PlugIn | PlugInConfig | str], BaseSession]


class Plain:
    """The backbone's own distribution over tokens at a temperature, as the engine asks for it."""

    def __init__(self, temperature: float):
        self.temperature = temperature

    @torch.inference_mode()
    def __call__(self, hidden: Tensor, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        return sample_tokens(logits / self.temperature, uniforms)


@dataclass
class Sampler:
    """Who is asked for texts.

    Attributes:
        name: for the log. key: what its texts depend on.
        home: the session that was opened for it. session: where it acts, which may have another model.
        request: the episode by which it answers.
    """

    name: str
    key: list[Any]
    home: BaseSession
    session: BaseSession
    act: Act
    from_logits: bool = False
    request: Callable[[Problem, int], Request] = Request

    def __call__(self, asked: Sequence[tuple[Problem, int]]) -> list[Episode]:
        requests = [self.request(problem, seed) for problem, seed in asked]
        return self.session.rollout(requests, self.act, keep_hidden=False, from_logits=self.from_logits)


@contextmanager
def sampler_of(open_with: Opens, plugin: PlugIn | None, config: ConversionConfig) -> Iterator[Sampler]:
    """Who samples in the first round, or in one after it, where there is a plug-in of what was found."""
    where = config.sampled_by
    if plugin is not None:
        with _opened(open_with, plugin) as session:
            prior = Sampling(LatentPolicy.from_prior(session.plugin))
            yield Sampler("the prior of what was found so far", ["prior", plugin.digest()], session, session, prior)
    elif where is None:
        with _opened(open_with, NO_OPTIONS) as session:
            key = ["backbone", config.sampling_temperature]
            yield Sampler("the backbone", key, session, session, Plain(config.sampling_temperature), True)
    else:
        folder = policy_dir(where)
        known = read_description(folder) if folder.is_dir() else None
        if known is None or known.get(PLUGIN) is None:
            raise CheckpointError(
                f"convert.sampled_by={where} holds no agent with its plug-in; expected the directory that a run or agent.save wrote, such as "
                "runs/<name>/policy"
            )
        with _opened(open_with, str(known[PLUGIN])) as session:
            agent = load_agent(where, session)
            files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json"))
            key = ["agent", *(p.read_bytes() for p in files)]
            acting = agent.acting_session or session
            yield Sampler(
                where,
                key,
                session,
                acting,
                PolicyAdapter(agent, False),
                agent.acts_on_logits,
                partial(agent.request, deterministic=False),
            )


@contextmanager
def _opened(open_with: Opens, plugin: PlugIn | PlugInConfig | str) -> Iterator[BaseSession]:
    session = open_with(plugin)
    try:
        yield session
    finally:
        if session.lm is None:  # one in this process has its judge from others, who still need it
            session.close()
