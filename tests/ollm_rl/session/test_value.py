"""A learned verifier, from sampled texts to rows, tables and plots."""

import json

import pytest
import torch

import ollm_rl as ol
from agents.prior import Prior
from ollm_rl.errors import CheckpointError, ConfigurationError, DataError
from ollm_rl.evaluation.comparison import summarize
from ollm_rl.evaluation.evaluator import evaluate_agent
from ollm_rl.evaluation.results import Results
from ollm_rl.options.config import ValueConfig
from ollm_rl.options.value import Value
from ollm_rl.report.plots import draw
from ollm_rl.report.tables import all_tables
from ollm_rl.session.local import Session
from ollm_rl.session.value import learn_value

SMALL = ValueConfig(num_problems=40, samples=4, epochs=4)


def by_length(completions, log_extra=None, **_):
    """Every third length is right, which a tiny model's texts have often enough."""
    if log_extra is not None:
        log_extra("answer", [str(len(text) % 3) for text in completions])
    return [float(len(text) % 3 == 0) for text in completions]


@pytest.fixture
def session(tiny):
    return Session(tiny.backbone, tiny.plugin, tiny.task, by_length, tiny.engine_settings)


def test_it_is_learned_evaluated_and_kept(session, tmp_path):
    agent = Prior(session)
    value = learn_value(session, agent, SMALL)
    found = []
    for seed in (0, 1):
        folder = tmp_path / f"prior-{seed}"
        results = evaluate_agent(session, agent, 12, 4, seed=seed, directory=folder, ks=[1, 2, 4], value=value)
        found += results.rows
    row = found[0].value
    assert row.n_problems == 12 and row.samples == 4 and 0 < row.n_mixed <= 12
    assert set(row.rivals) == {"log-probability", "length", "vote share"}
    assert row.auroc - row.rivals["length"].auroc == pytest.approx(row.rivals["length"].above.mean)
    assert row.maj == pytest.approx(found[0].sampled[4].maj) and row.any_of == found[0].sampled[4].pass_
    assert row.weighted_at[1] == row.best_at[1] == pytest.approx(found[0].sampled[1].pass_)  # of one text, that one
    assert row.best_at[4] == pytest.approx(row.best_of) and row.weighted_at[4] == pytest.approx(row.weighted_maj)
    assert sum(n for _, _, n in row.reliability) == 48
    both = Results(found, "sums", "tiny")
    summarize(both)
    [pooled] = both.pooled
    assert pooled.value.n_problems == 24  # of the files, over all seeds
    assert pooled.value.weighted_maj == pytest.approx((found[0].value.weighted_maj + found[1].value.weighted_maj) / 2)
    again = Results.from_dict(json.loads(json.dumps(both.to_dict())))
    assert again.rows[0].value == row and again.pooled[0].value == pooled.value
    titles = {table.title for table in all_tables(both)}
    assert {"The learned verifier", "Choosing without the verdict", "Several texts a problem"} <= titles
    assert {"reliability.png", "tokens.png"} <= {path.name for path in draw(both, tmp_path / "plots")}


def test_the_same_texts_give_the_same_verifier(session):
    one, two = (learn_value(session, Prior(session), SMALL, seed=3) for _ in range(2))
    assert one.beginnings is not None
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_it_learns_from_train_only(session, monkeypatch):
    asked = []
    monkeypatch.setattr(
        session, "problems", lambda split, n, seed=0: asked.append(split) or session.task.problems(split, n, seed)
    )
    learn_value(session, Prior(session), SMALL)
    assert asked == ["train"]


def test_what_cannot_be_learned_from_is_said(session, tiny, tmp_path):
    session.judge.reward = lambda completions, **_: [0.0] * len(completions)
    with pytest.raises(DataError, match="all 160 texts that the learned verifier is to learn from are wrong"):
        learn_value(session, Prior(session), SMALL)
    with pytest.raises(ConfigurationError, match="chooses tokens, not latents"):
        learn_value(session, ol.make_agent("backbone", session), SMALL)


def test_it_is_saved_for_its_backbone(tmp_path):
    value = Value(8, 4).eval()
    value.save_pretrained(tmp_path, fingerprint="a")
    again = Value.from_pretrained(tmp_path, "a")
    both = Value(8, 4, beginnings=True)
    both.save_pretrained(tmp_path / "both")
    assert torch.equal(Value.from_pretrained(tmp_path / "both").beginnings.net[0].weight, both.beginnings.net[0].weight)
    assert again.beginnings is None
    states = torch.randn(3, 8)
    assert torch.equal(value(states), again(states)) and not any(p.requires_grad for p in again.parameters())
    with pytest.raises(CheckpointError, match="another backbone"):
        Value.from_pretrained(tmp_path, "b")
    with pytest.raises(CheckpointError, match="no learned verifier in"):
        Value.from_pretrained(tmp_path / "nothing")
