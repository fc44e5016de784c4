"""The chat template that leaves with a model: token by token what the task asks."""

import copy

import pytest

from ollm_rl.tasks import make_task
from ollm_rl.tasks.base import Problem
from ollm_rl.tasks.chat_template import chat_template, differences, tokenizer_with
from ollm_rl.tasks.prompts import BOX, Prompter, Prompting
from tests.architectures import random_backbone

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<s>be kind</s>\n' }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '</s>\n' }}{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}\n"
)
EXAMPLES = [
    Problem("a", 'Say "1 \\ 2" {{ x }} {% y %}', "3", "It's 3 {# no #}\n\\boxed{3} 🙂"),
    Problem("b", "naïve 日本 {problem}", "4", "4\r\n"),
]
PROBLEMS = [
    Problem("1", "7 + 2 = ?", ""),
    Problem("2", "{% raw %} {{ boom }} \\boxed{} 'q' \"q\" \n\n  x ", ""),
    Problem("3", "and {problem}?", "", turns=(("user", "first"), ("assistant", "second"))),
    Problem("4", "🙂", ""),
]
PROMPTINGS = {
    "plain": Prompting(),
    "box": Prompting(asks_for_box=True),
    "instruction": Prompting(instruction="Q: {problem}\nBe 'brief' {% now %}; again: {problem}"),
    "system": Prompting(system_prompt="You are 'exact' {{ and }} \\ kind."),
    "prefill": Prompting(prefill="So {{ }} 'we'\n"),
    "all": Prompting(
        "sys", "({problem})", "Well, ", {"enable_thinking": False, "date": None, "names": ["a", {"b": 1}]}
    ),
}


class Tokenized:
    """What a prompter needs of a backbone."""

    def __init__(self, template):
        self.tokenizer = copy.deepcopy(random_backbone("llama").tokenizer)
        self.tokenizer.chat_template = template
        self.eos_ids = [self.tokenizer.eos_token_id]


@pytest.mark.parametrize("template", [CHATML, "  \n" + CHATML, None], ids=["chatml", "begins with space", "none"])
@pytest.mark.parametrize("examples", [EXAMPLES, []], ids=["examples", "no examples"])
@pytest.mark.parametrize("prompting", PROMPTINGS, ids=str)
def test_it_asks_as_the_task_does(template, examples, prompting):
    prompter = Prompter(Tokenized(template), examples, PROMPTINGS[prompting])
    tokenizer = tokenizer_with(chat_template(prompter), prompter.tokenizer)
    for problem in PROBLEMS:
        said = [{"role": role, "content": text} for role, text in problem.turns]
        said.append({"role": "user", "content": problem.problem})
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        assert text == prompter.text(problem.problem, problem.turns)
    assert not differences(prompter, tokenizer, PROBLEMS)
    assert prompter.tokenizer.chat_template == template  # the backbone's own stays


@pytest.mark.parametrize("name", ["chain_sum", "leg_counting", "shortest_path", "python_functions"])
def test_tasks_of_ours(tiny, name):
    task = make_task(name)
    prompter = Prompter.for_task(tiny.backbone, task)
    tokenizer = tokenizer_with(chat_template(prompter), tiny.backbone.tokenizer)
    assert not differences(prompter, tokenizer, task.problems("test", 20))


def test_conversations_that_are_no_problem():
    """A system message of one's own, examples that are there already, and an answer that is to be gone on with."""
    prompter = Prompter(Tokenized(CHATML), EXAMPLES, PROMPTINGS["system"])
    tokenizer = tokenizer_with(chat_template(prompter), prompter.tokenizer)
    ask = {"role": "user", "content": "1 + 1"}

    def text(messages, **more):
        return tokenizer.apply_chat_template(messages, tokenize=False, **more)

    own = text([{"role": "system", "content": "mine"}, ask])
    assert "mine" in own and "exact" not in own and own.index("mine") < own.index("naïve")
    assert text([*prompter.example_turns(), ask]) == text([ask])
    assert text([ask]) + "<|assistant|>\n" == text([ask], add_generation_prompt=True)
    assert text([ask, {"role": "assistant", "content": "2"}, ask]).count("naïve") == 1


def test_a_template_that_asks_otherwise_is_noticed():
    prompter = Prompter(Tokenized(CHATML), EXAMPLES, Prompting(asks_for_box=False))
    asks = Prompter(Tokenized(CHATML), [], Prompting(asks_for_box=True))
    assert BOX in asks.text("1 + 1")
    assert differences(prompter, tokenizer_with(chat_template(asks), asks.tokenizer), PROBLEMS[:1]) == PROBLEMS[:1]
