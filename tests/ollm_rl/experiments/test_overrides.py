"""Overrides of comparisons: an experiment's own fit any of its agents alone, those of a user have to fit."""

import pytest

from agents.config import GRPOConfig
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError
from ollm_rl.experiments.config import ComparisonConfig
from ollm_rl.experiments.overrides import of_tasks, shared, trial_settings


def test_an_experiments_overrides_do_not_refuse_a_choice_of_its_agents():
    chosen = ["experiment=planning", "agents=[prior,best_prefix]", "task=jugs"]
    settings = compose(["experiment=planning", "agents=[prior,best_prefix]", "task=jugs"])
    assert trial_settings(chosen, settings, "best_prefix").config.agent.num_problems == 80
    with pytest.raises(ConfigurationError, match="none of the agents prior, best_prefix has it"):
        trial_settings([*chosen, "agent.total_episodes=64"], settings, "best_prefix")
    settings.config.agent_overrides = ["agent.total_episode=64"]
    with pytest.raises(ConfigurationError, match="unknown key 'agent.total_episode'"):
        trial_settings(chosen, settings, "best_prefix")


ARMS = [
    "arms={fitted:['agent=grpo','backbone.adapter=sft','task.num_examples=0'],rank1:['agent=lora_grpo','agent.rank=1']}",
    "agents=[prior,grpo,lora_sft,lora_grpo,fitted,rank1]",
]


def test_arms_are_agents_with_overrides_of_their_own():
    given = [*ARMS, "lora_grpo.learning_rate=2e-4", "agent.total_episodes=64", "fitted.learning_rate=1e-3"]
    given += ["lora_grpo.rank=8", "lora_sft.sft_epochs=2", "convert.num_solutions=300"]
    settings = compose(shared(given))
    found = {name: trial_settings(given, settings, name) for name in settings.config.agents}
    assert {name: s.agent_name for name, s in found.items()} == {name: name for name in found}
    fitted, rank1 = found["fitted"].config, found["rank1"].config
    assert fitted.agent._target_ == found["grpo"].config.agent._target_ and fitted.task.num_examples == 0
    assert (fitted.agent.learning_rate, found["grpo"].config.agent.learning_rate) == (1e-3, GRPOConfig.learning_rate)
    assert fitted.agent.total_episodes == rank1.agent.total_episodes == 64
    # What is for an agent is for its arms as well, but for what the arm says itself.
    assert rank1.agent.learning_rate == 2e-4 and rank1.agent.rank == 1 and found["lora_grpo"].config.agent.rank == 8
    # An arm over a fitted backbone begins with the fit that lora_sft has in this comparison.
    assert fitted.backbone.adapter == "sft" and fitted.backbone.sft.sft_epochs == 2
    assert fitted.backbone.sft.num_solutions == 300 and found["grpo"].config.backbone.adapter is None


def test_the_fit_of_an_arm_is_the_same_whether_its_agent_takes_part_or_not():
    given = [ARMS[0], "agent_overrides=['lora_sft.sft_epochs=2']", "convert.num_solutions=300"]
    fits = []
    for agents in ("[prior,fitted]", "[prior,lora_sft,fitted]"):
        mine = [*given, f"agents={agents}"]
        fits.append(trial_settings(mine, compose(shared(mine)), "fitted").config.backbone.sft)
    assert fits[0] == fits[1] and fits[0].sft_epochs == 2 and fits[0].num_solutions == 300


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"x": ["agent.rank=1"]}, "one agent=<name> among"),
        ({"x": "agent"}, "a list of overrides"),
        ({"x-y": ["agent=grpo"]}, "a name of letters, digits and _"),
    ],
)
def test_arms_are_checked(arms, said):
    with pytest.raises(ConfigurationError, match=said):
        ComparisonConfig(arms=arms)


def test_an_experiments_arms_are_known_to_overrides():
    given = ["experiment=headline", "fitted_grpo.learning_rate=5e-4", "agents=[grpo,fitted_grpo]"]
    settings = compose(shared(given))
    assert trial_settings(given, settings, "fitted_grpo").config.agent.learning_rate == 5e-4
    with pytest.raises(ConfigurationError, match="no agent 'fitted_rank1'"):
        trial_settings([*given, "fitted_rank1.rank=2"], settings, "fitted_grpo")


def test_a_task_of_a_comparison_has_overrides_of_its_own():
    given = ["tasks=[chain_sum,jugs]", "agents=[prior,grpo]", "agent_overrides=['grpo.beta=0.1','grpo.epsilon=0.1']"]
    given += ["task_agent_overrides={jugs:['grpo.beta=0.2']}", "grpo.epsilon=0.3"]
    settings = compose(shared(given))
    found = {t: trial_settings(o, s, "grpo").config.agent for t, (s, o) in of_tasks(given, settings).items()}
    assert (found["chain_sum"].beta, found["jugs"].beta) == (0.1, 0.2)
    assert (found["chain_sum"].epsilon, found["jugs"].epsilon) == (0.3, 0.3)  # of the command line, which comes last
    one = [o for o in given if not o.startswith("tasks=")] + ["task=jugs"]
    [(mine, theirs)] = of_tasks(one, compose(shared(one))).values()
    assert trial_settings(theirs, mine, "grpo").config.agent.beta == 0.2


def test_a_task_of_a_comparison_has_agents_of_its_own():
    given = ["tasks=[chain_sum,jugs]", "agents=[prior,grpo]", "task_agents={jugs:[prior,ppo]}"]
    agents = {t: list(s.config.agents) for t, (s, _) in of_tasks(given, compose(shared(given))).items()}
    assert agents == {"chain_sum": ["prior", "grpo"], "jugs": ["prior", "grpo"]}  # what is typed counts
    del given[1]
    found = of_tasks(given, compose(shared(given)))
    assert list(found["jugs"][0].config.agents) == ["prior", "ppo"] and "ppo" not in found["chain_sum"][0].config.agents
    settings, overrides = found["jugs"]
    assert trial_settings(overrides, settings, "ppo").agent_name == "ppo"
    one = ["task=jugs", given[-1]]
    assert list(of_tasks(one, compose(shared(one)))[""][0].config.agents) == ["prior", "ppo"]


def test_what_is_for_an_agent_of_one_task_is_not_said_to_the_others():
    tasks = [
        "tasks=[chain_sum,jugs]",
        "agents=[prior,grpo]",
        "task_agents={jugs:[prior,long]}",
        "arms={long:['agent=grpo']}",
    ]
    given = [*tasks[:1], *tasks[2:], "long.total_episodes=64", "agent.beta=0.3", "backbone.dtype=float32"]
    found = of_tasks(given, compose(shared(given)))
    settings, overrides = found["jugs"]
    long = trial_settings(overrides, settings, "long").config
    assert (long.agent.total_episodes, long.agent.beta, long.backbone.dtype) == (64, 0.3, "float32")
    settings, overrides = found["chain_sum"]
    assert all(name in settings.config.agents for name in ("prior", "grpo"))
    grpo = trial_settings(overrides, settings, "grpo").config
    assert grpo.agent.beta == 0.3 and grpo.agent.total_episodes != 64 and grpo.backbone.dtype == "float32"
    wrong = [*given, "ppo.learning_rate=1e-4"]  # of an agent that no task has
    settings, overrides = of_tasks(wrong, compose(shared(wrong)))["jugs"]
    with pytest.raises(ConfigurationError, match="has no agent 'ppo', only prior, long"):
        trial_settings(overrides, settings, "prior")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("task_agents={chain_sums:[prior]}", "Did you mean 'chain_sum'"),
        ("task_agents={chain_sum:prior}", "expected a list of agents"),
        ("task_agent_overrides={chain_sums:['grpo.beta=1']}", "Did you mean 'chain_sum'"),
        ("task_agent_overrides={chain_sum:3}", "expected a list of overrides"),
        ("task_agent_overrides={chain_sum:['grpo.betta=1']}", "unknown key 'grpo.betta'"),
    ],
)
def test_wrong_overrides_of_a_task(wrong, message):
    given = ["agents=[prior,grpo]", wrong]
    with pytest.raises(ConfigurationError, match=message):
        for settings, mine in of_tasks(given, compose(shared(given))).values():
            trial_settings(mine, settings, "grpo")
