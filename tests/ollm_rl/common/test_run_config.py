"""Which settings of a comparison may be others when it goes on."""

from ollm_rl.common.run_config import changes


def test_overrides_of_tasks_may_change_as_those_of_agents_may():
    """A comparison's parts have configurations of their own."""
    stored = {"agent_overrides": [], "task_agent_overrides.jugs": ["grpo.beta=0.1"]}
    assert not changes(stored, {"agent_overrides": [], "task_agent_overrides": {}}).refused
    assert not changes({"agent_overrides": []}, stored).refused
