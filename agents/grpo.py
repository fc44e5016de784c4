"""GRPO on latents: group-relative policy optimisation with TRL's names, on stored hidden states.

One iteration: sample `num_generations` episodes of each of `problems_per_iteration` problems, give every episode the
advantage over its group, and take a few small steps on the decision points. The backbone does not run in
an update. Where the loss follows TRL's `GRPOTrainer` it is the same formula over decisions instead of tokens.

Only positions where the prior is in doubt count (`min_entropy`), at all others KL(pi0 || pi) holds the policy (`forward_kl`), steps are
small and stop once the policy has moved `target_kl` nats away from the one that sampled, and duplicates of an option are masked.
With `pass_at_k` above 1 the reward of an episode is its share in the pass@k of its group: best of 8 is kept, but the greedy accuracy
goes up and down, for the more of a group are right, the less it learns (`docs/log.md` has the figures).
"""

import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.async_sampler import AsyncGroupSampler
from agents.base import PolicyAgent
from agents.checks import check_episodes
from agents.config import GRPOConfig
from agents.objective import decision_weights, group_advantages, grpo_loss, pass_at_k_rewards
from ollm_rl.common.finite import check_finite, descend
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import Run, policy_dir
from ollm_rl.options.policies import Sampling
from ollm_rl.rollout.episode import Decisions, Episode
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.callbacks import Callbacks
from ollm_rl.session.local import Session


class GRPO(PolicyAgent):
    """Group-relative policy optimisation of pi(z | h). Its settings are those of `GRPOConfig`."""

    label = "grpo"  # of its progress bar
    learns_from_rewards = trains_on = True
    prior: Any = None  # the policy that learning starts from, and is kept near to

    config_class = GRPOConfig
    config: GRPOConfig

    def __init__(self, session: Session, **settings: Any):
        super().__init__(session, **settings)
        self.start()
        if self.config.path is not None:
            self.load(policy_dir(self.config.path))
        self.counters: dict[str, Any] = {"iteration": 0, "train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}

    def learn_from(self, policy: Any) -> None:
        """Go on with this policy, and a new optimiser."""
        self.policy = policy
        self.optimizer = torch.optim.Adam(policy.learned(), lr=self.config.learning_rate)

    def load(self, path: str | Path) -> None:
        super().load(path)
        self.learn_from(self.policy)

    def start(self) -> None:
        """Begin with the plug-in's prior."""
        self.learn_from(self.new_policy())
        self.prior = deepcopy(self.policy).requires_grad_(False)

    def rollout(self, requests: list[Request]) -> list[Episode]:
        """Episodes of the policy as it is, with what `decisions` needs."""
        return self.session.rollout(requests, Sampling(self.policy))

    def decisions(self, episodes: list[Episode]) -> Decisions:
        """What is learned from."""
        return Decisions.of(episodes)

    def prepare(self, run: Run) -> None:
        """There are problems to train on: said before anything is evaluated."""
        self.session.problems("train", self.config.num_problems, self.session.seed)

    def _learn(self, run: Run, callbacks: Callbacks) -> dict:
        self._resume(run)
        problems = self.session.problems("train", self.config.num_problems, self.session.seed)
        per_iteration = self.config.problems_per_iteration * self.config.num_generations
        counters, groups = self.counters, min(self.config.problems_per_iteration, len(problems))
        ahead: AsyncGroupSampler | None = None
        if self.session.max_staleness:
            ahead = AsyncGroupSampler(
                self.session, problems, groups, self.config.num_generations, counters.get("drawn", 0)
            )
        with track(self.label, self.config.total_episodes, "episodes", counters["train_episodes"]) as bar:
            while counters["train_episodes"] < self.config.total_episodes:
                start = time.monotonic()
                counters["iteration"] += 1
                if ahead is None:
                    episodes, lag = self._sample(problems, counters["iteration"]), dict[str, Any]()
                else:
                    episodes, lag = self._take(ahead)
                check_episodes(episodes)
                sampled = time.monotonic()
                figures = lag | self._update(episodes, counters["iteration"])
                counters["train_episodes"] += len(episodes)
                counters["train_tokens"] += sum(len(e.tokens) for e in episodes)
                counters["train_seconds"] += time.monotonic() - start
                figures |= {"time/rollout_s": sampled - start, "time/update_s": time.monotonic() - sampled}
                figures |= self.session.metrics()
                step = counters["iteration"]
                metrics = {**counters, **describe(episodes, self.config.num_generations), **figures}
                wanted = callbacks.on_iteration_end(self, step, metrics)
                run.log_metrics(step, metrics)
                run.save_rollouts(f"train_{step}", episodes)
                last = counters["train_episodes"] >= self.config.total_episodes
                if step % self.config.save_every == 0 or last or not wanted:
                    run.save_checkpoint(step, self._write_checkpoint)
                bar.advance(per_iteration, f"reward {np.mean([e.reward for e in episodes]):.3f}")
                if not wanted:
                    break
        if ahead is not None:
            ahead.session.drop()
        return {k: v for k, v in counters.items() if k.startswith("train_")}

    def _take(self, ahead: AsyncGroupSampler) -> tuple[list[Episode], dict]:
        """Groups that were sampled while earlier ones were learned from."""
        start, left = time.monotonic(), self.config.total_episodes - self.counters["train_episodes"]
        updates = -(-left // (ahead.groups * self.config.num_generations))
        version = self.counters["iteration"] - 1
        episodes, lag = ahead.take(version, lambda: Sampling(deepcopy(self.policy)), updates * ahead.groups)
        self.counters["drawn"] = ahead.drawn
        waited = time.monotonic() - start
        return episodes, {"staleness": lag, "dropped_episodes": ahead.dropped, "time/learner_idle_s": waited}

    def _sample(self, problems: list, iteration: int) -> list[Episode]:
        """Groups of episodes. All randomness follows from the seed and the iteration, so resuming needs no state."""
        draw = np.random.default_rng((self.session.seed, iteration))
        size = min(self.config.problems_per_iteration, len(problems))
        chosen = draw.choice(len(problems), size, replace=False)
        seeds = draw.integers(2**31, size=(size, self.config.num_generations))
        requests = [Request(problems[p], int(s)) for p, row in zip(chosen, seeds, strict=True) for s in row]
        return self.rollout(requests)

    def _update(self, episodes: list[Episode], iteration: int) -> dict:
        """A few small steps; figures for the log."""
        judged = torch.tensor([e.judged for e in episodes]).view(-1, self.config.num_generations)
        rewards = torch.tensor([e.reward for e in episodes]).view_as(judged)
        # An episode without a verdict is as good as the others of its group, and nothing is learned from it.
        usual = (rewards * judged).sum(1, keepdim=True) / judged.sum(1, keepdim=True).clamp_min(1)
        credit = pass_at_k_rewards(torch.where(judged, rewards, usual), self.config.pass_at_k)
        advantages = group_advantages(credit, self.config.scale_rewards) * judged
        advantages = advantages.flatten().to(self.session.backbone.device)
        deciding = [e for e in episodes if e.num_kept]
        if not deciding:
            return {"num_decisions": 0}
        data = self.decisions(deciding)
        advantage = advantages[[i for i, e in enumerate(episodes) if e.num_kept]][data.owner]
        with torch.no_grad():
            prior = _in_parts(self.prior, data)
            counts = (-(prior.exp() * prior).sum(-1) > self.config.min_entropy).float() * data.weight
        shuffle = torch.Generator().manual_seed(self.session.seed * 1_000_003 + iteration)
        # Minibatches hold whole episodes, and only decisions that carry a gradient.
        per_minibatch = float(counts.sum()) / self.config.minibatches
        useful = (counts > 0) & (advantage != 0) if self.config.beta == 0 else counts > 0
        # Where the prior is sure nothing is learned from rewards, so nothing there would undo what is learned elsewhere and is wrong there.
        sure = (counts == 0) & (data.weight > 0) if self.config.forward_kl else torch.zeros_like(useful)
        kls, clipped, stopped = [], [], 0
        for _ in range(self.config.num_iterations):
            order = torch.randperm(len(deciding), generator=shuffle).to(data.owner.device)
            for part in order.tensor_split(self.config.minibatches):
                mine = torch.isin(data.owner, part).nonzero()[:, 0]
                weights = decision_weights(
                    data.owner[mine],
                    counts[mine],
                    self.config.loss_type,
                    self.config.max_decisions,
                    len(part),
                    per_minibatch,
                )[useful[mine]]
                rows, held = mine[useful[mine]], mine[sure[mine]]
                if not len(rows):
                    continue
                both = torch.cat([rows, held])
                log_probs, of_held = self.policy(data.hidden[both], data.mask[both]).split([len(rows), len(held)])
                new = log_probs.gather(1, data.z[rows, None])[:, 0]
                reference = prior[rows].gather(1, data.z[rows, None])[:, 0]
                old = data.log_probs[rows]
                losses = grpo_loss(
                    new,
                    old,
                    advantage[rows],
                    self.config.epsilon,
                    self.config.clip_high,
                    reference if self.config.beta else None,
                    self.config.beta,
                    self.config.use_bias_correction_kl,
                )
                with torch.no_grad():
                    ratio = (new - old).exp()
                    kls.append(float((ratio - 1 - (new - old)).mean()))
                    clipped.append(
                        float(((ratio < 1 - self.config.epsilon) | (ratio > 1 + self.config.clip_high)).float().mean())
                    )
                if self.config.target_kl and kls[-1] > self.config.target_kl:
                    stopped = 1
                    break
                away = (prior[held].exp() * (prior[held] - of_held)).sum(-1) * data.weight[held]
                kept = self.config.forward_kl * away.sum() / data.weight[held].sum().clamp_min(1)
                descend(self.optimizer, (losses * weights).sum() + kept, max_norm=1.0)
            if stopped:
                break
        with torch.no_grad():
            now = _in_parts(self.policy, data)
            check_finite("what the policy says", now)
            in_doubt = counts > 0
            doubts = max(1, int(in_doubt.sum()))  # nobody may be in doubt
            from_prior = (now.exp() * (now - prior)).sum(-1)[in_doubt].sum() / doubts
            entropy = -(now.exp() * now).sum(-1)[in_doubt].sum() / doubts
            held = (now.argmax(-1) == prior.argmax(-1))[~in_doubt]
        return {
            "num_decisions": len(data),
            "decisions_in_doubt": float(in_doubt.float().mean()),
            "entropy": float(entropy),
            "kl_from_prior": float(from_prior),
            "agrees_where_prior_is_sure": float(held.float().mean()) if len(held) else 1.0,
            "approx_kl": float(np.mean(kls)) if kls else 0.0,
            "clip_ratio": float(np.mean(clipped)) if clipped else 0.0,
            "stopped_early": stopped,
        }

    def _write_checkpoint(self, path: Path) -> None:
        self.save(path, plugin=False)
        torch.save(self.optimizer.state_dict(), path / "optimizer.pt")
        (path / "counters.json").write_text(json.dumps(self.counters))

    def _resume(self, run: Run) -> None:
        """Continue from the run's last checkpoint: weights, optimiser and counters; random numbers follow from them."""
        latest = run.latest_checkpoint()
        run.truncate_metrics(latest[0] if latest else 0)
        if latest is None:
            return
        path = Path(latest[1])
        self.load(path)
        self.optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))
        self.counters = json.loads((path / "counters.json").read_text())


def _in_parts(policy: Any, data: Decisions, rows: int = 2048) -> Tensor:
    """Log-probabilities of all decisions, some at a time: what lies between can be much larger than they are."""
    return torch.cat([policy(h, m) for h, m in zip(data.hidden.split(rows), data.mask.split(rows), strict=True)])


def describe(episodes: list[Episode], group: int) -> dict:
    """Figures of an iteration's episodes, under TRL's names where it has one."""
    rewards = np.array([e.reward for e in episodes]).reshape(-1, group)
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(1).mean()),
        f"pass_at_{group}": float(rewards.max(1).mean()),
        "frac_reward_zero_std": float((rewards.std(1) == 0).mean()),
        "completions/mean_length": float(np.mean([len(e.tokens) for e in episodes])),
        "completions/clipped_ratio": float(np.mean([e.truncated for e in episodes])),
        "decisions/mean": float(np.mean([e.num_decisions for e in episodes])),
        "no_answer_rate": float(np.mean([e.answer is None for e in episodes])),
        "unjudged_rate": float(np.mean([not e.judged for e in episodes])),
        **parts_of(episodes),
    }


def parts_of(episodes: list[Episode]) -> dict[str, float]:
    """Mean and deviation of each of several rewards, over the episodes that it gave a number."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for e in episodes for name in e.parts):
        values = [e.parts[name] for e in episodes if name in e.parts]
        found |= {f"rewards/{name}/mean": float(np.mean(values)), f"rewards/{name}/std": float(np.std(values))}
    return found
