"""vLLM says of an export what transformers says of it: `PYTHON -m pytest extras/vllm/tests`, with the PYTHON of vLLM's environment."""

import json
import os
import subprocess
import sys

import pytest

vllm = pytest.importorskip("vllm", reason="needs the environment of extras/vllm/requirements.lock")
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

import torch  # noqa: E402
import transformers  # noqa: E402

from ollm_rl.models.backbone import Backbone  # noqa: E402
from ollm_rl.models.tiny import tiny_tokenizer  # noqa: E402
from ollm_rl.options.config import PlugInConfig  # noqa: E402
from ollm_rl.options.hf import BACKBONE, OptionLMForCausalLM  # noqa: E402
from ollm_rl.options.modules import PlugIn  # noqa: E402
from ollm_rl.options.next_token import FLOOR  # noqa: E402
from ollm_rl.options.policies import LatentPolicy  # noqa: E402

# Attention of vLLM on a CPU begins at heads of 32.
SIZES = dict(
    hidden_size=128, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, initializer_range=0.3,
)  # fmt: skip
NEW = 12
SHARED = "what all texts of the conversion began with: "
TEXTS = ("1 + 2", "a longer one: 7 - 3 - 2 + 5 - 1 + 8 - 4", "x", SHARED + "4 - 1", SHARED + "3 + 5 + 1")


def exported(place, architecture, reader_depth, kind):
    """A random export with its backbone along, and the same model in memory."""
    tokenizer = tiny_tokenizer()
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **SIZES,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).float().eval()
    backbone = Backbone(architecture, model, tokenizer, torch.float32, torch.device("cpu"), "random")
    sizes = PlugInConfig(
        num_options=5, decoder_width=16, encoder_width=16, prior_width=16, shortlist=20, reader_depth=reader_depth, reader_width=64,
        init_scale=3.0, reader_layers=[3, 0, 1] if reader_depth == 2 else None,
    )  # fmt: skip
    plugin = PlugIn.beside(backbone, sizes).eval()
    plugin.prefix = tokenizer(SHARED)["input_ids"]
    policy = None
    if kind == "policy":
        policy = LatentPolicy.from_prior(plugin).eval().requires_grad_(False)
        for parameter in policy.net.parameters():
            parameter.data.normal_(0, 0.15)
    made = OptionLMForCausalLM.of(backbone, plugin, policy)
    made.save_pretrained(place)
    model.save_pretrained(place / BACKBONE)
    return made


def started(place, **more):
    return vllm.LLM(str(place), dtype="float32", max_model_len=128, max_num_seqs=4, enforce_eager=True, **more)


def compare(model, llm):
    """Greedy texts are the same, and log-probabilities of their tokens."""
    ids = [model._backbone[0].tokenizer(text)["input_ids"] for text in TEXTS]
    wanted = vllm.SamplingParams(temperature=0, max_tokens=NEW, logprobs=3, ignore_eos=True)
    found = llm.generate([{"prompt_token_ids": text} for text in ids], wanted, use_tqdm=False)
    texts = []
    for text, each in zip(ids, found, strict=True):
        tokens, log_probs = list(each.outputs[0].token_ids), each.outputs[0].logprobs
        with torch.inference_mode():
            logits = model(torch.tensor([text + tokens])).logits[0, len(text) - 1 : -1]
        assert tokens == logits.argmax(-1).tolist()
        for row, said in zip(logits.log_softmax(-1), log_probs, strict=True):
            assert {t: p.logprob for t, p in said.items()} == pytest.approx({t: float(row[t]) for t in said}, abs=2e-4)
        texts.append(tokens)
    assert len({tuple(t) for t in texts}) == len(TEXTS)
    return found


@pytest.mark.parametrize(
    ("architecture", "reader_depth", "kind"),
    [("Llama", 0, "policy"), ("Llama", 2, "policy"), ("Qwen2", 1, "policy"), ("Qwen2", 1, "mixture")],
)
def test_it_says_what_transformers_says(tmp_path, architecture, reader_depth, kind):
    """Prompts in pieces of 32 tokens beside one another, and again from the cache of prefixes."""
    model = exported(tmp_path, architecture, reader_depth, kind)
    llm = started(tmp_path, max_num_batched_tokens=32, enable_prefix_caching=True)
    first = compare(model, llm)
    assert [len(each.outputs[0].token_ids) for each in compare(model, llm)] == [NEW] * len(TEXTS)
    likely = {p.logprob for each in first for said in each.outputs[0].logprobs for p in said.values()}
    assert (FLOOR in likely) == (kind == "policy")
    drawn = llm.generate(TEXTS[0], vllm.SamplingParams(temperature=1.0, n=20, max_tokens=1), use_tqdm=False)[0]
    with torch.inference_mode():
        row = model(torch.tensor([model._backbone[0].tokenizer(TEXTS[0])["input_ids"]])).logits[0, -1]
    assert all(row[each.token_ids[0]] > FLOOR for each in drawn.outputs)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core for each rank")
def test_two_ranks_say_the_same(tmp_path, monkeypatch):
    """Vocabulary, heads of the backbone and heads of the reader are divided."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    model = exported(tmp_path, "Llama", 2, "policy")
    compare(model, started(tmp_path, tensor_parallel_size=2))


def test_another_backbone_is_refused(tmp_path):
    model = exported(tmp_path, "Llama", 1, "policy")
    with torch.no_grad():
        model.lm.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    model.lm.save_pretrained(tmp_path / BACKBONE)
    with pytest.raises(ValueError, match="is not the backbone that the plug-in was made for"):
        started(tmp_path)


def test_an_architecture_that_is_not_here_is_refused(tmp_path):
    exported(tmp_path, "Llama", 1, "policy")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["model_type"] = "mistral"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="backbone of type 'mistral'; in vLLM there is llama and qwen2"):
        started(tmp_path)


def test_keys_in_8_bits_are_refused(tmp_path):
    exported(tmp_path, "Llama", 1, "policy")
    with pytest.raises(ValueError, match="the reader marks keys with numbers beyond it; use auto"):
        started(tmp_path, kv_cache_dtype="fp8")


def test_without_the_plug_in_vllm_refuses(tmp_path):
    """The bare backbone never answers in its place."""
    exported(tmp_path, "Llama", 1, "policy")
    code = "import sys; from vllm import LLM; LLM(sys.argv[1], dtype='float32', max_model_len=128, enforce_eager=True)"
    for more in ({}, {"model_impl": "transformers"}):
        said = code.replace("dtype=", f"**{more}, dtype=")
        ran = subprocess.run(
            [sys.executable, "-c", said, str(tmp_path)], env=os.environ | {"VLLM_PLUGINS": "none"}, capture_output=True, text=True
        )  # fmt: skip
        assert ran.returncode != 0
        assert "option_lm" in ran.stderr, ran.stderr[-2000:]
