# %% [markdown]
# # 1. Your first latent policy
#
# **Claim: a small network that only chooses among a frozen model's options learns to solve sums from 768 episodes.** That takes
# 20 to 40 seconds on two cores. Here you train the network and look at what it learned.
#
# Words that you need:
#
# - The **backbone** is a pretrained language model. None of its weights ever changes.
# - The **plug-in** makes K = 10 **options** for the next token out of the backbone's hidden state. Option number z is called **latent** z.
# - A **decision point** is a position where the options say different tokens. At all other positions nobody has to choose.
# - A **latent policy** reads the hidden state and chooses z. The **prior** is the policy that comes with the plug-in: it imitates the data.
#
# To follow along: `pip install -c constraints.txt -e .` in the checkout, then run the cells in any notebook, or `python tutorials/1_first_policy.py`.

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt

import ollm_rl as ol

BACKBONE = os.environ.get("TUTORIAL_BACKBONE", "smollm2")  # `tiny`, a random model, runs this page in seconds
TINY = BACKBONE == "tiny"
SHORT = {"num_solutions": 60, "num_heldout": 20, "epochs": 1, "prior_epochs": 1, "reader_epochs": 1} if TINY else {}

# %% [markdown]
# ## A model, a task, options
#
# `smollm2` is SmolLM2-135M-Instruct; it comes from a package, so no model hub is needed. The task is sums of two to four numbers. A task has
# problems with answers that can be checked, in four **splits** that do not overlap: `sft` to make options from, `train` to learn from rewards,
# `tune` to choose settings, `test` to report on.

# %%
backbone = ol.load_backbone(BACKBONE)
task = ol.make_task("chain_sum")
problem = task.problems("sft", 1)[0]
print(problem.problem, "->", problem.answer)
print(problem.solution)

# %% [markdown]
# **Conversion** trains the plug-in on solutions of split `sft`. It takes two to four minutes the first time; later it is read from the cache.
# Two numbers say what the options are worth at *uncertain* positions, where the backbone alone is not sure:
#
# - **coverage**: the share of positions where some option says the token of the solution. Without coverage there is nothing to choose.
# - **distinct tokens**: how many different tokens the ten options say there. One would mean that all options are the same.

# %%
plugin = ol.convert(backbone, task, **SHORT)
print(f"coverage at uncertain positions: {plugin.report['coverage']['uncertain']:.3f}")
print(f"distinct tokens there:           {plugin.report['distinct_tokens']['uncertain']:.2f}")
print(f"trained parameters:              {plugin.report['trainable_share']:.1%} of the backbone's")

# %% [markdown]
# ## Before learning
#
# A **session** puts the three together with a reward: here, whether the final answer is equal to the right one. `evaluate` asks for one
# greedy answer a problem (`accuracy`, with its 95% interval) and for some sampled ones: `avg@4` is the share of these that are right, `pass@4`
# the share of problems for which at least one of four is right, `maj@4` that of a majority vote.

# %%
session = ol.Session(backbone, plugin, task, reward=ol.MathVerify(), engine={"max_new_tokens": 12} if TINY else None)
prior = ol.make_agent("prior", session)
N = 4 if TINY else 100
before = ol.evaluate(session, prior, num_problems=N, samples=4)
print(before.to_pandas()[["agent", "n_problems", "accuracy", "avg@4", "pass@4"]].round(3).to_string(index=False))

# %% [markdown]
# The gap between `accuracy` and `pass@4` is the room that reinforcement learning has: the right text is among those that the options can say,
# but it is not the one that the prior says first.
#
# ## Learning
#
# `grpo` samples eight texts a problem, compares their rewards with each other, and makes the choices of the better ones likelier. It learns on
# the stored hidden states of decision points, so **an update never runs the language model**. That is why it is quick. (The seconds on these pages are of a
# machine that was busy with much else, five to ten times as slow as by itself.)

# %%
EPISODES = 64 if TINY else 768
grpo = ol.make_agent("grpo", session, total_episodes=EPISODES)
costs = grpo.learn(f"runs/first_{BACKBONE}")
print(f"{costs['train_episodes']} episodes, {costs['train_tokens']} tokens, {costs['train_seconds']:.0f} s")

# %% [markdown]
# Everything about the run is in its directory. `metrics.jsonl` has a line for every iteration; `reward` is the share of right texts among those
# sampled in it.

# %%
lines = [json.loads(line) for line in Path(f"runs/first_{BACKBONE}/metrics.jsonl").read_text().splitlines()]
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
axes.plot([line["train_episodes"] for line in lines], [line["reward"] for line in lines], marker=".")
axes.set(xlabel="episodes", ylabel="share of right texts", ylim=(0, 1), title="Rewards while learning")
plt.show()

# %% [markdown]
# ## After learning
#
# The same problems, the same way of asking:

# %%
after = ol.evaluate(session, grpo, num_problems=N, samples=4)
columns = ["agent", "n_problems", "accuracy", "accuracy_low", "accuracy_high", "avg@4", "pass@4"]
for result in (before, after):
    print(result.to_pandas()[columns].round(3).to_string(index=False))

# %% [markdown]
# Look at a text of each. Both policies choose among the same options of the same frozen model.

# %%
from ollm_rl.rollout.acting import PolicyAdapter

asked = [ol.Request(p) for p in session.problems("test", 3)]
for agent in (prior, grpo):
    print(f"--- {agent.target.rpartition('.')[2]}")
    for episode in session.rollout(asked, PolicyAdapter(agent, deterministic=True)):
        print(repr(episode.text), "right" if episode.solved else "wrong", f"({episode.num_decisions} decisions)")

# %% [markdown]
# The prior has learned from solutions of mixed quality: some go step by step, more of them jump to the answer. The policy has learned to begin
# with a step, in most texts.
#
# **What this does not show.** One seed and 100 problems: the interval in the table is about ten points wide to each side. And most of the gain
# on sums is the *first* decision: the prior whose first token alone is set to a number answers nearly as often. The log has that measurement.
# Tasks where decisions in the middle of a text matter are `python_functions` and `shortest_path`.
#
# ## Keep it
#
# The trained agent is in the run's directory, with its plug-in. It can be loaded, served, or exported as an ordinary model. `write_report`
# makes a page on which every text can be read token by token, with what the other options would have said.

# %%
page = ol.write_report(f"runs/first_{BACKBONE}")
again = ol.load_agent(f"runs/first_{BACKBONE}/policy", session)
print(page, type(again).__name__)
session.close()

# %% [markdown]
# On the command line all of this is `ollm-rl train agent=grpo agent.total_episodes=768 name=sums`.
#
# Next: [what the options are](2_options.md).
