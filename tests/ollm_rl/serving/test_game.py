"""A person's game is the engine's episode: the same choices give the same text, and undoing gives the same choices again."""

import copy

import pytest
import torch

import ollm_rl as ol
from ollm_rl.errors import ConfigurationError, OLLMError
from ollm_rl.options.policies import LatentPolicy, Sampling
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.sampler import Request
from ollm_rl.serving.config import PlayConfig
from ollm_rl.serving.game import POLICY, PRIOR, SEARCH, YOU, Game
from ollm_rl.session.local import Session

CONFIG = PlayConfig(num_problems=4, search_budget=60)


@pytest.fixture(scope="module")
def session(tiny):
    """Options that agree at some positions: random ones seldom do."""
    plugin = copy.deepcopy(tiny.plugin)
    with torch.no_grad():
        plugin.decoder.scale *= 0.1
        plugin.decoder.shift *= 0.1
    return Session(tiny.backbone, plugin, tiny.task, engine=tiny.engine_settings)


@pytest.fixture(scope="module")
def agent(session):
    agent = ol.make_agent("grpo", session)
    with torch.no_grad():
        agent.policy.net[-1].bias[4] += 3.0
    return agent


@pytest.fixture
def game(session, agent):
    return Game(session, agent, CONFIG)


def greedy(game, name):
    """The session's own episode of the same problem."""
    act = (
        PolicyAdapter(game.agent, True)
        if name == POLICY
        else Sampling(LatentPolicy.from_prior(game.session.plugin), True)
    )
    [episode] = game.session.rollout([Request(game.problem)], act)
    return episode


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("name", [PRIOR, POLICY])
def test_taking_what_a_policy_takes_gives_its_episode(game, name, index):
    game.new(index=index)
    expected = greedy(game, name)
    while not (state := game.state())["ended"]:
        offered = {option["latent"]: option for option in state["options"]}
        taken = offered[state[f"{name}_takes"]]
        assert taken[name] == max(option[name] for option in state["options"])
        assert sum(option[name] for option in state["options"]) == pytest.approx(1, abs=1e-4)
        assert len(offered) == len(state["options"]) > 1
        game.choose(taken["latent"])
    assert (game.episode.tokens, game.episode.latents) == (expected.tokens, expected.latents)
    ended = state["ended"]
    assert (ended["text"], ended["stop"], ended["verdict"]) == (expected.text, expected.stop, expected.verdict)
    assert (ended["answer"], ended["reward"], ended["solved"]) == (expected.answer, expected.reward, expected.solved)
    chosen = [token for token in state["tokens"] if token["by"]]
    assert {token["by"] for token in chosen} == {YOU} and all(token["latent"] >= 0 for token in chosen)
    assert all(token["latent"] == -1 for token in state["tokens"] if not token["by"])
    assert len(chosen) == state["num_choices"] == expected.num_decisions < len(expected.tokens)


def without_turn(state):
    return {key: value for key, value in state.items() if key != "turn"}


def test_undo_gives_the_same_choices_again(game):
    seen = [game.state()]
    while not seen[-1]["ended"]:
        game.choose(seen[-1]["options"][-1]["latent"])
        seen.append(game.state())
    assert len(seen) > 2
    for before in seen[-2::-1]:
        game.undo()
        assert without_turn(game.state()) == without_turn(before)  # to the last bit of every probability
    with pytest.raises(ConfigurationError, match="nothing to undo"):
        game.undo()
    for then in seen[1:]:
        game.choose(game.state()["options"][-1]["latent"])
        assert without_turn(game.state()) == without_turn(then)
    assert game.state()["turn"] > seen[-1]["turn"]


@pytest.mark.parametrize("name", [PRIOR, POLICY])
def test_finish_is_the_rollout_from_here(game, name):
    game.choose(game.state()["options"][-1]["latent"])
    here, opening = game.state(), tuple(game.episode.tokens)
    act = (
        PolicyAdapter(game.agent, True)
        if name == POLICY
        else Sampling(LatentPolicy.from_prior(game.session.plugin), True)
    )
    [expected] = game.session.rollout([Request(game.problem, opening=opening)], act)
    game.finish(name)
    state = game.state()
    assert game.episode.tokens == expected.tokens and state["ended"]["verdict"] == expected.verdict
    assert {token["by"] for token in state["tokens"][len(opening) :]} <= {name, ""}
    game.undo()
    assert without_turn(game.state()) == without_turn(here)


def test_a_search_goes_on_from_here_to_a_right_text(game, session, monkeypatch):
    """With an odd number of tokens as what is right, which some continuation has."""

    def judge(episodes, prompter=None):
        for episode in episodes:
            episode.reward, episode.judged = float(len(episode.tokens) % 2 == 0 and episode.stop == "length"), True

    monkeypatch.setattr(session, "judge", judge)
    game.choose(game.state()["options"][-1]["latent"])
    here = game.state()
    opening = list(game.episode.tokens)
    game.search()
    state = game.state()
    assert state["searched"]["found"] and state["searched"]["by"] == POLICY and state["searched"]["texts"] >= 1
    assert 0 < state["searched"]["tokens"] <= 60
    assert state["ended"]["solved"] and game.episode.tokens[: len(opening)] == opening
    assert len(game.episode.tokens) == len(game.episode.latents) == len(state["tokens"])
    assert {token["by"] for token in state["tokens"][len(opening) :]} <= {SEARCH, ""}
    game.undo()
    assert without_turn(game.state()) == without_turn(here)
    monkeypatch.setattr(session, "judge", lambda episodes, prompter=None: None)
    game.search(30)
    assert without_turn(game.state()) == without_turn(here) | {"searched": game.searched}
    assert not game.searched["found"] and game.searched["tokens"] == game.searched["budget"] == 30


def test_new_problems_come_in_turn(game, session):
    problems = session.problems("test", 4)
    assert game.problem == problems[0]
    for expected in [*problems[1:], problems[0]]:
        game.new()
        assert game.problem == expected and not game.state()["can_undo"]
    game.new("train", 2)
    assert game.problem == session.problems("train", 4)[2] and game.state()["split"] == "train"
    game.new()
    assert game.state()["index"] == 3


def test_without_a_policy_there_is_the_prior(session):
    game = Game(session, config=CONFIG)
    state = game.state()
    assert state["policy"] is None and state["policy_takes"] is None
    assert all(option["policy"] is None for option in state["options"])
    game.search(20)
    assert game.state()["searched"]["by"] == PRIOR
    if game.decision is not None:
        with pytest.raises(ConfigurationError, match="expected one of prior .give policy="):
            game.finish(POLICY)


def test_an_agent_without_probabilities_is_played_with(session):
    game = Game(session, ol.make_agent("random", session), CONFIG)
    state = game.state()
    assert state["policy"] == "Random" and state["policy_takes"] in [option["latent"] for option in state["options"]]
    assert all(option["policy"] is None for option in state["options"])


def test_a_policy_that_sees_the_last_tokens_is_shown_them(session):
    agent = ol.make_agent("local", session)
    with torch.no_grad():
        agent.policy.change[-1].weight.normal_()
    game = Game(session, agent, CONFIG)
    expected = greedy(game, POLICY)
    game.finish(POLICY)
    assert game.episode.tokens == expected.tokens


def test_mistakes_are_said(game, session):
    offered = [option["latent"] for option in game.state()["options"]]
    for wrong in (-1, 99, None, "0", True, 1.5, [0]):
        with pytest.raises(OLLMError, match="is not offered here; expected one of"):
            game.choose(wrong)
    assert [option["latent"] for option in game.state()["options"]] == offered
    for index in (-1, 4):
        with pytest.raises(ConfigurationError, match="expected 0 to 3"):
            game.new(index=index)
    with pytest.raises(ConfigurationError, match="play.split=tests; expected one of"):
        game.new("tests")
    with pytest.raises(ConfigurationError, match="play.search_budget=0"):
        game.search(0)
    game.finish(PRIOR)
    for act in (lambda: game.choose(offered[0]), lambda: game.finish(PRIOR), game.search):
        with pytest.raises(ConfigurationError, match="the text has ended"):
            act()


def test_an_agent_over_tokens_is_refused(session):
    with pytest.raises(ConfigurationError, match="chooses tokens, and play shows options"):
        Game(session, ol.make_agent("shortlist_head", session), CONFIG)
