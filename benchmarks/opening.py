"""A control for what is learned on `chain_sum`: the prior with its first token set to the first number of the problem, and nothing else.

    python benchmarks/opening.py PLUGIN [--problems 100] [--seeds 0 1 2] [--split test]

That token begins with a step instead of the answer. Prints one JSON line last.
"""

import argparse
import json
import sys

import ollm_rl as ol
from ollm_rl.evaluation.metrics import share
from ollm_rl.oracle.teacher import play
from ollm_rl.rollout.sampler import Request
from ollm_rl.tasks import Problem


def opened(session: ol.Session, problems: list[Problem]) -> list[bool]:
    """Whether each is solved."""
    prompter, engine = session.prompter, session.engine
    prompts = [prompter.encode(p) for p in problems]
    engine.clear()
    engine.make_room(max(map(len, prompts)))
    engine.admit(prompts)
    texts = []
    for i, problem in enumerate(problems):
        first = prompter.encode_solution(problem.extra["metadata"]["expression"].split()[0])[0]
        says = (engine.options.tokens[i] == first) & engine.options.mask[i]
        texts.append(
            (Request(problem, i), says.nonzero()[:1, 0].tolist())
        )  # where no option says it, the prior's choice stays
    return [episode.solved for episode in play(session, texts, keep_hidden=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    backbone, task = ol.load_backbone("smollm2"), ol.make_task("chain_sum")
    session = ol.Session(backbone, ol.PlugIn.from_pretrained(given.plugin, backbone), task)
    problems = [p for seed in given.seeds for p in session.problems(given.split, given.problems, seed)]
    slots = session.engine.num_slots
    right = [r for at in range(0, len(problems), slots) for r in opened(session, problems[at : at + slots])]
    session.close()
    found = share(sum(right), len(right))
    command = " ".join(["python", *sys.argv])
    print(
        json.dumps({"command": command, "n": found.n, "accuracy": found.accuracy, "accuracy_ci95": found.accuracy_ci95})
    )


if __name__ == "__main__":
    main()
