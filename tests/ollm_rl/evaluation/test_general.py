"""General texts: what agents make of them beside the untouched backbone."""

import pytest
import torch

from agents.backbone import PlainBackbone
from agents.lora import LoRASFT
from agents.prior import Prior
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.comparison import summarize
from ollm_rl.evaluation.config import EvaluateConfig
from ollm_rl.evaluation.general import backbone_scores, general, general_texts, mixture_scores
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row
from ollm_rl.options.hf import OptionLMForCausalLM
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.report.tables import all_tables


def test_the_texts_are_two_dozen():
    texts = general_texts()
    assert len(texts) == len(set(texts)) == 24 and all(40 <= len(text.split()) <= 80 for text in texts)


def test_a_mixture_is_what_the_exported_model_says(tiny, monkeypatch):
    """Of the prior, the mixture over the options is the ordinary model's `forward`."""
    tokens = tiny.backbone.tokenizer(general_texts()[0])["input_ids"]
    monkeypatch.setattr(tiny.plugin, "prefix", [])  # whose tokens an exported model's reader would pass over
    policy = LatentPolicy.from_prior(tiny.plugin)
    found, greedy = mixture_scores(tiny.lm, policy, tokens)
    assert torch.allclose(found.exp().sum(-1), torch.ones(len(tokens)), atol=1e-4)
    model = OptionLMForCausalLM.of(tiny.backbone, tiny.plugin)
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([tokens])).logits[0]
    assert torch.allclose(found, theirs.float(), atol=1e-3)
    by_policy = OptionLMForCausalLM.of(tiny.backbone, tiny.plugin, policy)
    with torch.inference_mode():
        assert torch.equal(greedy, by_policy(input_ids=torch.tensor([tokens])).logits[0].argmax(-1))


def test_an_untouched_model_is_where_it_was(tiny):
    agent = LoRASFT(tiny, rank=1)
    found = general(tiny, agent, 3)
    assert found.kl == pytest.approx(0, abs=1e-5) and found.loss == pytest.approx(found.backbone_loss, abs=1e-5)
    assert found.same_token == 1 and found.n_texts == 3 and found.n_tokens > 100
    weights = {name: torch.randn_like(tensor) for name, tensor in agent.weights().items()}
    agent.set_weights(weights)
    moved = general(tiny, agent, 3)
    assert moved.kl > 0.1 and moved.same_token < 1 and moved.backbone_loss == pytest.approx(found.backbone_loss)
    assert moved.loss - moved.backbone_loss == pytest.approx(sum(moved.changes) / 3, abs=1e-5)
    assert general(tiny, PlainBackbone(tiny), 3) is None


def test_it_stands_in_rows_and_tables(tiny):
    found = general(tiny, Prior(tiny), 2)
    plain, _ = backbone_scores(tiny.backbone, tiny.backbone.tokenizer(general_texts()[0])["input_ids"])
    assert plain.shape[1] == tiny.backbone.vocab_size and found.kl > 0
    rows = [Row(agent="prior", seed=s, n_problems=2, accuracy=0.5, accuracy_ci95=(0, 1), general=found) for s in (0, 1)]
    results = Results(rows, "sums", "tiny")
    summarize(results)
    assert results.pooled[0].general.loss == pytest.approx(found.loss)
    assert results.pooled[0].general.loss_change_ci95 == pytest.approx(found.loss_change_ci95)
    assert "General texts" in {table.title for table in all_tables(results)}
    again = Results.from_dict(results.to_dict())
    assert again.rows[0].general == found
    with pytest.raises(ConfigurationError, match="num_general"):
        EvaluateConfig(num_general=-1)
