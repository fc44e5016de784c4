"""The option LM as an ordinary model: the mixture, and coming back from disk."""

import copy

import pytest
import torch

from ollm_rl.errors import BackboneError, CheckpointError
from ollm_rl.models.attention import KVCache
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.hf import OptionLMForCausalLM
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.options.reading import WholeTexts
from tests.architectures import random_backbone


def test_log_likelihood_is_the_direct_sum_over_z_in_float64(tiny):
    """-loss equals the mean of log sum_z pi0(z | h) p(x | h, z), everything in double precision."""
    backbone = copy.copy(tiny.backbone)
    backbone.model, backbone.dtype = copy.deepcopy(tiny.backbone.model).double(), torch.float64
    plugin = copy.deepcopy(tiny.plugin).double()
    model = OptionLMForCausalLM.of(backbone, plugin)
    ids = torch.tensor([tiny.backbone.tokenizer("6 + 0 - 1 = ? The answer is 5.")["input_ids"]])
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss
        body = getattr(backbone.model, backbone.model.base_model_prefix)
        with backbone.tap(plugin.reader.layers if plugin.reader else ()) as taps:
            hidden = body(ids).last_hidden_state
        if plugin.reader:
            positions = torch.arange(ids.shape[1])[None]
            ignored = model._in_prefix(ids, positions)  # the first token begins all prompts
            hidden = torch.cat(
                [hidden, plugin.reader(taps(hidden), positions, WholeTexts([ids.shape[1]]), ignored)], -1
            )
        hidden = hidden[0, :-1]
        log_likelihood = 0.0
        for h, x in zip(hidden, ids[0, 1:], strict=True):
            prior = plugin.prior(plugin.standardize(h[None]))[0].softmax(-1)
            biases = plugin.decoder(plugin.standardize(h[None]))[0]
            p = sum(
                prior[z] * (backbone.head.weight @ (h[: backbone.hidden_size] + biases[z])).softmax(-1)[x]
                for z in range(len(prior))
            )
            log_likelihood += float(torch.as_tensor(p).log())
    assert loss.dtype == torch.float64
    assert float(-loss) == pytest.approx(log_likelihood / len(hidden), abs=1e-6)


def test_an_option_lm_comes_back_from_its_directory(tiny, tmp_path):
    tiny.lm.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")) and (tmp_path / "plugin.safetensors").exists()
    again = OptionLM.from_pretrained(tmp_path, dtype="float32")
    hidden = torch.randn(7, tiny.plugin.state_size)
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


@pytest.fixture(params=["llama", "gemma2", "gpt2"])  # the second caps its scores, which is our own attention
def random_option_lm(request):
    backbone = random_backbone(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = PlugInConfig(
            num_options=3, decoder_width=16, encoder_width=16, prior_width=16, shortlist=20, reader_depth=2
        )
        return OptionLMForCausalLM.of(backbone, PlugIn.beside(backbone, sizes))


GREEDY = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)


def test_what_generate_hands_over_arrives(random_option_lm):
    model = random_option_lm
    ids = torch.randint(3, 200, (1, 7), generator=torch.Generator().manual_seed(0))
    text = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, use_cache=False, **GREEDY), text)
    assert torch.equal(model.generate(ids, cache_implementation="static", **GREEDY), text)
    assert torch.equal(model.generate(ids, prefill_chunk_size=3, **GREEDY), text)
    assert torch.equal(model.generate(inputs_embeds=model.get_input_embeddings()(ids), **GREEDY), text[:, 7:])
    padded, mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1), (torch.arange(10) >= 3).long()[None]
    assert torch.equal(model.generate(padded, attention_mask=mask, **GREEDY)[:, 10:], text[:, 7:])
    states = model.generate(ids, output_hidden_states=True, return_dict_in_generate=True, **GREEDY).hidden_states
    assert len(states) == 6 and states[0][-1].shape == (1, 7, model.config.hidden_size)


def test_continuous_batching_says_what_generate_says(random_option_lm):
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = random_option_lm
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 200, (n,), generator=generator).tolist() for n in (5, 9, 7)]
    alone = [model.generate(torch.tensor([p]), **GREEDY)[0, len(p) :].tolist() for p in prompts]
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
    found = model.generate_batch(
        inputs=prompts, generation_config=settings, continuous_batching_config=small, progress_bar=False
    )
    assert [found[key].generated_tokens for key in sorted(found)] == alone


def test_losses_of_trainers(random_option_lm):
    """-100 marks what does not count; a trainer that accumulates gradients says by how many to divide."""
    ids = torch.randint(3, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(7) < 3, -100)
    with torch.inference_mode():
        mean = random_option_lm(ids, labels=labels).loss
        assert torch.allclose(random_option_lm(ids, labels=labels, num_items_in_batch=16).loss, mean * 8 / 16)


def test_the_engine_notices_that_attention_was_taken_from_it(random_option_lm):
    model = random_option_lm
    backbone = model._backbone[0]

    step = lambda: backbone.hidden(torch.tensor([[5, 6]]), torch.arange(2)[None], KVCache(1, 4))  # noqa: E731
    before = step()
    model.set_attn_implementation("eager")
    with pytest.raises(BackboneError, match="set_attn_implementation"):
        step()
    model.set_attn_implementation("sdpa")
    assert torch.equal(step(), before)
