"""A search of one's own: limited discrepancy search (Harvey and Ginsberg 1995) beside best-first search.

    python examples/own_search.py                   # SmolLM2, sums: solved 0.980 (40 tokens), best_first 0.980 (37), best_of_n 0.890 (57)
    python examples/own_search.py --backbone tiny --problems 4 --budget 40

The class alone is the search; it is found by its name, too: `ollm-rl oracle oracle.search=own_search.LimitedDiscrepancy` in this directory.
"""

import argparse

import ollm_rl as ol
from ollm_rl.oracle.search import Branch, Frontier


class LimitedDiscrepancy(Frontier):
    """First the texts with one choice that is not the policy's first, then those with two; within these, the likeliest.

    Args:
        most: branches with more of such choices are dropped.
    """

    def __init__(self, most: int = 4):
        super().__init__()
        self.most = most

    def push(self, branch: Branch) -> None:
        if discrepancies(branch) <= self.most:
            super().push(branch)

    def pop(self) -> Branch:
        best = min(self._branches, key=lambda branch: (discrepancies(branch), -branch.log_prob))
        self._branches.remove(best)
        return best


def discrepancies(branch: Branch) -> int:
    return sum(choice.rank > 0 for choice in branch.choices)


def opened(name: str) -> ol.Session:
    """Sums with this backbone. `tiny` is a random model for tests: all of its is short."""
    backbone, task, tiny = ol.load_backbone(name), ol.make_task("chain_sum"), name == "tiny"
    few = {"num_solutions": 60, "num_heldout": 20, "epochs": 1, "prior_epochs": 1, "reader_epochs": 1}
    plugin = ol.convert(backbone, task, **(few if tiny else {}))
    return ol.Session(backbone, plugin, task, engine={"max_new_tokens": 12} if tiny else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--budget", type=int, default=200, help="generated tokens a problem")
    args = parser.parse_args()

    session = opened(args.backbone)
    prior = ol.make_agent("prior", session)
    problems = session.problems("test", args.problems)
    for search in (LimitedDiscrepancy, "best_first", "best_of_n"):
        found = ol.Oracle(session, prior.policy, search=search, budget=args.budget).solve(problems)
        solved = sum(s.solution is not None for s in found) / len(found)
        spent = sum(s.spent for s in found) / len(found)
        name = search if isinstance(search, str) else search.__name__
        print(
            f"{name:20} solved {solved:.3f}  {spent:.0f} tokens a problem  (n = {len(found)}, at most {args.budget})",
            flush=True,
        )
    session.close()


if __name__ == "__main__":
    main()
