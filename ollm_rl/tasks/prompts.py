"""From problems to token ids: few-shot chat prompts, and the part that all of them share."""

import os.path
from typing import Any, Protocol

from ollm_rl.errors import DataError
from ollm_rl.tasks.base import Problem, Task

LOOKED_BACK = 16  # characters, for the end of the shared prefix
KNOWN = 20_000  # prompts whose tokens are kept


class HasTokenizer(Protocol):
    """What a prompter needs of a backbone."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def eos_ids(self) -> list[int]: ...


class Prompter:
    """Turns problems into prompts: the examples as earlier turns of the chat, then the problem.

    A tokenizer with a chat template uses it; one without gets plain `Problem: ... Solution: ...` text.
    All prompts of a task begin with the same tokens, `prefix`; `encode` returns what comes after.
    """

    def __init__(self, backbone: HasTokenizer, examples: list[Problem]):
        self.tokenizer = backbone.tokenizer
        self.eos_id = backbone.eos_ids[0] if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id
        self.examples = [e for e in examples if e.solution]
        self._known: dict[str, list[int]] = {}
        # What every prompt shares, found by comparing two that differ in their first character.
        one, two = self._tokens(self.text("1 A")), self._tokens(self.text("Let x"))
        self.prefix: list[int] = list(os.path.commonprefix([one, two]))
        shared = os.path.commonprefix([self.text("1 A"), self.text("Let x")])
        ends = range(len(shared), max(len(shared) - LOOKED_BACK, -1), -1)
        # The text that those tokens stand for: a space at its end may belong to the first word of the problem.
        self._head = next((shared[:end] for end in ends if self._tokens(shared[:end]) == self.prefix), None)

    @classmethod
    def for_task(cls, backbone: HasTokenizer, task: Task) -> "Prompter":
        return cls(backbone, task.examples)

    def encode(self, problem: Problem) -> list[int]:
        """Tokens of the prompt after the shared prefix.

        Where the tokenizer would merge the problem's first characters into the prefix, as it merges line breaks, the rest of
        the prompt is tokenized on its own.

        Raises:
            DataError: the prompt's text does not begin as all others do.
        """
        if problem.problem not in self._known:  # the same problems come again and again
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[problem.problem] = self._encoded(problem)
        return list(self._known[problem.problem])

    def _encoded(self, problem: Problem) -> list[int]:
        text = self.text(problem.problem)
        ids, cut = self._tokens(text), len(self.prefix)
        if ids[:cut] == self.prefix and len(ids) > cut:
            return ids[cut:]
        if self._head is None or not text.startswith(self._head) or len(text) == len(self._head):
            raise DataError(f"problem {problem.id}: its prompt does not begin with the prefix that all others share")
        return list(self.tokenizer(text[len(self._head) :], add_special_tokens=False)["input_ids"])

    def encode_solution(self, solution: str) -> list[int]:
        """Tokens of a solution, closed by the end-of-text token."""
        return [*self.tokenizer(solution, add_special_tokens=False)["input_ids"], self.eos_id]

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def text(self, problem: str) -> str:
        """The whole prompt as text."""
        if self.tokenizer.chat_template:
            turns = []
            for e in self.examples:
                turns += [{"role": "user", "content": e.problem}, {"role": "assistant", "content": e.solution}]
            turns.append({"role": "user", "content": problem})
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        solved = "".join(f"Problem: {e.problem}\nSolution: {e.solution}\n\n" for e in self.examples)
        return f"{solved}Problem: {problem}\nSolution: "

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=not self.tokenizer.chat_template)["input_ids"])
