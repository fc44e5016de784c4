"""All prompts of a task begin with the same tokens, whatever its problems begin with."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ollm_rl.models.tiny import CHAT_TEMPLATE
from ollm_rl.tasks import Problem
from ollm_rl.tasks.prompts import Prompter

MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# As the tokenizers of GPT-2, Llama 3 and Qwen: several line breaks, several spaces, a word with the space before it.
MERGED = [
    ("Ċ", "Ċ"),
    ("Ċ", "Ġ"),
    ("ĊĊ", "Ċ"),
    ("Ġ", "Ġ"),
    ("Ġ", "A"),
    ("Ġ", "L"),
    (":", "Ġ"),
    ("č", "Ċ"),
    ("ĉ", "ĉ"),
    ("Ċ", "W"),
]


def merging_tokenizer(chat_template: str | None, by_words: bool):
    """Bytes with some merges, within words and white space (`by_words`) or across them."""
    tokens = MARKERS + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [a + b for a, b in MERGED if a + b not in tokens]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=MERGED))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_words)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(MARKERS)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=chat_template)


@pytest.mark.parametrize("by_words", [True, False])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_a_problem_may_begin_and_end_with_anything(template, by_words):
    tokenizer = merging_tokenizer(template, by_words)
    prompter = Prompter(SimpleNamespace(tokenizer=tokenizer, eos_ids=[2]), [Problem("e", "1+1?", "2", "2.")])
    assert len(prompter.prefix) > 5
    for edge in ("", "\n", "\n\n", "\n \n", " ", "  ", "\t", "\t\t", "\r\n", "\u3000", ":", ". ", "#"):
        for text in (f"{edge}What is 1+1?", f"{edge}A and B?", f"What is 1+1?{edge}", f"{edge}A{edge}", edge):
            tokens = prompter.prefix + prompter.encode(Problem("x", text, "2"))
            assert tokenizer.decode(tokens) == prompter.text(text), repr(text)


def test_prompts_that_do_not_merge_are_tokenized_as_a_whole():
    tokenizer = merging_tokenizer(None, True)
    prompter = Prompter(SimpleNamespace(tokenizer=tokenizer, eos_ids=[2]), [])
    whole = tokenizer(prompter.text("Let x be 1."))["input_ids"]
    assert prompter.prefix + prompter.encode(Problem("x", "Let x be 1.", "1")) == whole
    assert tokenizer.convert_ids_to_tokens(whole)[len(prompter.prefix)] == "ĠL"
