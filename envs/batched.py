"""The natively batched environment: one backbone, n episodes, one forward pass a step."""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike

from envs.rendering import rendered
from ollm_rl.errors import ConfigurationError
from ollm_rl.models.config import BackboneConfig
from ollm_rl.options.enumeration import NO_LATENT
from ollm_rl.rollout.episode import Episode, stop_reason
from ollm_rl.session.local import Session, make_session
from ollm_rl.tasks import Problem
from ollm_rl.tasks.generated import ChainSumConfig

Observation = np.ndarray | dict[str, np.ndarray]  # hidden states, or with their masks beside them


class LatentReasoningVectorEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """`num_envs` episodes at once; action: a latent; reward: 1.0 at the end if the verifier accepts the answer.

    An ended episode starts anew at the next step, whose action is ignored for it (autoreset NEXT_STEP). Problems are
    drawn by each episode's own generator: sub-environment i of `reset(seed=s)` plays what the single
    environment plays after `reset(seed=s + i)`.

    Args:
        backbone, task, plugin, dtype: see `ollm_rl.session.local.make_session`.
        split, num_problems, problem_seed: where problems come from.
        max_new_tokens: the token budget, by default the task's; an episode that spends it is truncated.
        skip_forced: run on through positions where all options decode to one token.
        wait_for: with `skip_forced`, the share of running episodes that a step waits for. Rows that have reached their
            decision point stand idle until it ends; below 1, those still in a forced run are handed out at a forced
            position, where all latents do the same (and the mask leaves one of them).
        action_mask: observe `{"observation", "action_mask"}`; the mask hides duplicates of lower-numbered options.
        session: an open session to share instead of the first three; `close` leaves it open.
        render_mode: `ansi`: `render` gives a text for each episode, with problem, text so far, latents and options; `human`: these are
            printed at every reset and step; None: nothing is rendered.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": ["ansi", "human"], "render_fps": 4}

    def __init__(
        self,
        num_envs: int = 1,
        backbone: str = BackboneConfig.name,
        task: str | dict[str, Any] = ChainSumConfig.name,
        plugin: str | None = None,
        dtype: str = BackboneConfig.dtype,
        split: str = "train",
        num_problems: int = 1000,
        problem_seed: int = 0,
        max_new_tokens: int | None = None,
        skip_forced: bool = True,
        wait_for: float = 1.0,
        action_mask: bool = False,
        render_mode: str | None = None,
        session: Session | None = None,
    ):
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigurationError(f"render_mode={render_mode!r}; expected None, 'ansi' or 'human'")
        self.num_envs, self.render_mode = num_envs, render_mode
        self.session = session or make_session(backbone, task, plugin, dtype)
        self._own_session = session is None
        if not 0 < wait_for <= 1:
            raise ConfigurationError(f"wait_for={wait_for}; expected a share above 0 and at most 1")
        self.skip_forced, self.wait_for, self.action_mask = skip_forced, wait_for, action_mask
        self.problems = self.session.problems(split, num_problems, problem_seed)
        self.prompts = [self.session.prompter.encode(p) for p in self.problems]
        longest = max(map(len, self.prompts))
        budget = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        self.engine = self.session.new_engine(num_slots=num_envs, max_prompt_tokens=longest, **budget)
        self.engine.check_room(longest)
        if self.engine.num_slots < num_envs:
            raise ConfigurationError(
                f"kv_cache_gib={self.engine.kv_cache_gib} holds {self.engine.num_slots} episodes of this task, not "
                f"num_envs={num_envs}; lower num_envs or max_new_tokens, or raise it"
            )
        d, k = self.session.plugin.state_size, self.session.lm.num_options
        hidden = gymnasium.spaces.Box(-np.inf, np.inf, (d,), np.float32)
        self.single_observation_space = hidden
        if action_mask:
            mask = gymnasium.spaces.Box(0, 1, (k,), np.int8)
            self.single_observation_space = gymnasium.spaces.Dict({"observation": hidden, "action_mask": mask})
        self.single_action_space = gymnasium.spaces.Discrete(k)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.episodes: list[Episode] = []
        self.decisions = np.zeros(num_envs, dtype=int)
        self.ended = np.zeros(num_envs, dtype=bool)
        self.generators = [np.random.default_rng() for _ in range(num_envs)]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start all episodes. `options={"problem": i}` (or a list of n) names problems instead of drawing them.

        With `options={"reset_mask": mask}`, a bool array (n,) as in Gymnasium's own vector environments, those alone that it marks: for
        libraries that want the next episode's first observation in the step that ended the last one. Infos are of these rows then.

        Raises:
            ConfigurationError: the mask is of another kind, marks none, or no episode was begun yet.
        """
        if seed is not None:
            seeds = seed if isinstance(seed, list) else [seed + i for i in range(self.num_envs)]
            self.generators = [
                old if s is None else np.random.default_rng(s) for old, s in zip(self.generators, seeds, strict=True)
            ]
        chosen = (options or {}).get("problem")
        named = chosen if isinstance(chosen, list) else [chosen] * self.num_envs
        if (mask := (options or {}).get("reset_mask")) is not None:
            fresh = self._marked(mask)
            self._begin(fresh, named)
        else:
            fresh = list(range(self.num_envs))
            self.episodes = [Episode(self._draw(i, named[i])) for i in fresh]
            self.ended[:] = False
            self.decisions[:] = 0
            self.engine.clear()
            self.engine.admit([self.prompts[int(e.problem.extra["#"])] for e in self.episodes])
        if self.skip_forced:
            self._run_on(fresh, fresh)
        self._print()
        return self._observe(), self._problem_info(fresh)

    def step(self, actions: ArrayLike) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Give every running episode a latent (n,)."""
        actions = np.asarray(actions).reshape(-1)
        k = self.session.lm.num_options
        if len(actions) != self.num_envs or actions.min() < 0 or actions.max() >= k:
            raise ConfigurationError(f"expected {self.num_envs} actions from 0 to {k - 1}, got {actions.tolist()}")
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminated = np.zeros(self.num_envs, dtype=bool)
        truncated = np.zeros(self.num_envs, dtype=bool)
        fresh = np.flatnonzero(self.ended).tolist()
        running = np.flatnonzero(~self.ended).tolist()
        infos: dict[str, Any] = {}
        if fresh:
            self._begin(fresh, [None] * self.num_envs)
            infos = self._problem_info(fresh)
        self._feed(running, actions[running].tolist())
        if self.skip_forced:
            self._run_on([i for i in range(self.num_envs) if not self.episodes[i].stop], fresh)
        done = [i for i in range(self.num_envs) if self.episodes[i].stop]
        for i in done:
            self.ended[i] = True
            truncated[i] = self.episodes[i].truncated
            terminated[i] = not truncated[i]
        self._finish(done, rewards, infos)
        self._print()
        return self._observe(), rewards, terminated, truncated, infos

    def render(self) -> tuple[str, ...] | None:
        """In mode `ansi` what there is to see of every episode, else None: `human` has printed it already.

        Raises:
            ConfigurationError: nothing was begun yet.
        """
        if self.render_mode == "ansi" and not self.episodes:
            raise ConfigurationError("render() before reset(); expected reset() first, which begins the episodes")
        return tuple(self._rendered()) if self.render_mode == "ansi" else None

    def _rendered(self) -> list[str]:
        return [rendered(self.engine, i, episode) for i, episode in enumerate(self.episodes)]

    def _print(self) -> None:
        if self.render_mode == "human":
            print("\n\n".join(self._rendered()), end="\n\n", flush=True)

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes of the verifier, if the session is the environment's own."""
        if self._own_session:
            self.session.close()

    def _marked(self, mask: np.ndarray) -> list[int]:
        """The rows of a `reset_mask`."""
        fits = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,) and mask.any()
        if not fits:
            raise ConfigurationError(
                f"reset_mask={mask!r:.100}; expected a bool array ({self.num_envs},) that marks some rows"
            )
        if not self.episodes:
            raise ConfigurationError(
                "reset_mask before the first reset(); expected reset() without it, which begins all episodes"
            )
        return [int(i) for i in np.flatnonzero(mask)]

    def _begin(self, rows: list[int], named: list[int | None]) -> None:
        """New episodes in these rows."""
        for i in rows:
            self.episodes[i] = Episode(self._draw(i, named[i]))
        self.ended[rows], self.decisions[rows] = False, 0
        prompts = [self.prompts[int(self.episodes[i].problem.extra["#"])] for i in rows]
        self.engine.replace(torch.tensor(rows, device=self.engine.device), prompts)

    def _draw(self, i: int, named: int | None) -> Problem:
        at = int(self.generators[i].integers(len(self.problems))) if named is None else int(named)
        problem = self.problems[at]
        extra = {**problem.extra, "#": at}
        return Problem(problem.id, problem.problem, problem.answer, problem.solution, extra)

    def _feed(self, rows: list[int], latents: list[int]) -> None:
        """One token for each of `rows`; rows whose episode ends are not advanced."""
        if not rows:
            return
        tokens, recorded = self.engine.options.tokens.tolist(), self.engine.options.latents.tolist()
        on, fed = [], []
        for i, z in zip(rows, latents, strict=True):
            episode, token, latent = self.episodes[i], tokens[i][z], recorded[i][z]
            episode.append(token, latent, self.engine.eos_ids, self.engine.max_new_tokens)
            self.decisions[i] += latent != NO_LATENT
            if not episode.stop:
                on.append(i)
                fed.append(token)
        if on:
            device = self.engine.device
            every = len(on) == self.num_envs
            self.engine.advance(torch.tensor(fed, device=device), None if every else torch.tensor(on, device=device))

    def _run_on(self, rows: Sequence[int], fresh: Sequence[int]) -> None:
        """Feed forced tokens until `wait_for` of `rows` stand at a decision point or have ended.

        Those of `fresh` do not end before anybody has seen them: one without a decision waits before its last token.
        """
        waiting = list(rows)
        patience = (1 - self.wait_for) * len(waiting)
        while True:
            deciding, tokens = self.engine.options.decision.tolist(), self.engine.options.tokens[:, 0].tolist()
            waiting = [
                i
                for i in waiting
                if not self.episodes[i].stop and not deciding[i] and not (i in fresh and self._ends(i, tokens[i]))
            ]
            if len(waiting) <= patience:
                return
            self._feed(waiting, [0] * len(waiting))

    def _ends(self, i: int, token: int) -> bool:
        after = len(self.episodes[i].tokens) + 1
        return bool(stop_reason(token, after, self.engine.eos_ids, self.engine.max_new_tokens))

    def _observe(self) -> Observation:
        hidden = self.engine.hidden.float().cpu().numpy().copy()  # the engine writes over its own
        if not self.action_mask:
            return hidden
        return {"observation": hidden, "action_mask": self.engine.options.mask.to(torch.int8).cpu().numpy()}

    def _problem_info(self, rows: Iterable[int]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for i in rows:
            problem = self.episodes[i].problem
            infos = self._add_info(infos, {"problem_id": problem.id, "problem": problem.problem}, i)
        return infos

    def _finish(self, done: list[int], rewards: np.ndarray, infos: dict[str, Any]) -> None:
        ended = [self.episodes[i] for i in done]
        for episode in ended:
            episode.text = self.session.prompter.decode(episode.tokens)
        self.session.judge(
            ended, self.session.prompter
        )  # together: they are judged side by side, or by a reward that takes batches
        for i, episode in zip(done, ended, strict=True):
            rewards[i] = episode.reward
            facts = {
                "problem_id": episode.problem.id,
                "problem": episode.problem.problem,
                "text": episode.text,
                "answer": episode.answer or "",
                "correct": episode.solved,
                "num_tokens": len(episode.tokens),
                "num_decisions": int(self.decisions[i]),
            }
            infos.update(self._add_info(infos, facts, i))
