"""The prompts of a task as a chat template, so that a model that leaves the toolkit is asked as it was trained."""

import copy
import json
from collections.abc import Sequence
from typing import Any

from ollm_rl.errors import DataError
from ollm_rl.tasks.base import Problem
from ollm_rl.tasks.prompts import BOX, Prompter


def chat_template(prompter: Prompter) -> str:
    """A Jinja template that makes of a conversation the prompt that the task makes of a problem.

    The examples come before the first turn of the user, the task's system message if the conversation has none, the instruction or the
    request for a box with the last turn of the user, and the prefill after it.
    """
    prompting, tokenizer = prompter.prompting, prompter.tokenizer
    system = [] if prompting.system_prompt is None else [{"role": "system", "content": prompting.system_prompt}]
    content = "message['content']"
    before = [
        "{%- set _ol_given = messages if messages else [] -%}",
        "{%- set _ol_has_system = _ol_given and _ol_given[0]['role'] == 'system' -%}",
        f"{{%- set _ol_system = _ol_given[:1] if _ol_has_system else {_literal(system)} -%}}",
        "{%- set _ol_said = _ol_given[1:] if _ol_has_system else _ol_given -%}",
        f"{{%- set _ol_examples = {_literal(prompter.example_turns())} -%}}",
        "{%- if _ol_said[:_ol_examples|length] == _ol_examples -%}{%- set _ol_examples = [] -%}{%- endif -%}",
        "{%- set _ol = namespace(said=[]) -%}",
        "{%- for message in _ol_said -%}",
        f"{{%- if loop.last and message['role'] == 'user' and {content} is string -%}}",
        f"{{%- set _ol.said = _ol.said + [{{'role': 'user', 'content': {_asked(prompter, content)}}}] -%}}",
        "{%- else -%}{%- set _ol.said = _ol.said + [message] -%}{%- endif -%}",
        "{%- endfor -%}",
        *(
            f"{{%- set {name} = {name} if {name} is defined else {_literal(value)} -%}}"
            for name, value in prompting.chat_template_kwargs.items()
        ),
        # Templates are read with trim_blocks: the line break after this block is dropped, and the model's own template begins a line.
        "{%- set messages = _ol_system + _ol_examples + _ol.said %}\n",
    ]
    own = tokenizer.get_chat_template() if tokenizer.chat_template else _plain(tokenizer)
    prefill = f"{{% if add_generation_prompt %}}{{{{ {_literal(prompting.prefill)} }}}}{{% endif %}}"
    return "".join(before) + own.removesuffix("\n") + (prefill if prompting.prefill else "")


def tokenizer_with(template: str, tokenizer: Any) -> Any:
    """A copy of a tokenizer with that chat template."""
    found = copy.deepcopy(tokenizer)
    found.chat_template = template
    return found


def differences(prompter: Prompter, tokenizer: Any, problems: Sequence[Problem]) -> list[Problem]:
    """The problems whose prompts a tokenizer's chat template does not make as the task does, token by token.

    Raises:
        DataError: the template fails.
    """
    found = []
    for problem in problems:
        said = [{"role": role, "content": text} for role, text in problem.turns]
        said.append({"role": "user", "content": problem.problem})
        try:
            ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # a template is a program of its own
            raise DataError(
                f"problem {problem.id}: the chat template that is to leave with the model refuses it ({type(error).__name__}: {error})"
            ) from error
        if list(ids) != [*prompter.prefix, *prompter.encode(problem)]:
            found.append(problem)
    return found


def _asked(prompter: Prompter, content: str) -> str:
    """What the user says, as `Prompter` makes it of a problem: a Jinja expression of the expression `content`."""
    if (instruction := prompter.prompting.instruction) is not None:
        return f"{_literal(instruction)}.replace('{{problem}}', {content})"
    if prompter.asks_for_box:
        boxed, request = _literal("\\boxed"), _literal(f"\n\n{BOX}")
        return f"({content} if {boxed} in {content} else {content} + {request})"
    return content


def _plain(tokenizer: Any) -> str:
    """The template of a tokenizer that has none: the plain text that `Prompter.text` makes."""
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else ""
    return (
        f"{{{{- {_literal(begins)} -}}}}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}{{- message['content'] + '\\n\\n' -}}"
        "{%- elif message['role'] == 'user' -%}{{- 'Problem: ' + message['content'] + '\\n' -}}"
        "{%- else -%}{{- 'Solution: ' + message['content'] + '\\n\\n' -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'Solution: ' -}}{%- endif -%}"
    )


def _literal(value: Any) -> str:
    """A value as a Jinja expression: JSON, but for its three words. Jinja escapes what is not ASCII itself."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return json.dumps(value, ensure_ascii=False)
