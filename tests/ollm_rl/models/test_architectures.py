"""Any causal LM of transformers: the engine's logits are the model's own, whatever the architecture."""

import pytest
import torch

from ollm_rl.errors import BackboneError
from ollm_rl.models.backbone import Backbone
from ollm_rl.models.loading import load_backbone
from ollm_rl.models.tiny import tiny_tokenizer
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.rollout.sampler import Request, rollout
from ollm_rl.tasks import ChainSum
from ollm_rl.tasks.prompts import Prompter
from tests.architectures import ARCHITECTURES, REFUSED, random_backbone, random_model


@pytest.fixture(params=ARCHITECTURES)
def backbone(request):
    return random_backbone(request.param)


def test_zero_decoder_gives_the_models_own_logits_over_sixty_steps(backbone):
    task = ChainSum(num_examples=1)
    prompter = Prompter.for_task(backbone, task)
    sizes = PlugInConfig(
        num_options=3, encoder_width=16, decoder_width=16, prior_width=16, shortlist=20, reader_depth=2
    )
    plugin = PlugIn.beside(backbone, sizes)
    plugin.decoder.zero_()
    engine = RolloutEngine(OptionLM(backbone, plugin), prompter, num_slots=4, max_new_tokens=60)
    problems = task.problems("test", 4)
    engine.admit([prompter.encode(p) for p in problems])
    texts = [prompter.prefix + prompter.encode(p) for p in problems]
    starts = [len(ids) - 1 for ids in texts]
    seen = []
    for step in range(60):
        seen.append(engine.logits.clone())
        assert (engine.options.tokens == engine.logits.argmax(-1, keepdim=True)).all()
        tokens = engine.logits.topk(8)[1][:, step % 8]  # not the same token for ever
        texts = [ids + [int(t)] for ids, t in zip(texts, tokens, strict=True)]
        engine.advance(tokens)
    for row, ids in enumerate(texts):
        with torch.inference_mode():
            own = backbone.model(torch.tensor([ids])).logits[0, starts[row] : starts[row] + 60]
        torch.testing.assert_close(torch.stack([logits[row] for logits in seen]), own, atol=1e-4, rtol=0)


def test_what_cannot_be_driven_is_refused_when_it_is_loaded(tmp_path):
    """With the reason; without the check they would run, and be wrong."""
    for name, (*_, reason) in REFUSED.items():
        random_model(name).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        with pytest.raises(BackboneError, match=reason):
            load_backbone(str(tmp_path / name), "float32", "cpu")


@pytest.mark.parametrize("name", ["bloom", "granite", "nemotron", "deepseek_v3"])
def test_directories_of_what_can_be_driven_load(name, tmp_path):
    random_model(name).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    load_backbone(str(tmp_path), "float32", "cpu")
    load_backbone(str(tmp_path), "bfloat16", "cpu")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lower_precision_is_driven_too(name):
    """The tolerance follows from the precision; a model that computes something else is refused there as well."""
    Backbone(name, random_model(name).bfloat16(), tiny_tokenizer(), torch.bfloat16, torch.device("cpu"), "random")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_that_the_engine_does_not_know_is_refused(dtype):
    model = random_model("llama").to(dtype)
    forward = model.forward

    def shifted(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits.roll(1, -1)
        return out

    model.forward = shifted
    with pytest.raises(BackboneError, match="are off by .*, where rounding explains"):
        Backbone("shifted", model, tiny_tokenizer(), dtype, torch.device("cpu"), "random")


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"max_position_embeddings": 100}, (100, "max_position_embeddings")),
        (
            {
                "max_position_embeddings": 400,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100,
                                    "rope_theta": 1e4},
            },
            (400, "max_position_embeddings"),
        ),
        (
            {"max_position_embeddings": 100, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            (200, "max_position_embeddings"),
        ),
        (  # beyond it, frequencies are those of the longest row of a batch
            {"max_position_embeddings": 100, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            (100, "original_max_position_embeddings of dynamic"),
        ),
        ({"max_position_embeddings": 100, "attention_chunk_size": 64}, (64, "attention_chunk_size")),
    ],
)  # fmt: skip
def test_how_long_a_text_may_be(settings, limit):
    from transformers import LlamaConfig

    from ollm_rl.models.driving import context_limit

    assert context_limit(LlamaConfig(**settings)) == limit


def test_batched_and_single_decoding_agree(backbone):
    """The same latents give the same texts, whatever else is in the batch."""
    task = ChainSum(num_examples=1)
    prompter = Prompter.for_task(backbone, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plugin = PlugIn.beside(backbone, PlugInConfig(num_options=3, decoder_width=16, shortlist=20, reader_depth=2))

    def act(hidden, mask, uniforms):
        return (mask * torch.rand(3, generator=torch.Generator().manual_seed(1))).argmax(-1), torch.zeros(len(mask))

    texts = []
    for slots in (1, 4):
        engine = RolloutEngine(OptionLM(backbone, plugin), prompter, num_slots=slots, max_new_tokens=12)
        requests = [Request(p, seed=i) for i, p in enumerate(task.problems("test", 6))]
        found = dict(rollout(engine, requests, act, keep_hidden=False))
        texts.append([found[i].tokens for i in range(len(requests))])
    assert texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone", ["llama", "gpt2", "qwen3_moe", "gemma2", "granite", "cohere2", "bloom"], indirect=True
)
def test_conversion_lowers_the_loss_and_the_model_comes_back(backbone, tmp_path):
    """Save, load and `AutoModelForCausalLM` give the same logits; `generate` works; the mixture is the sum over z."""
    from transformers import AutoModelForCausalLM

    from ollm_rl.options.config import ConversionConfig
    from ollm_rl.options.hf import OptionLMForCausalLM
    from ollm_rl.options.hidden_cache import compute_hidden_states
    from ollm_rl.options.quality import measure
    from ollm_rl.options.training import convert

    task = ChainSum(num_examples=1)
    prompter = Prompter.for_task(backbone, task)
    states = compute_hidden_states(backbone, prompter, task.problems("sft", 40), 20)
    sizes = PlugInConfig(
        num_options=3, encoder_width=16, decoder_width=16, prior_width=16, shortlist=20, reader_depth=0
    )
    settings = ConversionConfig(epochs=8, prior_epochs=8, batch_size=64, plugin=sizes)
    plugin = convert(backbone, states, settings)
    heldout = measure(backbone, plugin, compute_hidden_states(backbone, prompter, task.problems("tune", 20), 20))
    assert heldout["nll"]["all"] < heldout["backbone_nll"]["all"]
    model = OptionLMForCausalLM.of(backbone, plugin)
    ids = torch.tensor([prompter.prefix + prompter.encode(p) for p in task.problems("test", 1)])
    with torch.inference_mode():
        logits = model(ids).logits
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, backbone=backbone)
        torch.testing.assert_close(again(ids).logits, logits, atol=1e-5, rtol=0)
        one = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        by_hand = ids
        for _ in range(one.shape[1] - ids.shape[1]):
            by_hand = torch.cat([by_hand, model(by_hand).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(one, by_hand)
        body = getattr(backbone.model, backbone.model.base_model_prefix)
        hidden = body(ids).last_hidden_state[0]
        prior = plugin.prior_logits(hidden).double().softmax(-1)
        total = torch.zeros(len(hidden), backbone.vocab_size, dtype=torch.float64)
        for z in range(3):
            option = backbone.after_head(backbone.head(hidden + plugin.biases(hidden)[:, z])).double().softmax(-1)
            total += prior[:, z, None] * option
        torch.testing.assert_close(logits[0].double(), total.log(), atol=1e-4, rtol=0)
