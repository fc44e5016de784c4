"""PPO in one file, as CleanRL writes it: no trainer, no callbacks, every line of the update in sight.

    python examples/cleanrl_ppo.py                  # SmolLM2, sums: greedy accuracy 0.240 before, 0.870 after 563 episodes
    python examples/cleanrl_ppo.py --backbone tiny --iterations 2 --problems 10

What differs from CleanRL's `ppo.py`: the policy starts as the plug-in's prior; the observation is a hidden state with a mask of options that
say the same token as another; one row begins its next episode by `reset_mask`, so that no step is spent on it.
"""

import argparse
import time

import numpy as np
import torch
from torch.distributions import Categorical

import ollm_rl as ol
from envs.batched import LatentReasoningVectorEnv
from ollm_rl.options.policies import Critic, LatentPolicy


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--num-steps", type=int, default=16, help="decisions of each episode row in an iteration")
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--problems", type=int, default=100, help="test problems")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def seen(observation: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """State (n, d) and mask (n, K)."""
    return torch.from_numpy(observation["observation"]), torch.from_numpy(observation["action_mask"]).bool()


class Learned(ol.Agent):
    """The policy as an agent, to be evaluated as all others."""

    def predict(self, hidden, deterministic=True, mask=None):
        log_probs = self.policy(hidden, mask)
        return log_probs.argmax(-1) if deterministic else Categorical(logits=log_probs).sample()


def opened(name: str) -> ol.Session:
    """Sums with this backbone. `tiny` is a random model for tests: all of its is short."""
    backbone, task, tiny = ol.load_backbone(name), ol.make_task("chain_sum"), name == "tiny"
    few = {"num_solutions": 60, "num_heldout": 20, "epochs": 1, "prior_epochs": 1, "reader_epochs": 1}
    plugin = ol.convert(backbone, task, **(few if tiny else {}))
    return ol.Session(backbone, plugin, task, engine={"max_new_tokens": 12} if tiny else None)


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    session = opened(args.backbone)
    plugin = session.plugin
    env = LatentReasoningVectorEnv(num_envs=args.num_envs, session=session, action_mask=True)

    policy, critic = LatentPolicy.from_prior(plugin), Critic.beside(plugin, 128)
    optimizer = torch.optim.Adam([*policy.net.parameters(), *critic.net.parameters()], lr=args.learning_rate, eps=1e-5)
    agent = ol.make_agent(Learned, session)
    agent.policy = policy
    before = ol.evaluate(session, agent, num_problems=args.problems, samples=0, name="before").rows[0].accuracy

    T, N, d, k = args.num_steps, args.num_envs, plugin.state_size, plugin.num_options
    hidden, masks = torch.zeros(T, N, d), torch.zeros(T, N, k, dtype=torch.bool)
    actions, log_probs = torch.zeros(T, N, dtype=torch.long), torch.zeros(T, N)
    rewards, dones, values = torch.zeros(T, N), torch.zeros(T, N), torch.zeros(T, N)
    observation, _ = env.reset(seed=args.seed)
    episodes, start = 0, time.monotonic()
    for iteration in range(1, args.iterations + 1):
        solved = []
        for t in range(T):
            hidden[t], masks[t] = seen(observation)
            with torch.no_grad():
                choice = Categorical(logits=policy(hidden[t], masks[t]))
                actions[t] = choice.sample()
                log_probs[t], values[t] = choice.log_prob(actions[t]), critic(hidden[t])
            observation, reward, terminated, truncated, infos = env.step(actions[t].numpy())
            done = terminated | truncated
            rewards[t], dones[t] = torch.from_numpy(reward), torch.from_numpy(done)
            if done.any():
                solved += infos["correct"][done].tolist()
                observation, _ = env.reset(options={"reset_mask": done})
        episodes += len(solved)

        # Returns without discount, bootstrapped where an episode goes on after the last step (lambda = gamma = 1).
        with torch.no_grad():
            following = critic(seen(observation)[0])
        returns = torch.zeros_like(rewards)
        for t in reversed(range(T)):
            following = rewards[t] + (1 - dones[t]) * following
            returns[t] = following
        advantages = returns - values
        h, m, a = hidden.reshape(-1, d), masks.reshape(-1, k), actions.flatten()
        old, wanted, advantage = log_probs.flatten(), returns.flatten(), advantages.flatten()
        for _ in range(args.epochs):
            for rows in torch.randperm(T * N).chunk(args.minibatches):
                ratio = (policy(h[rows], m[rows]).gather(1, a[rows, None])[:, 0] - old[rows]).exp()
                normal = (advantage[rows] - advantage[rows].mean()) / (advantage[rows].std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                policy_loss = -torch.min(normal * ratio, normal * clipped).mean()
                value_loss = 0.5 * (critic(h[rows]) - wanted[rows]).square().mean()
                optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss).backward()
                torch.nn.utils.clip_grad_norm_([*policy.net.parameters(), *critic.net.parameters()], 0.5)
                optimizer.step()
        print(
            f"{iteration:3}  {episodes:5} episodes  solved {np.mean(solved or [0]):.3f}  {time.monotonic() - start:.0f} s",
            flush=True,
        )

    after = ol.evaluate(session, agent, num_problems=args.problems, samples=0, name="after").rows[0].accuracy
    print(f"greedy accuracy {before:.3f} before, {after:.3f} after {episodes} episodes (n = {args.problems})")
    session.close()


if __name__ == "__main__":
    main()
