"""Sums whose solutions mix two languages, to see whether RL mixes them more: every line is in Russian with probability `russian`, else in English.

    ollm-rl compare task=benchmarks.mixed.MixedSum agents=[prior,grpo,lora_sft,lora_grpo] seeds=[0]

Which language a line has is drawn apart from whether the solution is a careful one, so the verdict does not pay for a language.
`foreign_script_rate` of the results says how many greedy texts have Russian letters.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

from ollm_rl.common.settings import setting
from ollm_rl.tasks.base import Problem
from ollm_rl.tasks.generated import ChainSum, ChainSumConfig

ENGLISH, RUSSIAN = ("Then", "The answer is"), ("Затем", "Ответ:")


@dataclass(frozen=True)
class MixedSumConfig(ChainSumConfig):
    """Of `MixedSum`."""

    name: str = setting("mixed_sum", "which task it is; for tables and files")
    russian: float = setting(0.3, "share of lines that are in Russian", at_least=0, at_most=1)
    max_new_tokens: int = setting(80, "token budget of an episode", at_least=1)


class MixedSum(ChainSum):
    """`ChainSum` with a word in front of every step, in one of two languages."""

    config_class = MixedSumConfig

    def _problem(self, item: dict[str, Any], id: str, split: str, styles: random.Random) -> Problem:
        problem = super()._problem(item, id, split, styles)
        languages = random.Random(f"languages/{id}")
        *steps, last = (problem.solution or "").split("\n")
        lines = []
        for line in [*steps, last]:
            then, answer = RUSSIAN if languages.random() < self.config.russian else ENGLISH
            lines.append(line.replace(ENGLISH[1], answer) if line is last else f"{then} {line}")
        return replace(problem, solution="\n".join(lines))
