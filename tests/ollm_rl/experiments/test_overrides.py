"""Overrides of comparisons: an experiment's own fit any of its agents alone, those of a user have to fit."""

import pytest

from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError
from ollm_rl.experiments.overrides import trial_settings


def test_an_experiments_overrides_do_not_refuse_a_choice_of_its_agents():
    chosen = ["experiment=planning", "agents=[prior,best_prefix]", "task=jugs"]
    settings = compose(["experiment=planning", "agents=[prior,best_prefix]", "task=jugs"])
    assert trial_settings(chosen, settings, "best_prefix").config.agent.num_problems == 80
    with pytest.raises(ConfigurationError, match="none of the agents prior, best_prefix has it"):
        trial_settings([*chosen, "agent.total_episodes=64"], settings, "best_prefix")
    settings.config.agent_overrides = ["agent.total_episode=64"]
    with pytest.raises(ConfigurationError, match="unknown key 'agent.total_episode'"):
        trial_settings(chosen, settings, "best_prefix")
