"""Conversations in the terminal: what is said is what the engine says, and its decisions are shown."""

import io
import math

import pytest
import torch
from rich.console import Console

import ollm_rl as ol
from ollm_rl.cli.app import main
from ollm_rl.errors import ConfigurationError
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.serving.chat import Conversation, talk
from ollm_rl.serving.export import export, exported


@pytest.fixture(scope="module")
def agent(tiny):
    session = ol.Session(tiny.backbone, tiny.plugin, ol.make_task("chain_sum"), engine={"max_new_tokens": 12})
    agent = ol.make_agent("grpo", session)
    with torch.no_grad():
        agent.policy.net[-1].bias[1] += 2.0
    return agent


@pytest.fixture
def conversation(agent):
    return Conversation(*exported(agent))


def lines(conversation, said, latents=False):
    console, left = Console(file=io.StringIO(), width=200), iter(said)

    def ask():
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    talk(conversation, latents, console, ask)
    return console.file.getvalue()


def test_it_answers_as_the_engine_does_and_tells_the_decisions(agent, conversation):
    problem = agent.session.problems("test", 1)[0]
    [episode] = agent.session.rollout([agent.request(problem, 0, True)], PolicyAdapter(agent, True))
    assert "".join(conversation.answer(problem.problem)) == episode.text
    assert conversation.turns[1]["content"] == episode.text and conversation.tokens == episode.tokens
    decided = {i: z for i, z in enumerate(episode.latents) if z >= 0}
    assert {
        d.position: next(z for z, token, _ in d.options if token == d.said) for d in conversation.decisions
    } == decided
    for found in conversation.decisions:
        assert sum(math.exp(p) for _, _, p in found.options) == pytest.approx(1, abs=1e-4)
        assert found.options[0][2] == max(p for _, _, p in found.options)


def test_turns_go_on_until_it_begins_anew(conversation):
    text = lines(conversation, ["1 + 1 = ?", "", "and 2 + 2 = ?", "/nothing", "/quit", "never"])
    assert [t["role"] for t in conversation.turns] == ["user", "assistant"] * 2
    assert text.count("/latents shows") == 2  # at the beginning, and for a command that there is not
    lines(conversation, ["/new"])
    assert conversation.turns == []


def test_latents_on_demand(conversation):
    silent = lines(conversation, ["1 + 1 = ?"])
    conversation.new()
    shown = lines(conversation, ["/latents", "1 + 1 = ?"])
    assert len(conversation.decisions) == shown.count(" | ") > 0 == silent.count(" | ")


def test_sampled_answers_follow_the_seed(agent):
    parts = exported(agent)
    said = ["".join(Conversation(*parts, temperature=1.0, seed=seed).answer("1 + 1 = ?")) for seed in (0, 0, 1, 2, 3)]
    assert said[0] == said[1] and len(set(said)) > 1


def test_what_is_too_long_is_said_and_nothing_is_lost(conversation, monkeypatch):
    list(conversation.answer("1 + 1 = ?"))
    limit = conversation.model._backbone[0].context_limit[0]
    if limit is None:
        monkeypatch.setattr(conversation.model._backbone[0], "context_limit", (50, "max_position_embeddings"))
    with pytest.raises(ConfigurationError, match="/new begins anew"):
        list(conversation.answer("1 + " * (limit or 50)))
    assert len(conversation.turns) == 2
    assert "/new begins anew" in lines(conversation, ["1 + " * (limit or 50)])


def test_from_the_command_line(agent, tmp_path, capsys, monkeypatch):
    agent.save(tmp_path / "policy")
    export(agent, tmp_path / "out")
    export(agent, tmp_path / "mixture", kind="mixture")
    found = []
    for place in ("policy", "out", "mixture"):
        monkeypatch.setattr("sys.stdin", io.StringIO("1 + 1 = ?\n"))
        main(["chat", f"policy={tmp_path / place}", "latents=true", "max_new_tokens=6"])
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] and " | " in found[0]
    assert "nothing to show" in found[2]
    with pytest.raises(SystemExit) as ended:
        main(["chat"])
    assert ended.value.code == 2
