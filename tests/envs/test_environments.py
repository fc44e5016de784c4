"""The environments through the Gymnasium API only."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs  # noqa: F401  (registers the environments)
from ollm_rl.errors import ConfigurationError
from ollm_rl.session.local import Session

NAME = "ollm_rl/LatentReasoning-v0"


@pytest.fixture
def settings(tiny):
    return {"session": tiny, "max_new_tokens": 10, "num_problems": 40}


@pytest.mark.parametrize("action_mask", [False, True])
@pytest.mark.parametrize("skip_forced", [False, True])
def test_checkers_pass(settings, action_mask, skip_forced):
    env = gymnasium.make(NAME, action_mask=action_mask, skip_forced=skip_forced, **settings).unwrapped
    check_env(env)
    sb3_check_env(env)


def play(env, seed, latents):
    observation, info = env.reset(seed=seed)
    seen = [observation]
    for z in latents:
        observation, reward, terminated, truncated, info = env.step(int(z))
        seen.append(observation)
        if terminated or truncated:
            return np.array(seen), reward, info
    raise AssertionError("the episode did not end")


def test_single_and_batched_give_the_same_episodes(settings):
    n, latents = 10, np.random.default_rng(0).integers(10, size=(10, 40))
    batch = gymnasium.make_vec(NAME, num_envs=n, vectorization_mode="vector_entry_point", **settings)
    observation, _ = batch.reset(seed=7)
    seen, ended = [[o] for o in observation], {}
    for t in range(40):
        observation, rewards, terminated, truncated, infos = batch.step(latents[:, t])
        for i in set(range(n)) - set(ended):
            seen[i].append(observation[i])
            if terminated[i] or truncated[i]:
                ended[i] = (rewards[i], {k: v[i] for k, v in infos.items() if not k.startswith("_")})
    assert len(ended) == n
    single = gymnasium.make(NAME, **settings)
    for i in range(n):
        observations, reward, info = play(single, 7 + i, latents[i])
        np.testing.assert_allclose(observations, np.array(seen[i]), atol=1e-4)
        assert reward == ended[i][0]
        assert info == {k: ended[i][1][k] for k in info}
        assert set(info) >= {"text", "answer", "correct", "num_tokens", "num_decisions", "problem_id"}


def test_an_ended_episode_starts_anew_at_the_next_step(settings):
    batch = gymnasium.make_vec(NAME, num_envs=3, vectorization_mode="vector_entry_point", **settings)
    assert batch.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP
    batch.reset(seed=1)
    was_done, episodes = np.zeros(3, bool), 0
    for _ in range(60):
        _, rewards, terminated, truncated, infos = batch.step(np.zeros(3, int))
        assert not rewards[was_done].any()
        episodes += int(was_done.sum())
        was_done = terminated | truncated
    assert episodes > 3


def test_rows_begin_anew_by_a_mask_where_a_library_wants_that(settings):
    """The episodes are those of NEXT_STEP, one step earlier; the other rows do not notice."""

    def texts(by_mask):
        batch = gymnasium.make_vec(NAME, num_envs=3, vectorization_mode="vector_entry_point", **settings)
        observation, _ = batch.reset(seed=1)
        found = [[] for _ in range(3)]
        for _ in range(60):
            observation, _, terminated, truncated, infos = batch.step(observation[:, 0] < 0)  # latents 0 and 1
            done = terminated | truncated
            for i in np.flatnonzero(done):
                found[i].append((infos["problem_id"][i], infos["text"][i]))
            if by_mask and done.any():
                before = observation.copy()
                observation, infos = batch.reset(options={"reset_mask": done})
                assert (observation[~done] == before[~done]).all()
                assert set(np.flatnonzero(infos["_problem"])) == set(np.flatnonzero(done))
        return found

    plain, masked = texts(False), texts(True)
    assert sum(map(len, masked)) > sum(map(len, plain))  # no step is spent on beginning anew
    for once, again in zip(plain, masked, strict=True):
        assert len(once) > 2 and again[: len(once)] == once


@pytest.mark.parametrize("mask", [np.zeros(3, bool), np.ones(3), [True, False, False], np.ones(2, bool)])
def test_a_mask_of_another_kind_is_refused(settings, mask):
    batch = gymnasium.make_vec(NAME, num_envs=3, vectorization_mode="vector_entry_point", **settings)
    with pytest.raises(ConfigurationError, match="before the first reset"):
        batch.reset(options={"reset_mask": np.ones(3, bool)})
    batch.reset(seed=1)
    with pytest.raises(ConfigurationError, match="expected a bool array \\(3,\\)"):
        batch.reset(options={"reset_mask": mask})


@pytest.fixture
def agreeing(tiny):
    """Options that often agree: random ones seldom do."""
    plugin = copy.deepcopy(tiny.plugin)
    with torch.no_grad():
        plugin.decoder.scale *= 0.03
        plugin.decoder.shift *= 0.03
    return Session(tiny.backbone, plugin, tiny.task, engine=tiny.engine_settings)


def test_not_waiting_for_all_gives_the_same_texts(settings, agreeing):
    """Handed out at forced positions too, with one latent left: the same tokens and decisions, in more steps."""
    settings["session"] = agreeing

    def first_episodes(**waiting):
        batch = gymnasium.make_vec(NAME, 12, "vector_entry_point", action_mask=True, **settings, **waiting)
        observation, _ = batch.reset(seed=3)
        ended, single = {}, 0
        while len(ended) < 12:
            mask = observation["action_mask"]
            single += int((mask.sum(1) == 1).sum())
            last = mask.shape[1] - 1 - mask[:, ::-1].argmax(1)  # the last latent that the mask leaves
            observation, _, terminated, truncated, infos = batch.step(last)
            for i in set(np.flatnonzero(terminated | truncated)) - set(ended):
                ended[i] = infos["text"][i], infos["num_decisions"][i]
        return ended, single

    texts, none = first_episodes()
    same, some = first_episodes(wait_for=0.5)
    assert same == texts
    assert none < some  # rows that have ended may show one
    assert any(decisions > 1 for _, decisions in texts.values())


def test_an_episode_without_a_decision_is_seen_before_it_ends(settings, agreeing):
    agreeing.plugin.decoder.zero_()
    settings["session"] = agreeing
    batch = gymnasium.make_vec(NAME, 4, "vector_entry_point", **settings)
    for step in range(6):
        if step % 2 == 0:
            batch.reset(seed=step) if step == 0 else batch.step(np.zeros(4, int))
        else:
            _, _, terminated, truncated, infos = batch.step(np.zeros(4, int))
            assert (terminated | truncated).all()
            assert (infos["num_decisions"] == 0).all()
            assert (infos["num_tokens"] <= 10).all()


def test_wait_for_is_checked(settings):
    with pytest.raises(ConfigurationError, match="wait_for=0"):
        gymnasium.make_vec(NAME, 2, "vector_entry_point", wait_for=0, **settings)


def test_closing_ends_the_verifier_of_an_environment_that_opened_it(own_cache, monkeypatch, tiny):
    import envs.batched

    def opened(*_):
        return Session(tiny.backbone, tiny.plugin, tiny.task, engine=dict(tiny.engine_settings))

    monkeypatch.setattr(envs.batched, "make_session", opened)
    env = gymnasium.make(NAME, backbone="tiny")
    session = env.unwrapped.batch.session
    assert session.judge.reward.verifier.check("x+1", r"\boxed{1+x}").correct
    server = session.judge.reward.verifier._pool._server.process
    env.close()
    assert server.poll() is not None
    shared = gymnasium.make(NAME, session=tiny)
    assert tiny.judge.reward.verifier.check("x+1", r"\boxed{1+x}").correct
    shared.close()
    assert tiny.judge.reward.verifier._pool._server.alive  # others may judge with it


def test_episodes_that_end_together_are_judged_together(settings, tiny, monkeypatch):
    judged = []
    judge = tiny.judge
    monkeypatch.setattr(
        tiny, "judge", lambda episodes, prompter: (judged.append(len(episodes)), judge(episodes, prompter))
    )
    batch = gymnasium.make_vec(
        NAME,
        num_envs=6,
        vectorization_mode="vector_entry_point",
        **{**settings, "skip_forced": False, "max_new_tokens": 3},
    )
    batch.reset(seed=0)
    for _ in range(3):
        *_, terminated, truncated, infos = batch.step([0] * 6)
    assert (terminated | truncated).any()
    assert max(judged) == (terminated | truncated).sum() and "correct" in infos


def test_a_text_that_the_backbone_cannot_read_is_refused_at_once(settings, tiny, monkeypatch):
    monkeypatch.setattr(tiny.backbone, "context_limit", (60, "max_position_embeddings"))
    with pytest.raises(
        ConfigurationError, match=r"more than the 60 positions of backbone 'tiny' \(max_position_embeddings\)"
    ):
        gymnasium.make(NAME, **settings)
