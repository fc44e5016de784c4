"""What an environment shows: problem, text so far and options, as Gymnasium wants it."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics

from envs.rendering import plain, rendered
from ollm_rl.errors import ConfigurationError
from ollm_rl.rollout.offered import offered

NAME = "ollm_rl/LatentReasoning-v0"


@pytest.fixture
def settings(tiny):
    return {"session": tiny, "max_new_tokens": 6, "num_problems": 10}


def played(env, seed=0):
    """One episode with the last option each time; what was shown, the last reward and infos."""
    env.reset(seed=seed)
    shown, ended = [env.render()], False
    while not ended:
        _, reward, terminated, truncated, info = env.step(offered(env.unwrapped.batch.engine)[-1].latent)
        shown.append(env.render())
        ended = terminated or truncated
    return shown, reward, info


def test_text_shows_what_an_agent_chooses_from(settings):
    env = gymnasium.make(NAME, render_mode="ansi", **settings)
    _, info = env.reset(seed=0)
    engine = env.unwrapped.batch.engine
    offers, shown = offered(engine), env.render()
    assert shown.startswith(f"problem {info['problem_id']}: {info['problem']}\ntext: ")
    assert len(offers) == int(engine.options.mask[0].sum()) > 1
    assert sum(offer.prior for offer in offers) == pytest.approx(1, abs=1e-4)
    lines = shown.split("\n")[-len(offers) :]
    for line, offer in zip(lines, offers, strict=True):
        assert (
            line.startswith(f"{offer.latent:>6}: ") and line.endswith(f" ({offer.prior:.1%})") and line == plain(line)
        )
    env.step(offers[-1].latent)
    assert f"[{offers[-1].latent}]" in env.render()


def test_the_end_shows_the_verdict(settings):
    shown, reward, info = played(gymnasium.make(NAME, render_mode="ansi", **settings))
    assert len(shown) > 2 and all("next, as latent:" in text for text in shown[:-1])
    last = shown[-1].splitlines()[-1]
    assert last.startswith("ended (") and f"reward {reward:g}" in last and "next" not in shown[-1]
    assert info["problem"] in shown[-1]


def test_human_prints_at_every_reset_and_step(settings, capsys):
    shown, *_ = played(gymnasium.make(NAME, render_mode="human", **settings))
    printed = capsys.readouterr().out
    texts, *_ = played(gymnasium.make(NAME, render_mode="ansi", **settings))
    assert shown == [None] * len(texts)
    assert printed == "".join(f"{text}\n\n" for text in texts) and not capsys.readouterr().out


def test_the_batched_one_shows_all(settings, capsys):
    batch = gymnasium.make_vec(NAME, 3, "vector_entry_point", render_mode="ansi", **settings)
    batch.reset(seed=2)
    batch.step(np.zeros(3, int))
    shown = batch.render()
    assert isinstance(shown, tuple) and len(shown) == 3
    assert shown == tuple(rendered(batch.engine, i, e) for i, e in enumerate(batch.episodes))
    assert all(e.problem.problem in text for e, text in zip(batch.episodes, shown, strict=True))
    capsys.readouterr()
    human = gymnasium.make_vec(NAME, 3, "vector_entry_point", render_mode="human", **settings)
    human.reset(seed=2)
    human.step(np.zeros(3, int))
    assert human.render() is None and capsys.readouterr().out.endswith("\n\n".join(shown) + "\n\n")


def test_a_terminal_is_given_nothing_to_obey():
    assert plain("a\x1b[2J\r\x07 é\n") == "a\\x1b[2J\\r\\x07 é\n"


def test_without_a_mode_nothing_is_shown(settings, capsys):
    env = gymnasium.make(NAME, **settings).unwrapped
    env.reset(seed=0)
    assert env.render() is None and not capsys.readouterr().out


def test_gymnasium_is_content(settings):
    for mode in (None, "ansi", "human"):
        env = gymnasium.make(NAME, render_mode=mode, **settings)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            check_env(env.unwrapped)
        assert not [w for w in said if "render" in str(w.message)]


def test_wrappers_of_gymnasium(settings):
    env = RecordEpisodeStatistics(gymnasium.make(NAME, render_mode="ansi", **settings))
    shown, reward, info = played(env)
    assert (info["episode"]["r"], info["episode"]["l"]) == (reward, len(shown) - 1)
    listed = gymnasium.make(NAME, render_mode="ansi_list", **settings)
    listed.reset(seed=0)
    for action in (0, 1):
        listed.step(action)
    frames = listed.render()
    assert len(frames) == 3 and all(frame.startswith("problem ") for frame in frames)


def test_mistakes_are_said(settings):
    with pytest.raises(ConfigurationError, match="render_mode='rgb_array'; expected None, 'ansi' or 'human'"):
        gymnasium.make(NAME, render_mode="rgb_array", **settings)
    env = gymnasium.make(NAME, render_mode="ansi", **settings).unwrapped
    with pytest.raises(ConfigurationError, match=r"render\(\) before reset\(\)"):
        env.render()
