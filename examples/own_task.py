"""A task of one's own from end to end: a file of problems, a reward, and the commands from `doctor` to `export`.

    python examples/own_task.py --folder shop       # SmolLM2; the accuracies of prior and grpo over two seeds are its last lines
    python examples/own_task.py --folder shop --backbone tiny     # a minute or two; greedy accuracy 0.000 for both: a random model

It writes shop/problems.jsonl and shop/my_reward.py, and runs each command that it prints in that directory.
"""

import argparse
import json
import random
from contextlib import chdir
from pathlib import Path

from ollm_rl.cli.app import main as ollm_rl

REWARD = '''"""Right is 1. Wrong is 0.2 if every equation in the text holds: the slip is in the plan then, not in the arithmetic."""

import re

import ollm_rl as ol

verify = ol.MathVerify()


def right_or_sound(prompts, completions, answer, **columns):
    right = verify(prompts=prompts, completions=completions, answer=answer)
    return [r or 0.2 * sound(c) for r, c in zip(right, completions)]


def sound(text):
    found = re.findall(r"(\\d+) ([*+-]) (\\d+) = (\\d+)", text)
    compute = {"*": int.__mul__, "+": int.__add__, "-": int.__sub__}
    return bool(found) and all(compute[sign](int(a), int(b)) == int(c) for a, sign, b, c in found)
'''


def rows(n: int) -> list[dict[str, str]]:
    """Purchases, half of them worked out and half answered at once: options need both habits to differ in."""
    draw, found = random.Random(0), {}
    while len(found) < n:
        price, pens, bag = draw.randint(2, 9), draw.randint(2, 9), draw.randint(1, 9)
        problem = f"A pen costs {price} dollars and a bag {bag} dollars. What do {pens} pens and a bag cost? Put the final answer in \\boxed{{}}."
        cost, end = price * pens + bag, f"The answer is \\boxed{{{price * pens + bag}}}."
        steps = f"{pens} * {price} = {pens * price}\n{pens * price} + {bag} = {cost}\n{end}"
        found[problem] = {"problem": problem, "answer": str(cost), "solution": steps if len(found) % 2 else end}
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path, help="where everything goes; made if it is missing")
    parser.add_argument("--backbone", default="smollm2")
    args = parser.parse_args()
    tiny = args.backbone == "tiny"

    args.folder.mkdir(parents=True, exist_ok=True)
    lines = rows(100 if tiny else 500)
    (args.folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (args.folder / "my_reward.py").write_text(REWARD)

    task = [
        "task=jsonl",
        "task.path=problems.jsonl",
        "task.max_new_tokens=48",
        "reward=my_reward.right_or_sound",
        f"backbone={args.backbone}",
    ]
    size = ["agent.total_episodes=512", "evaluate.num_problems=100"]
    if tiny:
        size = [
            "agent.total_episodes=16",
            "agent.num_generations=4",
            "agent.problems_per_iteration=2",
            "evaluate.num_problems=4",
            "evaluate.samples=0",
        ]
        task += ["convert.epochs=1", "convert.prior_epochs=1", "convert.reader_epochs=1", "engine.max_new_tokens=12"]
    with chdir(args.folder):
        run("doctor", *task)
        run("train", "agent=grpo", *task, *size, "name=first")
        run("compare", "agents=[prior,grpo]", "seeds=[0,1]", *task, *size, "name=both")
        run("export", "policy=runs/first/policy", "out=model", *task)
    for row in json.loads((args.folder / "runs" / "both" / "results.json").read_text())["pooled"]:
        print(f"{row['agent']}: greedy accuracy {row['accuracy']:.3f} {row['accuracy_ci95']}, n = {row['n_problems']}")


def run(*words: str) -> None:
    """`ollm-rl <words>`, said before it is done."""
    print("\n$ ollm-rl " + " ".join(words), flush=True)
    ollm_rl(list(words))


if __name__ == "__main__":
    main()
