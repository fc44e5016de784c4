"""Imports point downwards only: agents -> envs -> ollm_rl."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"ollm_rl": {"envs", "agents"}, "envs": {"agents"}, "agents": set()}
HEAVY = {"ray", "trl", "peft"}
NEED_THEM = {Path("agents") / f"{name}.py" for name in ("ppo", "rllib", "lora", "lora_grpo", "trainers")}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_imports_point_downwards(layer):
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        assert not imports(path) & FORBIDDEN[layer], path


def test_ray_and_trl_stay_where_they_are_needed():
    for layer in FORBIDDEN:
        for path in (ROOT / layer).rglob("*.py"):
            if path.relative_to(ROOT) not in NEED_THEM and path.parent != ROOT / "ollm_rl" / "cluster":
                assert not imports(path) & HEAVY, path


def test_engine_oracle_and_grpo_run_without_ray():
    code = (
        "import sys, envs, agents.grpo, agents.distill, agents.full_head, ollm_rl.cli.verbs, ollm_rl.experiments.single, ollm_rl.oracle;"
        "print([m for m in ('ray', 'trl', 'peft') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
