# %% [markdown]
# # 3. Your own task and reward
#
# **Claim: a task is a class with one method, and a reward is a function from texts to numbers.** Here you write both and train on them.
#
# If your problems are in a file, you need no code for the task: `task=jsonl task.path=problems.jsonl` reads JSON lines, CSV and Parquet, and
# `ollm-rl doctor task=jsonl task.path=problems.jsonl` says what it found. The file `examples/own_task.py` does that from end to end.

# %%
import os
import random

import ollm_rl as ol
from ollm_rl.tasks import bucket

BACKBONE = os.environ.get("TUTORIAL_BACKBONE", "smollm2")
TINY = BACKBONE == "tiny"
SHORT = {"num_solutions": 60, "num_heldout": 20, "epochs": 1, "prior_epochs": 1, "reader_epochs": 1} if TINY else {}

# %% [markdown]
# ## The problems
#
# A pen costs 4 dollars, a bag 3; what do 5 pens and a bag cost? Each problem has an `answer` and a `solution`. Solutions are used for conversion
# only, where the options learn what may be said. **They have to be of more than one kind**: options that all say the same leave nothing to
# choose. So half of them work it out and half give the answer at once.


# %%
def purchase(price, pens, bag):
    cost = price * pens + bag
    end = f"The answer is \\boxed{{{cost}}}."
    steps = f"{pens} * {price} = {pens * price}\n{pens * price} + {bag} = {cost}\n{end}"
    text = f"A pen costs {price} dollars and a bag {bag} dollars. What do {pens} pens and a bag cost? Put the final answer in \\boxed{{}}."
    solution = steps if (price + pens + bag) % 2 else end
    return ol.Problem(id=f"{price}-{pens}-{bag}", problem=text, answer=str(cost), solution=solution)


print(purchase(4, 5, 4).problem)
print(purchase(4, 5, 4).solution)

# %% [markdown]
# ## The task
#
# `problems(split, n, seed)` gives at most n problems of a split. `bucket` sorts a text into a split by its hash, so the same problem is
# never in two of them. `examples` are solved problems that stand in front of every prompt: a frozen model has to be shown what an answer
# looks like.


# %%
class Purchases(ol.Task):
    name = "purchases"
    max_new_tokens = 40

    def __init__(self):
        self.by_split = {}
        for price, pens, bag in [(a, b, c) for a in range(2, 10) for b in range(2, 10) for c in range(1, 26)]:
            problem = purchase(price, pens, bag)
            self.by_split.setdefault(bucket(problem.problem), []).append(problem)
        self.examples = [p for p in self.by_split["examples"] if "*" in p.solution][:3]

    def problems(self, split, n, seed=0):
        found = list(self.by_split.get(split, []))
        random.Random(seed).shuffle(found)
        return found[:n]


# %%
task = Purchases()
print({split: len(problems) for split, problems in task.by_split.items()})

# %% [markdown]
# ## The reward
#
# A reward has the signature of TRL: lists of prompts and completions, and the columns of the problems by name; it gives a number for every
# completion. From 1 on, an episode counts as **solved**. This one pays 1 for the right answer, and 0.2 for a text with no wrong product in it: the
# plan was good. `ol.MathVerify()` is the reward that compares answers; write your own comparison only where answers are not mathematics.

# %%
import re

verify = ol.MathVerify()


def right_or_sound(prompts, completions, answer, **columns):
    right = verify(prompts=prompts, completions=completions, answer=answer)
    return [r or 0.2 * sound(text) for r, text in zip(right, completions, strict=True)]


def sound(text):
    products = re.findall(r"(\d+) \* (\d+) = (\d+)", text)
    return bool(products) and all(int(a) * int(b) == int(c) for a, b, c in products)


# %% [markdown]
# **Try a reward before you train on it.** Reinforcement learning finds every hole: what you pay is what you get.

# %%
texts = [r"5 * 4 = 20" "\n" r"20 + 4 = 24" "\n" r"\boxed{24}", r"5 * 4 = 20, so \boxed{25}", r"\boxed{24}", "no idea"]
print(right_or_sound(prompts=[""] * 4, completions=texts, answer=["24"] * 4))

# %% [markdown]
# The third text is paid in full: a right guess is right. If guesses shall not be paid, the reward has to say so.
#
# ## Train
#
# The same calls as for the tasks that come with the toolkit.

# %%
backbone = ol.load_backbone(BACKBONE)
plugin = ol.convert(backbone, task, **SHORT)
session = ol.Session(backbone, plugin, task, reward=right_or_sound, engine={"max_new_tokens": 12} if TINY else None)
for name in ("coverage", "distinct_tokens", "prior_token_accuracy"):
    print(name, round(plugin.report[name]["uncertain"], 3))

# %%
N = 4 if TINY else 100
prior, grpo = ol.make_agent("prior", session), ol.make_agent("grpo", session, total_episodes=64 if TINY else 768)
grpo.learn(f"runs/purchases_{BACKBONE}")
for agent in (prior, grpo):
    row = ol.evaluate(session, agent, num_problems=N, samples=0).rows[0]
    name, (low, high) = agent.target.rpartition(".")[2], row.accuracy_ci95
    print(f"{name:6} solved {row.accuracy:.3f} [{low:.2f}, {high:.2f}], mean reward {row.mean_reward:.3f}")

# %% [markdown]
# The mean reward is above the share of solved problems by what is paid for sound plans. Read some texts, always:

# %%
from ollm_rl.rollout.acting import PolicyAdapter

asked = [ol.Request(p) for p in session.problems("test", 4)]
for episode in session.rollout(asked, PolicyAdapter(grpo, deterministic=True)):
    print(repr(episode.text), "| gold", episode.problem.answer, "| reward", round(episode.reward, 2))
session.close()

# %% [markdown]
# The first text shows what the 0.2 pays: its product holds, its sum does not.
#
# **What this does not show.** One seed, and a task made for the page. Whether 0.2 for sound plans helps was not tested: train again with `ol.MathVerify()`
# and compare over three seeds before you believe in a shaped reward.
#
# **On the command line** the class and the function live in files of their own (`my_tasks.py`, `my_rewards.py`, in the working directory):
# `ollm-rl train agent=grpo task=my_tasks.Purchases reward=my_rewards.right_or_sound name=purchases`. `ollm-rl doctor` with the same words checks
# that solutions are paid in full, and that the reward takes any text.
#
# Next: [your own agent](4_own_agent.md).
