"""What the documents show of one's own task, agent, reward and search runs as it stands there."""

import json
import re
import sys

import pytest

from ollm_rl.cli.app import main
from tests.conftest import QUICK_KEYS
from tests.test_layers import ROOT

KEYS = ["agent.total_episodes=8", "agent.num_generations=4", "agent.problems_per_iteration=2", *QUICK_KEYS]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A directory with the files that a document has the code of; modules of it are forgotten afterwards."""
    for name in [name for name in sys.modules if name.startswith("my_")]:  # another test's
        monkeypatch.delitem(sys.modules, name)
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(document: str) -> None:
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / document).read_text(), re.S)
        named = [(re.match(r"# (my_\w+\.py)", block), block) for block in blocks]
        files = [(match[1], block) for match, block in named if match]
        assert files
        for name, block in files:
            (tmp_path / name).write_text(block)

    yield write
    for name in set(sys.modules) - known:
        if name.startswith("my_"):
            del sys.modules[name]


def rows(tmp_path, name):
    return json.loads((tmp_path / "runs" / name / "results.json").read_text())["rows"]


def test_a_task(own, own_cache, tmp_path, capsys):
    own("tasks.md")
    main(["train", "agent=grpo", "task=my_tasks.Products", "task.largest=40", "name=products", *KEYS])
    [row] = rows(tmp_path, "products")
    assert row["n_problems"] == 6 and row["train_episodes"] == 8
    with pytest.raises(SystemExit):
        main(["train", "agent=grpo", "task=my_tasks.Products", "task.larges=40", *KEYS])
    assert "Did you mean 'largest'?" in " ".join(capsys.readouterr().err.split())


def test_an_agent(own, own_cache, tmp_path):
    own("agents.md")
    main(["train", "agent=my_agents.Favourite", "agent.favourite=2", "name=favourite", *QUICK_KEYS])
    assert rows(tmp_path, "favourite")[0]["agent"] == "Favourite"
    assert (tmp_path / "runs" / "favourite" / "policy" / "favourite").read_text() == "2"


@pytest.mark.slow
def test_a_whole_learner(own, own_cache, tmp_path, capsys):
    own("agents.md")
    small = [
        "agent.total_episodes=16",
        "agent.episodes_per_iteration=8",
        "evaluate.every=2",
        "evaluate.every_problems=4",
        *QUICK_KEYS,
    ]
    main(["train", "agent=my_reinforce.Reinforce", "name=mine", *small])
    lines = [json.loads(line) for line in (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert [line["train_episodes"] for line in lines] == [8, 16] and lines[1]["eval/n_problems"] == 4
    main(["train", "agent=my_reinforce.Reinforce", "name=mine", "agent.total_episodes=24", *small[1:]])
    assert rows(tmp_path, "mine")[0]["train_episodes"] == 24
    main(["compare", "agents=[prior,my_reinforce.Reinforce]", "Reinforce.learning_rate=3e-3", "name=both", *small])
    stored = (tmp_path / "runs/both/Reinforce-0/config.yaml").read_text()
    assert "learning_rate: 0.003" in stored
    main(
        [
            "evaluate",
            "agent=my_reinforce.Reinforce",
            "policy=runs/mine/policy",
            "name=again",
            *QUICK_KEYS,
            "convert.num_solutions=50",
        ]
    )
    assert (
        rows(tmp_path, "again")[0]["accuracy"] == rows(tmp_path, "mine")[0]["accuracy"]
    )  # with the plug-in beside the policy
    with pytest.raises(SystemExit):
        main(["train", "--dry-run", "agent=my_reinforce.Reinforce", "agent.learning_rat=1", *QUICK_KEYS])
    assert "Did you mean 'learning_rate'?" in " ".join(capsys.readouterr().err.split())


def test_a_reward(own, own_cache, tmp_path):
    own("verifier.md")
    main(["evaluate", "agent=prior", "reward=my_rewards.right_and_short", "name=short", *QUICK_KEYS])
    assert 0 <= rows(tmp_path, "short")[0]["accuracy"] <= 1


def test_a_search(own, own_cache, tmp_path, capsys):
    own("oracle.md")
    main(
        [
            "oracle",
            "oracle.search=my_searches.RandomOrder",
            "oracle.params.seed=1",
            "oracle.also=[best_first]",
            "name=mine",
            *QUICK_KEYS,
        ]
    )
    found = rows(tmp_path, "mine")
    assert [row["search"] for row in found] == ["my_searches.RandomOrder", "best_first"]
    assert all(row["mean_tokens"] <= 60 for row in found)
    with pytest.raises(SystemExit):
        main(["oracle", "oracle.search=my_searches.RandomOrder", "oracle.params.sed=1", "name=wrong", *QUICK_KEYS])
    assert "check oracle.params" in " ".join(capsys.readouterr().err.split())
