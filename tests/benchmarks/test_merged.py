"""Merging an adapter gives a backbone that says what the adapted model says."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import merged

from agents.lora import LoRA
from ollm_rl.models.loading import load_backbone


def test_a_merged_backbone_says_what_the_adapted_model_says(tiny, tmp_path):
    agent = LoRA(tiny, rank=2)
    torch.manual_seed(0)
    agent.set_weights({k: torch.randn_like(v) for k, v in agent.weights().items()})
    agent.save(tmp_path / "policy")
    merged.merge(tmp_path / "policy", tmp_path / "fitted", "tiny")
    fitted = load_backbone(str(tmp_path / "fitted"), "float32", "cpu")
    ids = torch.arange(3, 13)[None]
    with torch.inference_mode():
        expected, found, before = (m(ids).logits for m in (agent.model, fitted.model, tiny.backbone.model))
    assert (expected - before).abs().mean() > 0.1
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0.05)  # rounded to bf16
    assert fitted.fingerprint != tiny.backbone.fingerprint


def test_no_adapter_is_said(tmp_path):
    with pytest.raises(SystemExit, match="expected the policy/ directory"):
        merged.merge(tmp_path, tmp_path / "out")
