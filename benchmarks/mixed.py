"""Sums whose solutions mix two languages, to see whether RL mixes them more: every line is in Russian with probability `russian`, else in English.

    ollm-rl compare task=benchmarks.mixed.MixedSum 'agents=[prior,grpo,lora_sft,lora_grpo]' 'seeds=[0]' name=mixed
    python -m benchmarks.mixed runs/mixed --out benchmarks/results/mixed.json

Which language a line has is drawn apart from whether the solution is a careful one, so the verdict does not pay for a language. The
second command counts, of every agent's greedy and sampled texts, the lines in Russian and the texts that have lines of both languages.
"""

import argparse
import json
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ollm_rl.common.settings import setting
from ollm_rl.evaluation.comparison import texts_of
from ollm_rl.evaluation.metrics import foreign_script
from ollm_rl.evaluation.results import Results
from ollm_rl.tasks.base import Problem
from ollm_rl.tasks.generated import ChainSum, ChainSumConfig

ENGLISH, RUSSIAN = ("Then", "The answer is"), ("Затем", "Ответ:")
SHOWN = ("seed", "n_problems", "accuracy", "accuracy_ci95", "mean_length", "no_answer_rate", "repetition_rate", "kl_from_start", "train_episodes", "train_seconds")  # fmt: skip


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
        words = [RUSSIAN if languages.random() < self.config.russian else ENGLISH for _ in [*steps, last]]
        lines = [f"{then} {step}" for (then, _), step in zip(words, steps, strict=False)]
        return replace(problem, solution="\n".join([*lines, last.replace(ENGLISH[1], words[-1][1])]))


def languages_of(texts: Sequence[str]) -> dict[str, float]:
    """Shares of lines with letters of a foreign script, which are Russian ones here, and of texts that have such lines, and that have lines with and without."""
    lines = [[foreign_script(line) for line in text.splitlines() if line.strip()] for text in texts]
    every = [russian for each in lines for russian in each]
    return {
        "russian_lines": sum(every) / max(1, len(every)),
        "russian_texts": sum(any(each) for each in lines) / len(texts),
        "mixed_texts": sum(any(each) and not all(each) for each in lines) / len(texts),
        "lines": len(every) / len(texts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"command": shlex.join(["python", "-m", "benchmarks.mixed", *sys.argv[1:]])}
    for row in Results.load(given.run).rows:
        texts = {kind: languages_of([line["text"] for line in texts_of(row, kind)]) for kind in ("greedy", "sampled")}
        figures = {key: value for key, value in row.to_dict().items() if key in SHOWN or key.startswith("avg@")}
        loss = row.general.loss if row.general else None
        found[f"{row.agent}-{row.seed}"] = figures | texts | {"general_loss": loss}
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
