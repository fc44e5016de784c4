"""What `ollm-rl inspect` shows is what the engine would do."""

import pytest
import torch
from markupsafe import escape
from safetensors.torch import load_file, save_file

import ollm_rl as ol
from ollm_rl.cli.app import main
from ollm_rl.config.compose import compose
from ollm_rl.evaluation.inspection import inspect_problems, inspect_prompt, latent_meanings
from ollm_rl.options.hidden_cache import compute_hidden_states
from ollm_rl.report.inspection_page import write_inspection
from ollm_rl.report.pages import visible
from tests.conftest import QUICK_KEYS


@pytest.fixture(scope="module")
def problems(tiny):
    return tiny.task.problems("tune", 12, 0)


@pytest.fixture(scope="module")
def positions(tiny, problems):
    return inspect_problems(tiny, problems)


def test_positions_are_those_of_the_option_lm(tiny, problems, positions):
    """Against hidden states that were computed in one pass, without the engine."""
    states = compute_hidden_states(tiny.backbone, tiny.prompter, problems, 48, tiny.lm.reader)
    options = tiny.lm.options(states.hidden)
    flat = [p for solution in positions for p in solution]
    assert [p.token for p in flat] == states.gold.tolist()
    for row, p in enumerate(flat):
        first: dict[int, int] = {}
        for z, token in enumerate(options.tokens[row].tolist()):
            first.setdefault(token, z)
        assert {token: z for z, token, _, _ in p.options} == first
        assert sum(probability for *_, probability in p.options) == pytest.approx(1, abs=1e-4)
        assert p.covered == (p.token in first) and p.decision == bool(options.decision[row])
    chosen = tiny.plugin.prior_logits(states.hidden).masked_fill(~options.mask, -1e9).argmax(-1, keepdim=True)
    assert [p.prior for p in flat] == options.tokens.gather(1, chosen)[:, 0].tolist()
    weight = tiny.backbone.head.weight
    picks = tiny.plugin.encoder_logits(states.hidden, weight[states.gold]).argmax(-1)
    assert [p.encoder for p in flat] == picks.tolist()
    torch.testing.assert_close(torch.tensor([p.entropy for p in flat]), states.entropy, atol=1e-4, rtol=1e-4)


def test_meanings_count_the_encoders_picks(tiny, positions):
    meanings = latent_meanings(positions, tiny.plugin.num_options)
    assert [m.latent for m in meanings] == list(range(tiny.plugin.num_options))
    assert sum(m.picked for m in meanings) == pytest.approx(1)
    points = [p for s in positions for p in s if p.decision and p.encoder_token == p.token]
    for m in meanings:
        for text, count, _ in m.tokens:
            assert count == sum(p.encoder == m.latent and p.text == text for p in points)


def test_page_holds_every_token_escaped(tiny, problems, positions, tmp_path):
    meanings = latent_meanings(positions, tiny.plugin.num_options)
    page = write_inspection(tmp_path / "x.html", "a <b>", "facts", problems, positions, meanings).read_text()
    assert "a &lt;b&gt;" in page and "<b>facts" not in page
    for solution in positions:
        assert all(f">{escape(visible(p.text))}<small>" in page for p in solution)


def test_a_prompt_is_answered_by_the_prior(tiny):
    record = inspect_prompt(tiny, "3 + 4 = ? Put the final answer in \\boxed{}.")
    assert 0 < len(record["steps"]) <= 20


@pytest.mark.parametrize("text", ["3 + 4 - 1 = ?", r"$\frac{1}{2}$", "it's: {x}", "[1] + 2", "${seed}", "a: b", '"'])
def test_a_prompt_may_be_any_text(text):
    assert compose([f"inspect.prompt={text}"]).config.inspect.prompt == text


def test_verb_writes_the_page_and_prints_a_prompt(tmp_path, capsys):
    keys = [*QUICK_KEYS, f"runs_dir={tmp_path}", "inspect.num_problems=3"]
    main(["inspect", *keys])
    assert (tmp_path / "inspect" / "inspect.html").exists()
    # Settings need no prefix, and the page is made anew, whatever was there.
    main(["inspect", *keys, "num_problems=2", "seed=1"])
    assert "2 problems of split tune, seed 1" in (tmp_path / "inspect" / "inspect.html").read_text()
    main(["inspect", *keys, "prompt=1 + 2"])
    assert "the greedy answer of the prior" in capsys.readouterr().out


def test_a_policy_answers_the_prompt_it_is_given(tmp_path, capsys):
    keys = [*QUICK_KEYS, f"runs_dir={tmp_path}"]
    main(["train", "agent=steer", "agent.total_episodes=16", "agent.num_generations=4", "name=steered", *keys])
    weights = tmp_path / "steered/policy/policy.safetensors"
    tensors = load_file(weights)
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():  # far from the prior
        tensor.copy_(100 * torch.randn(tensor.shape, generator=generator))
    save_file(tensors, weights)
    capsys.readouterr()
    main(["inspect", f"policy={tmp_path / 'steered'}", "prompt=1 + 2", *keys])
    said = capsys.readouterr().out
    assert f"the greedy answer of the policy in {tmp_path / 'steered'}" in " ".join(said.split())
    agent = ol.load_agent(weights.parent)
    mine = inspect_prompt(agent.session, "1 + 2", agent)["steps"]
    prior = inspect_prompt(agent.session, "1 + 2")["steps"]
    agent.session.close()
    assert [step["latent"] for step in mine] != [step["latent"] for step in prior]
    printed = [line.split("│")[2].strip() for line in said.splitlines() if line.startswith("│")]
    assert [row for row in printed if row] == [str(step["latent"]) if step["latent"] >= 0 else "–" for step in mine]
