"""How right the verifier is on real gold answers: accepted as answers, told from one another, and from tampered ones.

    python benchmarks/golds.py <omni_math.jsonl> [--others 50] [--seed 0] [--out benchmarks/results/golds.json]

Lists every pair that is accepted although the two are written differently, for a human to look at, and every published
solution with a box that is not. Prints one JSON line last.
"""

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path

from ollm_rl.reward.normal_form import normal_form, plain_number
from ollm_rl.reward.verifier import Verifier
from ollm_rl.tasks import OmniMath
from ollm_rl.tasks.base import format_answer


def tampered(gold: str, draw: random.Random) -> list[str]:
    """A numeric gold plus and minus 1, times 10, with another sign, a digit changed, the last digit dropped; a formula
    plus 1, with another sign, and with each of its digits changed."""
    form = normal_form(gold)
    number = plain_number(form)
    if number is not None and number.denominator == 1:
        n = int(number)
        digits, sign = str(abs(n)), -1 if n < 0 else 1
        place = draw.randrange(len(digits))
        other = digits[:place] + str((int(digits[place]) + draw.randint(1, 9)) % 10) + digits[place + 1 :]
        values = {n + 1, n - 1, 10 * n, -n, sign * int(other), sign * int(digits[:-1] or "0")}
        return [str(v) for v in sorted(values - {n})]
    changed = [f"{form}+1", f"-({form})"]
    for digit in re.finditer("[0-9]", form):
        changed.append(form[: digit.start()] + str((int(digit[0]) + draw.randint(1, 9)) % 10) + form[digit.end() :])
    return changed


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("path")
    options.add_argument("--others", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    draw = random.Random(given.seed)
    task = OmniMath(given.path)
    problems = sorted([*task.problems("test", 10**6), *task.left_out], key=lambda p: p.id)
    golds = [p.answer for p in problems]
    pairs = [(g, format_answer(golds[i])) for g in golds for i in draw.sample(range(len(golds)), given.others)]
    attacks = [(g, format_answer(t)) for g in golds for t in tampered(g, draw)]
    boxed = [p for p in problems if p.solution and r"\boxed" in p.solution.removesuffix(format_answer(p.answer))]
    with Verifier() as verifier:
        own = verifier.check_many([(g, format_answer(g)) for g in golds])
        others, attacked = verifier.check_many(pairs), verifier.check_many(attacks)
        published = verifier.check_many([(p.answer, p.solution or "") for p in boxed])
    alike = Counter((g, v.answer) for (g, _), v in zip(pairs, others, strict=True) if v.correct and v.answer != g)
    fooled = [(g, v.answer) for (g, _), v in zip(attacks, attacked, strict=True) if v.correct]
    refused = [(p.id, p.answer, v.answer, v.reason) for p, v in zip(boxed, published, strict=True) if not v.correct]
    lost = [p.id for p, v in zip(problems, own, strict=True) if not v.correct]
    for title, rows in (
        ("accepted for another", sorted(alike)),
        ("tampered, accepted", fooled),
        ("published, refused", refused),
    ):
        print(f"{title}:", *(f"  {row}" for row in rows), sep="\n")
    result = {
        "command": "python benchmarks/golds.py <omni_math.jsonl>", "seed": given.seed, "golds": len(golds),
        "accepted": len(golds) - len(lost), "malformed": lost, "pairs_of_others": len(pairs),
        "accepted_for_another": sorted(alike), "tampered": len(attacks), "tampered_accepted": fooled,
        "published_with_box": len(boxed), "published_accepted": len(boxed) - len(refused), "published_refused": refused,
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
