"""docs/metrics.md explains every name that runs write: runs of all kinds on the tiny backbone, and what they wrote."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.cli.app import main
from tests.conftest import QUICK_KEYS
from tests.test_layers import ROOT

GROUPS = [
    *QUICK_KEYS, "agent.num_generations=4", "agent.problems_per_iteration=4", "agent.total_episodes=16", "agent.num_problems=16",
]  # fmt: skip
ALL_FIGURES = [
    "evaluate.num_ood=2", "evaluate.num_kl=2", "evaluate.hand_over=[1,0.5]", "value.enabled=true", "value.num_problems=16", "value.samples=4",
]  # fmt: skip


def tables() -> dict[str, list[re.Pattern[str]]]:
    """The names in the first column of the tables, as patterns, by the heading of the file that they are of."""
    found: dict[str, list[re.Pattern[str]]] = {}
    for part in re.split(r"^## ", (ROOT / "docs" / "metrics.md").read_text(), flags=re.MULTILINE)[1:]:
        names = [name for line in part.splitlines() for name in _names(line)]
        found[part.splitlines()[0]] = [re.compile(_pattern(name)) for name in names]
    return found


def _names(line: str) -> list[str]:
    return re.findall(r"`([^`]+)`", line.split("|")[1]) if line.startswith("| `") else []


def _pattern(name: str) -> str:
    return "".join("[^/]+" if part.startswith("<") else re.escape(part) for part in re.split(r"(<[^>]+>)", name))


TABLES = tables()


def missing(names: Iterator[str], file: str) -> list[str]:
    """Those of `names` that the tables of `file` do not have."""
    return sorted({name for name in names if not any(known.fullmatch(name) for known in TABLES[file])})


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all figures in JSON; lists are of figures or of rows."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from paths(inner, prefix)
    else:
        yield prefix


def results_names(results: dict[str, Any]) -> Iterator[str]:
    """The names of a `results.json` as the tables have them: those of rows by themselves, and as before learning the same."""
    for results_of_task in results.get("tasks", {}).values():
        yield from results_names(results_of_task)
    for row in [*results["rows"], *results.get("pooled", [])]:
        for name in paths(row):
            yield name.removeprefix("before.")
    yield from paths({k: v for k, v in results.items() if k not in ("rows", "pooled", "tasks", "conversion")})


def unexplained(folder: Path) -> dict[str, list[str]]:
    """What the tables lack, by file, of everything that stands below a directory."""
    metrics, results, conversions, tuned, costs = (sorted(folder.rglob(n)) for n in (
        "metrics.jsonl", "results.json", "conversion.json", "tune.json", "cost.json",
    ))  # fmt: skip
    assert metrics or results
    found = {
        "metrics.jsonl": missing(
            (key for path in metrics for line in path.read_text().splitlines() for key in json.loads(line)),
            "metrics.jsonl",
        ),
        "results.json": missing(
            (name for path in results for name in results_names(json.loads(path.read_text()))), "results.json"
        ),
        "conversion.json": missing(
            (name for path in conversions for name in paths(json.loads(path.read_text()))), "conversion.json"
        ),
        "cost.json": missing((name for path in costs for name in paths(json.loads(path.read_text()))), "cost.json"),
    }
    for path in tuned:
        rows = json.loads(path.read_text())["rows"]
        known = [*TABLES["tune.json"], *TABLES["results.json"]]
        keys = {key for row in rows for key in row}
        found["tune.json"] = sorted(key for key in keys if not any(k.fullmatch(key) for k in known))
    return {file: names for file, names in found.items() if names}


@pytest.fixture(autouse=True)
def in_scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ollm_rl.options.training.LOG_EVERY", 1)
    monkeypatch.setattr("ollm_rl.options.reader_training.LOG_EVERY", 1)


def test_a_name_that_is_not_explained_is_found():
    assert missing(iter(["reward", "rewards/mine/mean", "pass_at_16", "rewrad"]), "metrics.jsonl") == ["rewrad"]
    assert missing(iter(["avg@8", "breakdown.source.my own.n", "avg"]), "results.json") == ["avg"]


def test_no_name_is_of_the_past():
    """Every word of a name stands in the code, but for those that TRL, RLlib and the profiler's parts give."""
    code = "".join(path.read_text() for folder in ("ollm_rl", "agents") for path in (ROOT / folder).rglob("*.py"))
    ours = re.sub(r"^### lora_sft[\s\S]*?^### ", "### ", (ROOT / "docs" / "metrics.md").read_text(), flags=re.MULTILINE)
    words = {
        w
        for line in ours.splitlines()
        for n in _names(line)
        for w in re.findall(r"[a-z0-9_]{3,}", re.sub(r"<[^>]*>", " ", n))
    }
    assert len(words) > 100
    computed = {"_ci95", "_over_", "rllib", "profile"} | {
        w for w in words if w.endswith(("_s", "_ci95", "_p", "_reached"))
    }
    assert sorted(w for w in words - computed if w not in code) == []


@pytest.mark.slow
def test_training_conversion_and_evaluation(tmp_path):
    weighted = [
        "reward=weighted",
        "reward.functions=[ollm_rl.reward.functions.MathVerify,tests.docs.test_metrics.shortness]",
    ]
    main(["convert", *QUICK_KEYS, "convert.seed=7", "plugin.reader_depth=1", "name=convert"])
    main(
        [
            "train",
            "agent=grpo",
            *GROUPS,
            *ALL_FIGURES,
            *weighted,
            "evaluate.every=1",
            "evaluate.every_problems=2",
            "engine.profile=true",
        ]
    )
    main(
        [
            "train",
            "agent=distill",
            "agent.rounds=1",
            "agent.problems_per_round=4",
            "agent.budget=30",
            *QUICK_KEYS,
            "name=distill",
        ]
    )
    main(["train", "agent=best_prefix", "agent.num_problems=4", *QUICK_KEYS, "name=best_prefix"])
    main(["train", "agent=shortlist_head", *GROUPS, "name=head"])
    main(["evaluate", "agent=prior", *QUICK_KEYS, "name=prior"])
    assert unexplained(tmp_path) == {}


def shortness(completions, **_):
    return [1.0 / (1 + len(text)) for text in completions]


def even(completions, **_):
    """A random model's texts are right half of the time."""
    return [float(len(text) % 2 == 0) for text in completions]


@pytest.mark.slow
def test_comparison_and_oracle(tmp_path):
    judged = "reward=tests.docs.test_metrics.even"
    main(["compare", "agents=[prior,grpo]", "seeds=[0,1]", "with_oracle=true", judged, *GROUPS, *ALL_FIGURES])
    assert json.loads((tmp_path / "runs" / "compare" / "results.json").read_text())["pooled"][1]["value"]["auroc"] >= 0
    main(["oracle", "oracle.also=[puct,best_of_n,teacher_forced]", *QUICK_KEYS])
    assert unexplained(tmp_path) == {}


def test_figures_of_a_real_model():
    """What a random model does not reach, such as solved texts of a search."""
    demo = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    ours = {name: demo[name] for name in ("rows", "pooled", "tests", "curves")}
    assert missing(results_names(ours), "results.json") == []


@pytest.mark.slow
def test_trl(tmp_path):
    pytest.importorskip("trl")
    lora = ["agent.problems_per_iteration=2", "agent.micro_batch_size=4", "agent.sft_batch_size=16"]
    main(["train", "agent=lora_grpo", "agent.num_generations=4", "agent.total_episodes=8", *lora, *QUICK_KEYS])
    main(["train", "agent=lora_sft", "agent.sft_batch_size=16", *QUICK_KEYS, "name=sft"])
    assert unexplained(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray(tmp_path):
    main(
        [
            "train",
            "agent=ppo",
            "agent.total_episodes=8",
            "agent.episodes_per_iteration=8",
            "agent.num_problems=16",
            *QUICK_KEYS,
        ]
    )
    workers = ["rollout=ray", "rollout.num_workers=1", "rollout.max_staleness=1"]
    main(["train", "agent=grpo", *workers, *GROUPS, "name=workers"])
    quick = [key for key in GROUPS if not key.startswith(("evaluate.", "agent.total_episodes"))]
    main(
        [
            "tune",
            "agent=grpo",
            "grpo.learning_rate=1e-4,3e-4",
            *quick,
            "tune.episodes=16",
            "tune.num_problems=2",
            "tune.samples=2",
        ]
    )
    assert unexplained(tmp_path) == {}
