# %% [markdown]
# # 2. What the options are
#
# **Claim: at a decision point the ten options say two or three different tokens, and one of them is nearly always the right one.** This page looks
# at them, lets you choose, and lets a search choose.
#
# It uses the plug-in of [tutorial 1](1_first_policy.md), which is in the cache by now.

# %%
import os

import matplotlib.pyplot as plt

import ollm_rl as ol

BACKBONE = os.environ.get("TUTORIAL_BACKBONE", "smollm2")
TINY = BACKBONE == "tiny"
SHORT = {"num_solutions": 60, "num_heldout": 20, "epochs": 1, "prior_epochs": 1, "reader_epochs": 1} if TINY else {}
backbone, task = ol.load_backbone(BACKBONE), ol.make_task("chain_sum")
plugin = ol.convert(backbone, task, **SHORT)
session = ol.Session(backbone, plugin, task, engine={"max_new_tokens": 12} if TINY else None)

# %% [markdown]
# ## Along a solution
#
# Take a problem with a worked solution and walk along that solution token by token. At each position the hidden state h goes to the plug-in's
# decoder with each latent z from 0 to 9; the frozen output head turns each result into one token. Latents that say the same token count as
# one, under the lowest of them.

# %%
from ollm_rl.evaluation.inspection import inspect_problems

problems = [p for p in session.problems("tune", 60) if p.solution]
positions = inspect_problems(session, problems[: 4 if TINY else 60])
print(problems[0].problem)
for position in positions[0][:14]:
    said = ", ".join(f"{z}: {text!r} {p:.0%}" for z, _, text, p in sorted(position.options, key=lambda o: -o[3])[:4])
    print(f"{'decide' if position.decision else '      '}  solution says {position.text!r:8}  options: {said}")

# %% [markdown]
# Read it like this: `0: 'The' 62%` is latent 0, which says "The" and which the prior chooses with a probability of 62%. Lines without `decide`
# are **forced**: all ten options agree, so nobody is asked. (An option with 0% is there, and a policy may take it.)
#
# Over many solutions:

# %%
points = [p for solution in positions for p in solution]
decisions = [p for p in points if p.decision]
covered = sum(p.covered for p in decisions) / max(1, len(decisions))
first = sum(p.prior == p.token for p in decisions) / max(1, len(decisions))
print(f"{len(points)} positions, {len(decisions)} decision points ({len(decisions) / len(points):.0%})")
print(
    f"at decision points: some option says the solution's token at {covered:.1%}, the prior's first choice at {first:.1%}"
)

# %%
counts = [len(p.options) for p in points]
figure, axes = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
axes.hist(counts, bins=[x - 0.5 for x in range(1, 12)], rwidth=0.8)
axes.set(xlabel="different tokens that the ten options say", ylabel="positions", xticks=range(1, 11))
plt.show()

# %% [markdown]
# At most positions all options say one token: there is nothing to choose. So a text of 30 tokens has about ten decisions, and learning
# on decisions only is cheap.
#
# ## Choose yourself
#
# `ollm-rl play` is this as a page in the browser. In Python it is a `Game`: you are asked at decision points only.

# %%
from ollm_rl.serving.game import Game

game = Game(session)


def show():
    state = game.state()
    print("text so far:", repr("".join(token["text"] for token in state["tokens"])))
    for option in state["options"]:
        print(f"   latent {option['latent']}: {option['text']!r}  prior {option['prior']:.1%}")
    if state["ended"]:
        print("   answer", state["ended"]["answer"], "right" if state["ended"]["solved"] else "wrong")


# %%
print(game.state()["problem"])
show()
options = game.state()["options"]
game.choose(options[0]["latent"])
show()

# %% [markdown]
# Now take back that choice, take the other option, and let the prior go on to the end.

# %%
game.undo()
if len(options) > 1:
    game.choose(options[1]["latent"])
if not game.state()["ended"]:
    game.finish("prior")
show()

# %% [markdown]
# ## Let a search choose: the oracle
#
# The **oracle** may look at the verdict. It tries texts, guided by the prior, until one is right or its budget is spent. No agent can do that when it
# answers; the oracle says what choosing latents can reach at least, within its budget. (A lucky guess counts as solved too.)

# %%
prior = ol.make_agent("prior", session)
tests = session.problems("test", 4 if TINY else 60)
budget = 60 if TINY else 300
searches = ol.Oracle(session, prior.policy, budget=budget).solve(tests)
samples = ol.Oracle(session, prior.policy, search="best_of_n", budget=budget).solve(tests)
for name, found in (("best-first search", searches), ("samples of the prior", samples)):
    solved = [s for s in found if s.solution is not None]
    print(f"{name}: {len(solved)} of {len(found)} solved with at most {budget} tokens a problem")

# %%
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for name, found in (("best-first search", searches), ("samples of the prior", samples)):
    at = [s.solved_at for s in found]
    xs = range(0, budget + 1, 5)
    axes.plot(xs, [sum(a is not None and a <= x for a in at) / len(at) for x in xs], label=name)
axes.set(xlabel="generated tokens a problem", ylabel="share solved", ylim=(0, 1.02))
axes.legend()
plt.show()

# %% [markdown]
# How far does a solved text depart from what the prior would have said? Count the choices that are not the prior's first one:

# %%
from collections import Counter

departures = Counter(sum(choice.rank > 0 for choice in s.choices) for s in searches if s.solution is not None)
for number, count in sorted(departures.items()):
    print(f"{count} solved texts with {number} choices other than the prior's first")
session.close()

# %% [markdown]
# **What this does not show.** Options that *can* say the right text are necessary, not sufficient: whether a policy can see in the hidden state
# *which* option is right is another question, and only training answers it. The line of the samples is the one to compare the search with.
#
# Next: [your own task and reward](3_own_task.md).
