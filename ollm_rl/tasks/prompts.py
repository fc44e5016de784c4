"""From problems to token ids: few-shot chat prompts, and the part that all of them share."""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.tasks.base import Problem, Task, TaskConfig

LOOKED_BACK = 16  # characters, for the end of the shared prefix
KNOWN = 20_000  # prompts whose tokens are kept
BOX = "Put the final answer in \\boxed{}."


@dataclass(frozen=True)
class Prompting:
    """What stands in a prompt beside problem and examples. The settings `task.<name>`; in Python `Task.prompting`.

    Attributes:
        system_prompt: the system message; None: whatever the chat template says by itself.
        instruction: what the user says, with `{problem}` where the problem stands.
        prefill: the end of every prompt, after which the answer goes on.
        chat_template_kwargs: arguments of the chat template.
        asks_for_box: without an instruction, problems are followed by a request for a box, unless they or the examples have one.
    """

    system_prompt: str | None = None
    instruction: str | None = None
    prefill: str = ""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    asks_for_box: bool = False

    @classmethod
    def of(cls, task: Task) -> "Prompting":
        """That of a task: its own, or by its settings."""
        if isinstance(own := getattr(task, "prompting", None), cls):
            return own
        config = getattr(task, "config", None)
        if not isinstance(config, TaskConfig):
            return cls()
        system = getattr(task, "system_prompt", None) or config.system_prompt
        return cls(system, config.instruction, config.prefill, config.chat_template_kwargs, task.wants_box())


class HasTokenizer(Protocol):
    """What a prompter needs of a backbone."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def eos_ids(self) -> list[int]: ...


class Prompter:
    """Turns problems into prompts: the examples as earlier turns of the chat, then the problem.

    A tokenizer with a chat template uses it; one without gets plain `Problem: ... Solution: ...` text.
    All prompts of a task begin with the same tokens, `prefix`; `encode` returns what comes after. `asks_for_box`: a request for a box
    follows the problems that have none.
    """

    def __init__(self, backbone: HasTokenizer, examples: list[Problem], prompting: Prompting | None = None):
        self.prompting = prompting or Prompting()
        self.tokenizer = backbone.tokenizer
        self.eos_id = backbone.eos_ids[0] if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id
        self.examples = [e for e in examples if e.solution]
        self.asks_for_box = self.prompting.asks_for_box and not any(
            r"\boxed" in (e.solution or "") for e in self.examples
        )
        asked = self.prompting  # what stands after a problem, and so is not in the prefix
        self._plain = not (self.asks_for_box or asked.instruction or asked.prefill or asked.chat_template_kwargs)
        self._known: dict[tuple[Any, ...], list[int]] = {}
        # What every prompt shares, found by comparing two that differ in their first character.
        some = [self.text("1 A"), self.text("Let x")]
        if asked.instruction is not None and not asked.instruction.startswith("{problem}"):
            # What stands before a problem does not stand before what was said earlier.
            some.append(self.text("1 A", (("user", "Let x"), ("assistant", "1 A"))))
        self.prefix: list[int] = list(os.path.commonprefix([self._tokens(text) for text in some]))
        shared = os.path.commonprefix(some)
        ends = range(len(shared), max(len(shared) - LOOKED_BACK, -1), -1)
        # The text that those tokens stand for: a space at its end may belong to the first word of the problem.
        self._head = next((shared[:end] for end in ends if self._tokens(shared[:end]) == self.prefix), None)

    @classmethod
    def for_task(cls, backbone: HasTokenizer, task: Task) -> "Prompter":
        return cls(backbone, task.examples, Prompting.of(task))

    def encode(self, problem: Problem) -> list[int]:
        """Tokens of the prompt after the shared prefix.

        Where the tokenizer would merge the problem's first characters into the prefix, as it merges line breaks, the rest of
        the prompt is tokenized on its own.

        Raises:
            DataError: the prompt's text does not begin as all others do.
        """
        key = problem.problem, problem.turns
        if key not in self._known:  # the same problems come again and again
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[key] = self._encoded(problem)
        return list(self._known[key])

    def own(self, problem: Problem) -> str:
        """What tells this problem's prompt from others with the same prefix; for keys of what is kept."""
        return problem.problem if self._plain and not problem.turns else self.text(problem.problem, problem.turns)

    def _encoded(self, problem: Problem) -> list[int]:
        found = self.after_prefix(self.text(problem.problem, problem.turns))
        if found is None:
            raise DataError(f"problem {problem.id}: its prompt does not begin with the prefix that all others share")
        return found

    def after_prefix(self, text: str) -> list[int] | None:
        """Tokens of a whole prompt after the shared prefix; None if it does not begin with that, or has nothing after it."""
        ids, cut = self._tokens(text), len(self.prefix)
        if ids[:cut] == self.prefix and len(ids) > cut:
            return ids[cut:]
        if self._head is None or not text.startswith(self._head) or len(text) == len(self._head):
            return None
        return list(self.tokenizer(text[len(self._head) :], add_special_tokens=False)["input_ids"])

    def encode_solution(self, solution: str) -> list[int]:
        """Tokens of a solution after what all answers begin with (`prefill`), closed by the end-of-text token."""
        solution = solution.removeprefix(self.prompting.prefill)
        return [*self.tokenizer(solution, add_special_tokens=False)["input_ids"], self.eos_id]

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def text(self, problem: str, turns: Sequence[tuple[str, str]] = ()) -> str:
        """The whole prompt as text; `turns`: what was said before the problem, as (role, text)."""
        asked, system = self.prompting, self.prompting.system_prompt
        if self.tokenizer.chat_template:
            said, own = self.messages(problem, turns), asked.chat_template_kwargs
            try:
                text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, **own)
            except Exception as error:  # a template is a program of its own
                raise ConfigurationError(
                    f"the chat template of the backbone refuses the prompt ({type(error).__name__}: {error}). It was given messages of "
                    f"{', '.join(dict.fromkeys(m['role'] for m in said))} and {own or 'no arguments'}: change task.system_prompt, "
                    "task.chat_template_kwargs or the data's messages."
                ) from error
            if not isinstance(text, str):
                raise ConfigurationError(
                    f"task.chat_template_kwargs={own} makes the chat template give {type(text).__name__}; expected arguments of the template itself"
                )
            return f"{text}{asked.prefill}"
        begun = "" if system is None else f"{system}\n\n"
        solved = "".join(f"Problem: {self._asked(e.problem)}\nSolution: {e.solution}\n\n" for e in self.examples)
        before = "".join(f"Problem: {text}\n" if role == "user" else f"Solution: {text}\n\n" for role, text in turns)
        return f"{begun}{solved}{before}Problem: {self._asked(problem)}\nSolution: {asked.prefill}"

    def messages(self, problem: str, turns: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
        """The whole prompt as messages, before a chat template; `turns` as in `text`."""
        system = self.prompting.system_prompt
        said: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        said += self.example_turns()
        said += [{"role": role, "content": text} for role, text in turns]
        return [*said, {"role": "user", "content": self._asked(problem)}]

    def example_turns(self) -> list[dict[str, Any]]:
        """The examples as earlier turns of a chat."""
        said: list[dict[str, Any]] = []
        for e in self.examples:
            said += [{"role": "user", "content": self._asked(e.problem)}, {"role": "assistant", "content": e.solution}]
        return said

    def _asked(self, problem: str) -> str:
        """What the user says."""
        if self.prompting.instruction is not None:
            return self.prompting.instruction.replace("{problem}", problem)
        return f"{problem}\n\n{BOX}" if self.asks_for_box and r"\boxed" not in problem else problem

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=not self.tokenizer.chat_template)["input_ids"])
