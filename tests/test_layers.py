"""Imports point downwards only: agents -> envs -> ollm_rl."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"ollm_rl": {"envs", "agents"}, "envs": {"agents"}, "agents": set()}
HEAVY = {"ray", "trl", "peft"}


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


def test_the_core_needs_no_ray_and_no_trl():
    for layer in FORBIDDEN:
        for path in (ROOT / layer).rglob("*.py"):
            assert not imports(path) & HEAVY, path
