"""Decode steps on padded batches and spans; captured as graphs where there is a GPU."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ollm_rl.models.cuda_graphs import GraphedSteps
from ollm_rl.models.loading import load_backbone
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.tasks import make_task
from ollm_rl.tasks.prompts import Prompter


def prepared(tiny, kv_cache_gib=None) -> RolloutEngine:
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=9, max_new_tokens=20, kv_cache_gib=kv_cache_gib)
    assert (engine.kv.blocks is not None) == (kv_cache_gib is not None)
    engine.admit([[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]])
    return engine


def called_not_replayed(steps: GraphedSteps) -> GraphedSteps:
    """As on a GPU, but for the capture."""
    steps.enabled = True
    steps._capture = lambda rows, span: steps._steps.update({(rows, span): lambda: steps._step(rows, span)})
    return steps


@pytest.mark.parametrize("kv_cache_gib", [None, 1e-4])
def test_a_padded_step_is_an_ordinary_one(tiny, kv_cache_gib, monkeypatch):
    monkeypatch.setattr("ollm_rl.rollout.engine.BLOCK", 4)
    tokens = torch.tensor([20, 21, 22])
    expected, engine = prepared(tiny), prepared(tiny, kv_cache_gib)
    expected.advance(tokens)
    steps = called_not_replayed(GraphedSteps(tiny.lm.states, engine.kv, tiny.backbone.device))
    engine.kv.reserve(torch.arange(3), engine.lengths + 1)
    found = steps.hidden(tokens, engine.lengths)
    assert list(steps._steps) == [(4, 64)]
    torch.testing.assert_close(found, expected.hidden, atol=1e-5, rtol=1e-4)
    engine.advance(tokens)
    expected.advance(tokens)
    engine.advance(tokens)  # rows of the padding did no harm to those in use
    torch.testing.assert_close(engine.hidden, expected.hidden, atol=1e-5, rtol=1e-4)


def test_a_single_row_is_padded_to_two(tiny):
    """Run as a pair of the same row, it could not be captured, and one short text would end all graphs."""
    expected = RolloutEngine(tiny.lm, tiny.prompter, num_slots=4, max_new_tokens=20)
    engine = RolloutEngine(tiny.lm, tiny.prompter, num_slots=4, max_new_tokens=20)
    for each in (expected, engine):
        each.admit([[5, 6, 7]])
    steps = called_not_replayed(GraphedSteps(tiny.lm.states, engine.kv, tiny.backbone.device))
    found = steps.hidden(torch.tensor([20]), engine.lengths)
    assert list(steps._steps) == [(2, 64)]
    expected.advance(torch.tensor([20]))
    torch.testing.assert_close(found, expected.hidden, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_captured_falls_back(tiny, caplog):
    engine = prepared(tiny)
    steps = GraphedSteps(tiny.lm.states, engine.kv, tiny.backbone.device)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: it can be captured")
    assert not steps.enabled
    steps.enabled = True
    expected = tiny.lm.states(torch.full((3, 1), 20), engine.lengths[:, None], engine.kv)[:, 0]
    torch.testing.assert_close(steps.hidden(torch.tensor([20, 20, 20]), engine.lengths), expected)
    assert not steps.enabled and "without CUDA graphs" in caplog.text


def test_weights_that_change_in_place_keep_graphs_and_others_do_not():
    backbone = load_backbone("tiny", "float32", "cpu")
    lm = OptionLM(backbone, PlugIn.beside(backbone, PlugInConfig()))
    adapted = get_peft_model(backbone.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    prompter = Prompter.for_task(backbone, make_task("chain_sum"))
    engine = RolloutEngine(lm, prompter, num_slots=2, max_new_tokens=8)

    def says_what_a_new_engine_says() -> None:
        engine.refresh()
        fresh = RolloutEngine(lm, prompter, num_slots=2, max_new_tokens=8)
        for each in (engine, fresh):
            each.admit([[5, 6, 7], [8, 9]])
            each.advance(torch.tensor([20, 21]))
        torch.testing.assert_close(engine.hidden, fresh.hidden, atol=1e-5, rtol=1e-4)

    engine.admit([[5, 6, 7], [8, 9]])
    graphs, before = engine.graphs, engine.hidden.clone()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight += 0.1
    says_what_a_new_engine_says()
    assert engine.graphs is graphs and not torch.allclose(engine.hidden, before, atol=1e-3)
    with adapted.disable_adapter():
        says_what_a_new_engine_says()
        assert engine.graphs is not graphs
    graphs, layer = engine.graphs, backbone.model.model.layers[0].mlp.down_proj.base_layer
    layer.weight.data = layer.weight.data * 2
    says_what_a_new_engine_says()
    assert engine.graphs is not graphs
