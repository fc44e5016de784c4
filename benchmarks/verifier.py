"""Verdicts a second: plain numbers, and symbolic answers beside math-verify's own comparison.

    python benchmarks/verifier.py [--repeats 5] [--out benchmarks/results/verifier.json]

Every answer is different, so that no cache helps but that of a gold's parse, as eight samples of one problem have it.
The two sides alternate in one run; medians are reported, and one JSON line is printed last.
"""

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path

from math_verify import parse, verify

from ollm_rl.reward.verifier import Verifier

SAMPLES = 8
SOLUTION = "First we note that the terms pair up, so the total is twice the half. " * 4 + "The answer is $\\boxed{%s}$."


def plain(draw: random.Random, problems: int) -> list[tuple[str, str]]:
    """(gold, text): integers, decimals and fractions, half of them right."""
    pairs = []
    for _ in range(problems):
        gold = draw.randint(-(10**6), 10**6)
        for _ in range(SAMPLES):
            answer = gold if draw.random() < 0.5 else draw.randint(-(10**6), 10**6)
            form = draw.choice((f"{answer}", f"{answer}.0", f"\\frac{{{3 * answer}}}{{3}}", f"{answer:,}"))
            pairs.append((str(gold), SOLUTION % form))
    return pairs


def symbolic(draw: random.Random, problems: int) -> list[tuple[str, str]]:
    """(gold, text): radicals, multiples of pi, powers, binomials, polynomials; half of them right."""
    pairs = []
    for _ in range(problems):
        kind = draw.randrange(5)
        a, b, c = draw.randint(2, 60), draw.randint(2, 60), draw.choice((2, 3, 5, 7, 11, 13))
        for sample in range(SAMPLES):
            d = 0 if draw.random() < 0.5 else draw.randint(1, 9)
            k = draw.randint(2, 50) + 50 * sample  # makes every answer a text of its own
            gold, answer = (
                (rf"{a}+{b}\sqrt{{{c}}}", rf"\frac{{{k * b}\sqrt{{{c}}}+{k * (a + d)}}}{{{k}}}"),
                (rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{k * a + d}}}{{{k * b}}}\pi"),
                (rf"2^{{{a}}}-{b}", rf"2^{{{a}-{k}}}\cdot 2^{{{k}}}-{b + d}"),
                (rf"\binom{{{a + 60}}}{{{b}}}", rf"\binom{{{a + 60}}}{{{b}}}+{k}-{k + d}"),
                (rf"x^{{2}}+{a + b}x+{a * b}", rf"(x+{a})(x+{b})+{k}-{k + d}"),
            )[kind]
            pairs.append((gold, SOLUTION % answer))
    return pairs


def rate(pairs: list[tuple[str, str]]) -> float:
    with Verifier() as verifier:
        verifier.check("x+1", r"\boxed{1+x}")  # started
        start = time.perf_counter()
        verdicts = verifier.check_many(pairs)
        seconds = time.perf_counter() - start
    assert {v.reason for v in verdicts} == {"equal", "different"}
    return len(pairs) / seconds


def rate_of_math_verify(pairs: list[tuple[str, str]]) -> float:
    """In this process, golds parsed once, without the limits that a verifier needs."""
    golds: dict[str, list] = {}
    start = time.perf_counter()
    for gold, text in pairs:
        if gold not in golds:
            golds[gold] = parse(f"${gold}$", parsing_timeout=None)
        verify(golds[gold], parse(text, parsing_timeout=None), timeout_seconds=None)
    return len(pairs) / (time.perf_counter() - start)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    figures: dict[str, list[float]] = {"plain_per_s": [], "symbolic_per_s": [], "math_verify_symbolic_per_s": []}
    for repeat in range(given.repeats):
        draw = random.Random(f"{given.seed}/{repeat}")
        numbers, formulas = plain(draw, 2_000), symbolic(draw, 150)
        figures["plain_per_s"].append(rate(numbers))
        figures["symbolic_per_s"].append(rate(formulas))
        figures["math_verify_symbolic_per_s"].append(rate_of_math_verify(formulas[: 40 * SAMPLES]))
        print(f"repeat {repeat + 1}: " + ", ".join(f"{k} {v[-1]:,.0f}" for k, v in figures.items()), flush=True)
    ratios = [a / b for a, b in zip(figures["symbolic_per_s"], figures["math_verify_symbolic_per_s"], strict=True)]
    result = {
        "command": "python benchmarks/verifier.py", "seed": given.seed, "repeats": given.repeats, "cores": os.cpu_count(),
        "n_plain": len(numbers), "n_symbolic": len(formulas),
        **{k: round(statistics.median(v), 1) for k, v in figures.items()},
        "symbolic_ratio_to_math_verify": round(statistics.median(ratios), 2),
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
