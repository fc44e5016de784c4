"""RLlib's stock runner on the batched environment, as docs/cluster.md has it."""

import numpy as np

from ollm_rl.session.transport import SentByName


def test_the_stock_runner_steps_the_batched_environment(cluster, tiny, monkeypatch):
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    from envs.batched import LatentReasoningVectorEnv

    monkeypatch.setattr(
        SentByName, "current", tiny
    )  # what the one in the environment's settings becomes when Ray copies them
    settings = {"session": tiny, "max_new_tokens": 6, "num_problems": 20}
    register_env("latent", lambda ctx: LatentReasoningVectorEnv(num_envs=ctx["num_envs"], wait_for=0.75, **settings))
    config = (
        PPOConfig()
        .environment("latent")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8, gym_env_vectorize_mode="vector_entry_point")
        .training(train_batch_size_per_learner=128, minibatch_size=64, num_epochs=1, gamma=1.0)
    )
    algorithm = config.build_algo()
    try:
        sampled = algorithm.train()["env_runners"]
    finally:
        algorithm.stop()
    assert sampled["num_env_steps_sampled"] >= 128
    assert 1 <= sampled["episode_len_mean"] <= 6
    assert np.isfinite(sampled["episode_return_mean"])
