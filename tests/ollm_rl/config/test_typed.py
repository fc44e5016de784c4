"""What is typed for a configuration gives that configuration again, whatever its texts hold."""

import pytest

from ollm_rl.cli.sweep import combinations
from ollm_rl.config.compose import compose, to_dict
from ollm_rl.config.typed import typed
from tests.ollm_rl.config.test_overrides import ODD

TEXTS = [
    *ODD, "null", "", " ", "a'b\\'c", "${seed}", "\\${seed}", "\\\\${seed}", "it\\", "a\nb", "interval(1,2)", "Count: {letters}, then say", "'q'",
    '"q"', "range(0,3)", "x\\\\'",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_and_is_no_sweep(text):
    ours = {"task": {"name": "jsonl", "path": text, "instruction": text}, "backbone": {"name": "tiny"}}
    own = {
        "task": {"_target_": "my_tasks.T", "name": "T", "x": text, "l": [text, 1, None, 2.5e-7], "d": {"a": text, "b": {"c": [True]}}},
        "reward": {"_target_": "my_rewards.r", "conversational": False, "solved_at": 0.5},
    }  # fmt: skip
    for given in (ours, own):
        said = [override for part in typed(given).values() for override in part]
        assert combinations(said) == [said]
        found = compose(said).config
        assert {part: {k: to_dict(found[part])[k] for k in given[part]} for part in given} == given


def test_only_what_differs_from_the_defaults_is_typed():
    assert {name: said for name, said in typed(to_dict(compose([]).config)).items() if said} == {
        "agent": ["agent=grpo"], "task": ["task=chain_sum"], "reward": ["reward=math_verify"], "backbone": ["backbone=smollm2"],
    }  # fmt: skip
    given = ["agent=lora_sft", "task=countdown", "backbone=./mine", "convert.num_solutions=50", "task.max_new_tokens=9"]
    said = typed(to_dict(compose(given).config))
    # The agent's number of solutions and the engine's budget are those of the others, and the task says its reward.
    assert [said[name] for name in ("agent", "reward", "engine")] == [["agent=lora_sft"], ["reward=plan"], []]
    assert said["task"] == ["task=countdown", "task.max_new_tokens=9"] and said["backbone"] == ["backbone=./mine"]
    assert said["convert"] == ["convert.num_solutions=50"]
