"""The option LM as an ordinary model: the mixture, and coming back from disk."""

import copy

import pytest
import torch

from ollm_rl.errors import CheckpointError
from ollm_rl.plugin import OptionLM, PlugIn
from ollm_rl.pretrained import OptionLMForCausalLM


def test_log_likelihood_is_the_direct_sum_over_z_in_float64(tiny):
    """-loss equals the mean of log sum_z pi0(z | h) p(x | h, z), everything in double precision."""
    backbone = copy.copy(tiny.backbone)
    backbone.model = copy.deepcopy(tiny.backbone.model).double()
    plugin = copy.deepcopy(tiny.plugin).double()
    model = OptionLMForCausalLM.of(backbone, plugin)
    ids = torch.tensor([tiny.backbone.tokenizer("6 + 0 - 1 = ? The answer is 5.")["input_ids"]])
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss
        body = getattr(backbone.model, backbone.model.base_model_prefix)
        hidden = body(ids).last_hidden_state[0, :-1]
        log_likelihood = 0.0
        for h, x in zip(hidden, ids[0, 1:], strict=True):
            prior = plugin.prior(plugin.standardize(h[None]))[0].softmax(-1)
            biases = plugin.decoder(plugin.standardize(h[None]))[0]
            p = sum(prior[z] * (backbone.head.weight @ (h + biases[z])).softmax(-1)[x] for z in range(len(prior)))
            log_likelihood += float(torch.as_tensor(p).log())
    assert loss.dtype == torch.float64
    assert float(-loss) == pytest.approx(log_likelihood / len(hidden), abs=1e-6)


def test_an_option_lm_comes_back_from_its_directory(tiny, tmp_path):
    tiny.lm.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")) and (tmp_path / "plugin.safetensors").exists()
    again = OptionLM.from_pretrained(tmp_path, dtype="float32")
    hidden = torch.randn(7, tiny.backbone.hidden_size)
    assert torch.equal(again.options(hidden).tokens, tiny.lm.options(hidden).tokens)
    assert again.backbone.fingerprint == tiny.backbone.fingerprint


def test_another_backbone_is_refused(tiny, tmp_path):
    tiny.lm.save_pretrained(tmp_path)
    other = copy.copy(tiny.backbone)
    other.fingerprint, other.name = "0" * 16, "another"
    with pytest.raises(CheckpointError, match="was made for backbone 'tiny'"):
        PlugIn.from_pretrained(tmp_path, other)
    with pytest.raises(CheckpointError, match="no plug-in"):
        OptionLM.from_pretrained(tmp_path / "nothing")
