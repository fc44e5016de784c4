"""All prompts of a task begin with the same tokens, whatever its problems begin with."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ollm_rl.errors import ConfigurationError
from ollm_rl.models.tiny import CHAT_TEMPLATE
from ollm_rl.tasks import Problem
from ollm_rl.tasks.prompts import BOX, Prompter, Prompting
from ollm_rl.tasks.records import JsonlConfig

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


class Given:
    def __init__(self, **settings):
        self.config = JsonlConfig(path="x", **settings)
        self.examples = [Problem("e", "1+1?", "2", "2.")]

    def wants_box(self):
        return True


KEPT = "{% if enable_thinking is defined and not enable_thinking %}<nothink>{% endif %}"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE + KEPT, None])
def test_what_stands_around_a_problem_is_the_users_to_say(template):
    backbone = SimpleNamespace(tokenizer=merging_tokenizer(template, True), eos_ids=[2])
    task = Given(
        system_prompt="Be brief.",
        instruction="Q: {problem}\nBox it.",
        prefill="<think>\n",
        chat_template_kwargs={"enable_thinking": False},
    )
    prompter, problem = Prompter.for_task(backbone, task), Problem("x", "2+2?", "4")
    text = prompter.text(problem.problem)
    assert text.index("Be brief.") < text.index("Q: 1+1?\nBox it.") < text.index("Q: 2+2?\nBox it.") and text.endswith(
        "<think>\n"
    )
    assert ("<nothink>" in text) == (template is not None)
    assert backbone.tokenizer.decode(prompter.prefix + prompter.encode(problem)) == text
    assert "Q: " in backbone.tokenizer.decode(prompter.prefix)  # all of it that is the same is shared
    assert prompter.encode_solution("<think>\n4") == prompter.encode_solution("4")
    assert prompter.own(problem) == text != Prompter.for_task(backbone, Given(instruction="{problem}!")).own(problem)


def test_a_box_is_asked_for_where_the_judge_wants_one_and_nothing_shows_one():
    backbone = SimpleNamespace(tokenizer=merging_tokenizer(CHAT_TEMPLATE, True), eos_ids=[2])
    task = Given()
    asked = Prompter.for_task(backbone, task)
    assert asked.text("2+2?").count(BOX) == 2  # of the example's problem too
    assert asked.text(r"2+2? Use \boxed{}.").count(BOX) == 1
    assert BOX not in Prompter.for_task(backbone, Given(instruction="{problem}")).text("2+2?")
    task.examples = [Problem("e", "1+1?", "2", r"\boxed{2}")]
    shown = Prompter.for_task(backbone, task)
    assert BOX not in shown.text("2+2?") and shown.own(Problem("x", "2+2?", "4")) == "2+2?"
    task = Given()
    task.wants_box = lambda: False
    assert BOX not in Prompter.for_task(backbone, task).text("2+2?")


def test_an_instruction_without_a_place_for_the_problem_is_refused():
    with pytest.raises(ConfigurationError, match="task.instruction=Solve.; expected a text with {problem}"):
        JsonlConfig(path="x", instruction="Solve.")


def test_a_template_that_refuses_a_prompt_is_said(tiny):
    class Tokenizer:
        eos_token_id = 0
        chat_template = "not empty"

        def apply_chat_template(self, said, tokenize, add_generation_prompt, **more):
            if said[0]["role"] == "system":
                raise RuntimeError("System role not supported")
            return [1] if more else "text"

    backbone = SimpleNamespace(tokenizer=Tokenizer(), eos_ids=[0])
    with pytest.raises(
        ConfigurationError, match=r"refuses the prompt .RuntimeError: System role not supported.*task.system_prompt"
    ):
        Prompter(backbone, [], Prompting(system_prompt="Hi"))
    with pytest.raises(ConfigurationError, match=r"task.chat_template_kwargs=.*gives? list"):
        Prompter(backbone, [], Prompting(chat_template_kwargs={"return_dict": True}))
