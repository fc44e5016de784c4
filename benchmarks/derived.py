"""A reward for `chain_sum` and `leg_counting` that no lucky guess gets: the answer is right, and the text derives it.

    ollm-rl oracle task=chain_sum reward=custom reward._target_=benchmarks.derived.derived

Derived means: every line `a op b = c` of the text holds, there are as many as the problem needs (a sum of k terms k - 1; k kinds of animals
a product each and k - 1 sums), each uses only numbers of the problem, numbers of legs or results of earlier lines, and the last result is
the answer. A text that says the answer at once is a guess, unless nothing is to be computed.
"""

import re
from collections.abc import Sequence
from operator import add, mul, sub
from typing import Any

from ollm_rl.reward import Verifier

LINE = re.compile(r"(-?\d+) ([-+*]) (\d+) = (-?\d+)")
DO = {"+": add, "-": sub, "*": mul}
LEGS = range(15)


def derived(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[str] = (),
    *,
    answer: Sequence[str],
    metadata: Sequence[dict[str, Any]],
    **_: Any,
) -> list[float]:
    """1.0 for a right answer that the text derives, else 0.0."""
    with Verifier() as verifier:
        verdicts = verifier.check_many(list(zip(answer, completions, strict=True)))
    return [
        float(v.correct and is_derived(text, gold, facts))
        for v, text, gold, facts in zip(verdicts, completions, answer, metadata, strict=True)
    ]


def is_derived(text: str, answer: str, facts: dict[str, Any]) -> bool:
    """Whether the lines of a text lead to the answer.

    Args:
        facts: what reasoning_gym says of the problem: `expression` of a sum, `animals` with their numbers.
    """
    if animals := facts.get("animals"):
        needed, known = 2 * len(animals) - 1, {*map(int, animals.values()), *LEGS}
    else:
        terms = [int(n) for n in re.findall(r"\d+", facts["expression"])]
        needed, known = len(terms) - 1, set(terms)
    results: list[int] = []
    for a, op, b, c in LINE.findall(text):
        left, right, result = int(a), int(b), int(c)
        if DO[op](left, right) != result or not {left, right} <= known | set(results):
            return False
        results.append(result)
    return len(results) >= needed and (not results or results[-1] == int(answer))
