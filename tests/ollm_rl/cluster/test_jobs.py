"""Parts of a comparison, and combinations, side by side on a cluster."""

import json

import pytest

from ollm_rl.cli import main
from tests.conftest import QUICK_KEYS

pytestmark = pytest.mark.usefixtures("cluster")
KEYS = [*QUICK_KEYS, "rollout.num_cpus_per_worker=2"]
GRPO = ["agent.num_generations=4", "agent.problems_per_iteration=4", "agent.total_episodes=32"]


def figures(value):
    """Without what is measured in seconds."""
    if isinstance(value, dict):
        return {k: figures(v) for k, v in value.items() if "seconds" not in k and k != "occupancy"}
    return [figures(v) for v in value] if isinstance(value, list) else value


def test_a_comparison_side_by_side_gives_what_one_after_the_other_gives(tmp_path):
    given = ["compare", "agents=[prior,grpo]", "seeds=[0,1]", "with_oracle=true", f"runs_dir={tmp_path}", *GRPO, *KEYS]
    main([*given, "name=turns"])
    main([*given, "name=together", "rollout.address=local"])
    turns, together = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("turns", "together"))
    assert len(together["rows"]) == 6
    assert figures(together["rows"]) == figures(turns["rows"])
    assert figures(together["pooled"]) == figures(turns["pooled"])


def test_a_mistake_in_one_part_is_said(tmp_path, capsys):
    given = [
        "compare",
        "agents=[prior,grpo]",
        "agent.num_generations=1",
        f"runs_dir={tmp_path}",
        "rollout.address=local",
    ]
    with pytest.raises(SystemExit) as caught:
        main([*given, *KEYS])
    assert caught.value.code == 2
    assert "at least 2" in capsys.readouterr().err


def test_combinations_run_side_by_side(tmp_path, capsys):
    main(["evaluate", "agent=prior,random", "name=two", f"runs_dir={tmp_path}", "rollout.address=local", *KEYS])
    rows = [
        json.loads((tmp_path / "two" / name / "results.json").read_text())["rows"][0] for name in ("prior", "random")
    ]
    assert [row["agent"] for row in rows] == ["prior", "random"]
    assert "random" in capsys.readouterr().out
