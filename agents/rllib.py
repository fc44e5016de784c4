"""The three parts that RLlib's new API stack takes from us: where episodes come from, what learns, and by which loss.

RLlib's own runner steps environments one token at a time, and in its batch mode for whole episodes keeps short ones more
often than long ones. This one hands over whole episodes of the rollout engine instead.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import ray
import torch
from gymnasium.vector.utils import batch_space
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.target_network_api import TargetNetworkAPI
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.models.torch.torch_distributions import TorchCategorical
from ray.rllib.utils.metrics import SAMPLE_TIMER, WEIGHTS_SEQ_NO
from torch import Tensor

from agents.checks import check_episodes
from ollm_rl.errors import TrainingError
from ollm_rl.options.policies import Critic, LatentPolicy, Sampling
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.local import Session

BARREN = 10  # samples in a row without a decision to learn from
PRIOR = "prior_log_probs"  # column of the training batch


def spaces(session: Session) -> tuple[gymnasium.spaces.Dict, gymnasium.spaces.Discrete]:
    """What a decision is seen by, and what can be chosen."""
    d, k = session.plugin.state_size, session.plugin.num_options
    hidden = gymnasium.spaces.Box(-np.inf, np.inf, (d,), np.float32)
    mask = gymnasium.spaces.Box(0, 1, (k,), np.int8)
    return gymnasium.spaces.Dict({"observation": hidden, "action_mask": mask}), gymnasium.spaces.Discrete(k)


class LatentModule(TorchRLModule, ValueFunctionAPI, TargetNetworkAPI):
    """A latent policy that starts as the prior, and a value head on the same hidden states.

    `model_config`: `sizes` of the `LatentPolicy`, `weights` to start from (arrays), `value_width`.
    """

    def setup(self) -> None:
        config: Any = self.model_config
        self.policy = LatentPolicy(**config["sizes"])
        self.policy.load_state_dict({k: torch.from_numpy(v) for k, v in config["weights"].items()})
        self.critic = Critic(config["sizes"]["hidden_size"], config["value_width"])
        self.critic.standardize.load_state_dict(self.policy.standardize.state_dict())
        self.action_dist_cls = TorchCategorical

    def _forward(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        seen = batch[Columns.OBS]
        return {Columns.ACTION_DIST_INPUTS: self.policy(seen["observation"], seen["action_mask"] > 0)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        return self.critic(batch[Columns.OBS]["observation"])

    def make_target_networks(self) -> None:  # of APPO
        config: Any = self.model_config
        self.target = LatentPolicy(**config["sizes"]).requires_grad_(False)
        self.target.load_state_dict(self.policy.state_dict())
        self.target.to(self.policy.standardize.mean.device)  # the learner has moved the rest already

    def get_target_network_pairs(self) -> list:
        return [(self.policy, self.target)]

    def forward_target(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        seen = batch[Columns.OBS]
        return {Columns.ACTION_DIST_INPUTS: self.target(seen["observation"], seen["action_mask"] > 0)}


class PriorKLLearner(PPOTorchLearner):
    """RLlib's PPO loss plus `beta` times the KL of the policy to the prior, over all K latents."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        now = fwd_out[Columns.ACTION_DIST_INPUTS]
        kl = (now.exp() * (now - batch[PRIOR])).sum(-1)
        mask = batch[Columns.LOSS_MASK]
        kl = kl[mask].mean()
        self.metrics.log_value((module_id, "kl_from_prior"), kl.item(), window=1)
        return loss + config.learner_config_dict["beta"] * kl


class Errors:
    """An actor that keeps the first error of all runners: RLlib only says that one was lost."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, text: str) -> None:
        self.text = self.text or text

    def first(self) -> str:
        return self.text


class EpisodeRunner(SingleAgentEnvRunner):
    """Whole episodes of the rollout engine as RLlib's `SingleAgentEpisode`s.

    `env_config`: `open`, a function that gives the session; `episodes`, how many a call of `sample` makes; `together`,
    how many of them have the same problem; `problems`, the size of the training set; `min_entropy`: decisions of which the prior is surer (nats) are left to the policy,
    but not learned from; `seed`; `errors`, an actor of `Errors`, or None.
    """

    session: Any = None  # none where RLlib's driver has a runner that samples nothing
    env: Any
    module: Any

    def make_env(self) -> None:
        config = self.config.env_config
        make: Callable[[], Session] = config["open"]
        with self._reported():
            self.session = make()
        seen, chosen = spaces(self.session)
        # The connectors around it look at spaces only.
        self.env = SimpleNamespace(
            single_observation_space=seen, single_action_space=chosen, num_envs=1, close=lambda: None,
            observation_space=batch_space(seen, 1), action_space=batch_space(chosen, 1),
        )  # fmt: skip
        self.env.unwrapped = self.env
        self.num_envs = 1
        self.problems = self.session.problems("train", config["problems"], config["seed"])
        self.prior = LatentPolicy.from_prior(self.session.plugin)
        self.begin(0)

    def make_module(self) -> None:
        super().make_module()
        if self.session is not None:
            self.module.to(self.session.backbone.device)  # RLlib's place is its learner's; here the engine asks it

    def begin(self, iteration: int) -> None:
        """What is sampled follows from the seed, the runner and the iteration, so that a resumed run samples the same."""
        self.iteration, self.calls, self.barren = iteration, 0, 0

    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[SingleAgentEpisode]:
        with self._reported():
            return self._sample(num_episodes)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            if (errors := self.config.env_config["errors"]) is not None:
                ray.get(errors.add.remote(traceback.format_exc()))
            raise

    def _sample(self, num_episodes: int | None) -> list[SingleAgentEpisode]:
        config = self.config.env_config
        n = num_episodes or config["episodes"]
        draw = np.random.default_rng((config["seed"], self.worker_index or 0, self.iteration, self.calls))
        self.calls += 1
        chosen = draw.integers(len(self.problems), size=n).repeat(config["together"])[:n]
        requests = [
            Request(self.problems[p], int(s)) for p, s in zip(chosen, draw.integers(2**31, size=n), strict=True)
        ]
        self.metrics.log_value(WEIGHTS_SEQ_NO, self._weights_seq_no, window=1)
        with self.metrics.log_time(SAMPLE_TIMER):
            episodes = self.session.rollout(requests, Sampling(self.module.policy))
        check_episodes(episodes)
        found = [e for e in map(self._convert, episodes) if e is not None]
        self.barren = 0 if found else self.barren + 1
        if self.barren >= BARREN:  # RLlib would ask for more, for ever
            raise TrainingError(
                f"{BARREN * n} episodes without a decision to learn from: the options never differ, or the prior is always surer "
                f"than agent.min_entropy={config['min_entropy']}. Lower that, or convert with other settings."
            )
        self._done_episodes_for_metrics += found
        steps = sum(map(len, found))
        self.num_env_steps_sampled_lifetime += steps
        self._increase_sampled_metrics(steps, n)
        figures = {
            "episodes": (n, "sum"), "tokens": (sum(len(e.tokens) for e in episodes), "sum"),
            "solved": (sum(e.reward for e in episodes), "sum"),
            "no_answer": (sum(e.answer is None for e in episodes), "sum"),
            "truncated": (sum(e.truncated for e in episodes), "sum"),
            "unjudged": (sum(not e.judged for e in episodes), "sum"),
        }  # fmt: skip
        for part in dict.fromkeys(name for e in episodes for name in e.parts):  # of a reward of several, each of them
            values = [e.parts[part] for e in episodes if part in e.parts]
            for moment in range(3):
                figures[f"part{moment}_{part}"] = sum(v**moment for v in values), "sum"
        for name, (value, reduce) in figures.items():
            self.metrics.log_value(f"ollm_{name}", value, reduce=reduce)
        return found

    def _convert(self, episode: Episode) -> SingleAgentEpisode | None:
        """None for an episode without a decision to learn from, or without a verdict."""
        if not episode.judged or episode.hidden is None or episode.mask is None or episode.z is None:
            return None
        with torch.no_grad():
            prior = self.prior(episode.hidden, episode.mask)
            policy = self.module.policy(episode.hidden, episode.mask)
        entropy = -(prior.exp() * prior).sum(-1)
        learned = (entropy > self.config.env_config["min_entropy"]).nonzero()[:, 0].cpu()
        if not len(learned):
            return None
        hidden = episode.hidden[learned].float().cpu().numpy()
        mask, z = episode.mask[learned].to(torch.int8).cpu().numpy(), episode.z[learned].cpu().numpy()
        seen = [{"observation": h, "action_mask": m} for h, m in zip(hidden, mask, strict=True)]
        rewards: list[SupportsFloat] = [*[0.0] * (len(learned) - 1), episode.reward]
        policy = policy[learned]
        logp = policy.gather(1, episode.z[learned].to(policy.device)[:, None])[:, 0]
        made = SingleAgentEpisode(
            observations=[*seen, seen[-1]],  # the end of a text has no state, and needs none: no reward follows
            actions=list(z), rewards=rewards, terminated=True, len_lookback_buffer=0,
            observation_space=self.env.single_observation_space, action_space=self.env.single_action_space,
            extra_model_outputs={
                Columns.ACTION_DIST_INPUTS: list(policy.cpu().numpy()), Columns.ACTION_LOGP: list(logp.cpu().numpy()),
                PRIOR: list(prior[learned].cpu().numpy()), WEIGHTS_SEQ_NO: [self._weights_seq_no] * len(z),
            },
        )  # fmt: skip
        return made.to_numpy()

    def stop(self) -> None:
        """The session is closed by whoever opened it, or ends with the process."""
