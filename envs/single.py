"""The environment of one episode: the batched one with n = 1."""

from typing import Any

import gymnasium
import numpy as np

from envs.batched import LatentReasoningVectorEnv, Observation


class LatentReasoningEnv(gymnasium.Env[Observation, int]):
    """One problem an episode; the arguments are those of `LatentReasoningVectorEnv` without `num_envs`."""

    metadata = {name: LatentReasoningVectorEnv.metadata[name] for name in ("render_modes", "render_fps")}

    def __init__(self, render_mode: str | None = None, **settings: Any):
        self.render_mode = render_mode
        self.batch = LatentReasoningVectorEnv(num_envs=1, render_mode=render_mode, **settings)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.batch.generators = [self.np_random]  # the stream of default_rng(seed), as in the batched one
        observation, infos = self.batch.reset(options=options)
        return self._first(observation), _only(infos)

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, rewards, terminated, truncated, infos = self.batch.step(np.array([action]))
        return self._first(observation), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _only(infos)

    def render(self) -> str | None:  # type: ignore[override]
        """In mode `ansi` problem, text so far with latents, and options; else None: `human` prints that at every reset and step."""
        every = self.batch.render()
        return None if every is None else every[0]

    def close(self) -> None:
        self.batch.close()

    def _first(self, observation: Observation) -> Observation:
        if isinstance(observation, dict):
            return {name: value[0] for name, value in observation.items()}
        first: np.ndarray = observation[0]
        return first


def _only(infos: dict[str, Any]) -> dict[str, Any]:
    """The infos of sub-environment 0 as plain values."""
    plain = {name: value[0] for name, value in infos.items() if not name.startswith("_")}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in plain.items()}
