"""From problems to token ids: few-shot chat prompts, and the part that all of them share."""

from ollm_rl.backbone import Backbone
from ollm_rl.errors import DataError
from ollm_rl.tasks import Problem, Task


class Prompter:
    """Turns problems into prompts: the examples as earlier turns of the chat, then the problem.

    A tokenizer with a chat template uses it; one without gets plain `Problem: ... Solution: ...` text.
    All prompts of a task begin with the same tokens, `prefix`; `encode` returns what comes after.
    """

    def __init__(self, backbone: Backbone, examples: list[Problem]):
        self.tokenizer = backbone.tokenizer
        self.eos_id = backbone.eos_ids[0] if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id
        self.examples = [e for e in examples if e.solution]
        # What every prompt shares, found by comparing two that differ in their first character.
        one, two = self._ids("1 A"), self._ids("Let x")
        self.prefix: list[int] = []
        for a, b in zip(one, two, strict=False):
            if a != b:
                break
            self.prefix.append(a)

    @classmethod
    def for_task(cls, backbone: Backbone, task: Task) -> "Prompter":
        return cls(backbone, task.examples)

    def encode(self, problem: Problem) -> list[int]:
        """Tokens of the prompt after the shared prefix.

        Raises:
            DataError: the tokenizer merges the problem's first characters into the prefix.
        """
        ids = self._ids(problem.problem)
        cut = len(self.prefix)
        if ids[:cut] != self.prefix or len(ids) == cut:
            raise DataError(f"problem {problem.id}: its prompt does not begin with the prefix that all others share")
        return ids[cut:]

    def encode_solution(self, solution: str) -> list[int]:
        """Tokens of a solution, closed by the end-of-text token."""
        return [*self.tokenizer(solution, add_special_tokens=False)["input_ids"], self.eos_id]

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def text(self, problem: str) -> str:
        """The whole prompt as text."""
        if self.tokenizer.chat_template:
            turns = []
            for e in self.examples:
                turns += [{"role": "user", "content": e.problem}, {"role": "assistant", "content": e.solution}]
            turns.append({"role": "user", "content": problem})
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        solved = "".join(f"Problem: {e.problem}\nSolution: {e.solution}\n\n" for e in self.examples)
        return f"{solved}Problem: {problem}\nSolution: "

    def _ids(self, problem: str) -> list[int]:
        return self.tokenizer(self.text(problem), add_special_tokens=not self.tokenizer.chat_template)["input_ids"]
