"""Imports point downwards only, those inside of functions included: agents -> envs -> ollm_rl, and the packages of ollm_rl."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"ollm_rl": {"envs", "agents"}, "envs": {"agents"}, "agents": set()}
# What each package of ollm_rl may import; `errors` is free to all.
BELOW: dict[str, set[str]] = {
    "common": set(),
    "reward": {"common"},
    "tasks": {"common", "reward"},
    "models": {"common"},
    "options": {"common", "tasks", "models"},
    "rollout": {"common", "reward", "tasks", "models", "options"},
    "config": {"common", "reward", "tasks", "models", "options"},
}
BELOW["session"] = {"common", "reward", "tasks", "models", "options", "rollout", "config"}
BELOW["evaluation"] = {*BELOW["session"], "session"}
BELOW["oracle"] = {*BELOW["evaluation"], "evaluation"}
BELOW["report"] = {*BELOW["evaluation"], "evaluation"}
BELOW["cluster"] = {*BELOW["session"], "session"}
BELOW["experiments"] = {*BELOW["oracle"], "oracle", "report", "cluster"}
BELOW["serving"] = {*BELOW["oracle"], "oracle", "report"}
BELOW["view"] = {*BELOW["report"], "report"}
BELOW["cli"] = {*BELOW["experiments"], "experiments", "serving", "view"}
HEAVY = {"ray", "trl", "peft"}
WEB = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "openai"}  # the extra `serve`
SERVE = {Path("ollm_rl") / "serving" / f"{name}.py" for name in ("serve", "guard", "metrics", "openai_types")}
TRACKERS = {"trackio", "wandb", "mlflow"}
NEED_THEM = {Path("agents") / f"{name}.py" for name in ("ppo", "rllib", "lora", "lora_grpo", "trainers")}
NEED_THEM.add(Path("ollm_rl") / "models" / "adapters.py")
LIGHT = (
    "ollm_rl",
    "ollm_rl.config.compose",
    "ollm_rl.reward",
    "ollm_rl.options",
    "ollm_rl.cli.commands",
    "ollm_rl.view.opening",
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for layer in FORBIDDEN for path in (ROOT / layer).rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, anywhere in it; of ours, the modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


def package(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_imports_point_downwards(layer):
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN[layer], path


def test_packages_import_only_what_is_below_them():
    wrong = []
    for module, path in MODULES.items():
        mine = package(module)
        if not module.startswith("ollm_rl.") or mine in ("errors", "__main__", "lm_eval"):
            continue
        theirs = {package(name) for name in imports(path) if name.startswith("ollm_rl.")} - {mine, "errors"}
        wrong += [f"{module} imports ollm_rl.{name}" for name in sorted(theirs - BELOW[mine])]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    """`TopologicalSorter` names a circle."""
    sorted_ = TopologicalSorter({module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()})
    assert list(sorted_.static_order())


def test_every_package_says_what_it_is_for():
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            assert (ast.get_docstring(ast.parse(path.read_text())) or "").strip(), module
    assert BELOW.keys() == {package(module) for module, path in MODULES.items() if path.name == "__init__.py"} - {""}


def test_ray_and_trl_stay_where_they_are_needed():
    for path in MODULES.values():
        if path.relative_to(ROOT) not in NEED_THEM and path.parent != ROOT / "ollm_rl" / "cluster":
            assert not {name.split(".")[0] for name in imports(path)} & HEAVY, path


def test_trackers_stay_where_they_are_needed():
    for path in MODULES.values():
        if path.relative_to(ROOT) != Path("ollm_rl/common/tracker_clients.py"):
            assert not {name.split(".")[0] for name in imports(path)} & TRACKERS, path


def test_only_the_server_needs_a_web_framework():
    ours = {module_of(ROOT / path) for path in SERVE}
    for path in MODULES.values():
        if path.relative_to(ROOT) not in SERVE:
            found = imports(path)
            assert not {name.split(".")[0] for name in found} & WEB, path
            assert not found & ours or path.relative_to(ROOT) == Path("ollm_rl/cli/commands.py"), path


def test_engine_oracle_and_grpo_run_without_ray():
    code = (
        "import sys, envs, agents.grpo, agents.distill, agents.shortlist_head, ollm_rl.cli, ollm_rl.experiments.compare, ollm_rl.oracle;"
        "print([m for m in ('ray', 'trl', 'peft') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", LIGHT)
def test_what_the_command_line_checks_with_loads_no_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
