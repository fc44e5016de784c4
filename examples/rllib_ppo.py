"""RLlib's PPO with its stock runner on the batched environment.

    python examples/rllib_ppo.py                    # SmolLM2, sums; greedy accuracy is 0.240 before, as in sb3_ppo.py
    python examples/rllib_ppo.py --backbone tiny --iterations 2 --steps 512 --problems 10     # greedy accuracy 0.000: a random model

Two settings matter, and RLlib does not complain about other ones:

- `batch_mode="truncate_episodes"`. With `complete_episodes` it stops at N finished episodes and drops the rest, so short texts are
  learned from more often than they occur (lengths 3 and 9, half each, arrived as 75% and 25%).
- autoreset NEXT_STEP, which is how the environment comes. With SAME_STEP RLlib loses the first transition of every episode.

`agent=ppo` (`ollm-rl train agent=ppo`) has neither worry: its runner hands over whole episodes of the rollout engine.
"""

import argparse
import logging

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module import RLModuleSpec
from ray.tune.registry import register_env

import ollm_rl as ol
from agents.rllib import LatentModule
from envs.batched import LatentReasoningVectorEnv
from ollm_rl.cluster.pool import start_ray
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.session.transport import make_current


class Learned(ol.Agent):
    """The policy as an agent, to be evaluated as all others."""

    def predict(self, hidden, deterministic=True, mask=None):
        with torch.no_grad():
            return self.policy(hidden, mask).argmax(-1)


def opened(name: str) -> ol.Session:
    """Sums with this backbone. `tiny` is a random model for tests: all of its is short."""
    backbone, task, tiny = ol.load_backbone(name), ol.make_task("chain_sum"), name == "tiny"
    few = {"num_solutions": 60, "num_heldout": 20, "epochs": 1, "prior_epochs": 1, "reader_epochs": 1}
    plugin = ol.convert(backbone, task, **(few if tiny else {}))
    return ol.Session(backbone, plugin, task, engine={"max_new_tokens": 12} if tiny else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--steps", type=int, default=512, help="decisions of an iteration")
    parser.add_argument("--problems", type=int, default=100, help="test problems")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    session = opened(args.backbone)
    plugin = session.plugin
    make_current(session)  # Ray copies the environment's settings; the session in them becomes this one again
    register_env(
        "latent",
        lambda ctx: LatentReasoningVectorEnv(
            num_envs=ctx["num_envs"], session=session, action_mask=True, wait_for=0.75
        ),
    )

    # The module of `agent=ppo`: the prior, and a value head on the same states. RLlib's default would start at random.
    policy = LatentPolicy.from_prior(plugin)
    start = {
        "sizes": {name: getattr(policy, name) for name in LatentPolicy.SIZES},
        "weights": {name: value.numpy() for name, value in policy.state_dict().items()},
        "value_width": 128,
    }
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # its warnings are about its own defaults
    start_ray("local", num_cpus=4)
    config = (
        PPOConfig()
        .environment("latent")
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=32, gym_env_vectorize_mode="vector_entry_point",
            batch_mode="truncate_episodes",
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=LatentModule, model_config=start))
        .training(
            train_batch_size_per_learner=args.steps, minibatch_size=min(128, args.steps), num_epochs=4, lr=1e-4, gamma=1.0,
            lambda_=1.0, use_kl_loss=False, vf_clip_param=10.0,
        )
        .debugging(seed=args.seed, log_level="ERROR")
    )  # fmt: skip
    algorithm = config.build_algo()
    agent = ol.make_agent(Learned, session)
    agent.policy = policy
    before = ol.evaluate(session, agent, num_problems=args.problems, samples=0, name="before").rows[0].accuracy
    episodes = 0
    for iteration in range(1, args.iterations + 1):
        sampled = algorithm.train()["env_runners"]
        episodes += int(sampled.get("num_episodes", 0))
        print(f"{iteration:3}  {episodes:5} episodes  return {sampled.get('episode_return_mean', 0.0):.3f}", flush=True)
    policy.load_state_dict(algorithm.get_module().policy.state_dict())
    after = ol.evaluate(session, agent, num_problems=args.problems, samples=0, name="after").rows[0].accuracy
    print(f"greedy accuracy {before:.3f} before, {after:.3f} after {episodes} episodes (n = {args.problems})")
    algorithm.stop()
    session.close()


if __name__ == "__main__":
    main()
