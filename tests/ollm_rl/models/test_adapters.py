"""Adapters of PEFT, merged into a backbone when it is loaded."""

import json

import pytest
import torch

import ollm_rl as ol
from agents.lora import LoRASFT
from agents.prior import Prior
from ollm_rl.cli.app import main
from ollm_rl.config.compose import compose
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.models.adapters import FILES, adapter_dir, adapter_size, check_adapter
from ollm_rl.models.config import BackboneConfig
from ollm_rl.models.loading import load_backbone
from ollm_rl.session.local import Session
from ollm_rl.session.opening import open_session
from tests.conftest import QUICK


@pytest.fixture
def adapter(tiny, tmp_path):
    """A run's directory with an adapter that changes what the model says."""
    agent = LoRASFT(tiny, rank=2)
    draw = torch.Generator().manual_seed(0)
    agent.set_weights({name: torch.randn(t.shape, generator=draw) for name, t in agent.weights().items()})
    agent.save(tmp_path / "run" / "policy")
    return tmp_path / "run", agent


def test_the_merged_backbone_says_what_the_adapted_model_says(tiny, adapter):
    run, agent = adapter
    merged = load_backbone("tiny", "float32", adapter=str(run))
    tokens = torch.arange(1, 12)[None]
    with torch.inference_mode():
        mine, theirs, plain = (m(input_ids=tokens).logits for m in (merged.model, agent.model, tiny.backbone.model))
    assert torch.allclose(mine, theirs, atol=1e-4) and not torch.allclose(mine, plain, atol=1e-2)
    assert merged.fingerprint != tiny.backbone.fingerprint and merged.adapter == str(run)
    assert load_backbone("tiny", "bfloat16", adapter=str(run)).fingerprint == merged.fingerprint
    assert adapter_size(run) == agent.num_parameters
    assert not any("lora" in name for name, _ in merged.model.named_parameters())


def test_a_plug_in_and_a_policy_find_their_backbone_again(tiny, adapter, tmp_path):
    run, _ = adapter
    merged = load_backbone("tiny", "float32", adapter=str(run))
    with pytest.raises(CheckpointError, match="was made for backbone"):
        Session(merged, ol.options.modules.PlugIn.from_pretrained(tiny.plugin.path, merged), tiny.task)
    plugin = ol.convert(merged, tiny.task, QUICK)
    session = Session(merged, plugin, tiny.task)
    Prior(session).save(tmp_path / "policy")
    for file in FILES:
        (run / "policy" / file).unlink()  # the saved agent has a copy
    again = ol.load_agent(tmp_path / "policy")
    assert again.session.backbone.fingerprint == merged.fingerprint
    assert json.loads((tmp_path / "policy" / "agent.json").read_text())["backbone"]["adapter"] == "adapter"
    found = [evaluate(s, Prior(s), "prior", s.problems("test", 2), 0).greedy for s in (session, again.session)]
    assert [e.tokens for e in found[0]] == [e.tokens for e in found[1]]


def test_an_adapter_is_fitted_first_and_once(tiny):
    keys = ["backbone=tiny", "backbone.dtype=float32", "backbone.adapter=sft", "backbone.sft={rank:2,sft_epochs:1}"]
    keys += ["convert.num_solutions=40", "convert.num_heldout=20", "convert.epochs=1", "plugin.reader_depth=0"]
    session = open_session(compose(keys))
    place = session.backbone.adapter
    assert json.loads((adapter_dir(place) / "sft.json").read_text())["tokens"] > 0
    before = (adapter_dir(place) / FILES[1]).stat().st_mtime_ns
    again = open_session(compose(keys))
    assert again.backbone.adapter == place and (adapter_dir(place) / FILES[1]).stat().st_mtime_ns == before
    assert again.plugin.adapter == place and again.backbone.fingerprint != tiny.backbone.fingerprint


def test_what_cannot_be_merged_is_said(tiny, adapter, tmp_path):
    run, _ = adapter
    with pytest.raises(CheckpointError, match="holds no adapter: expected adapter_config.json and"):
        check_adapter(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="expected null where backbone.quantization is set"):
        BackboneConfig(adapter=str(run), quantization="4bit")
    config = json.loads((run / "policy" / FILES[0]).read_text())
    (run / "policy" / FILES[0]).write_text(json.dumps({**config, "r": 3}))
    with pytest.raises(CheckpointError, match="does not fit this backbone"):
        load_backbone("tiny", "float32", adapter=str(run))


def test_the_doctor_and_dry_runs_take_an_adapter(adapter, capsys):
    run, _ = adapter
    for place in (str(run), "sft"):
        main(["doctor", "backbone=tiny", f"backbone.adapter={place}"])
    main(["train", "--dry-run", "backbone=tiny", f"backbone.adapter={run}", "estimate.measure=false"])
    assert "adapter" in capsys.readouterr().out
