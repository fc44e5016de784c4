"""A default stands in one place: the dataclass that has the setting."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ollm_rl.common.config_files import SCHEMAS, SECTIONS, config_file, members, roots, schema, section
from ollm_rl.common.locate import dotted_name
from ollm_rl.common.settings import Config, setting, settings_of
from ollm_rl.config.compose import compose
from ollm_rl.config.document import document
from ollm_rl.errors import ConfigurationError
from ollm_rl.tasks import TASKS
from tests.test_layers import FORBIDDEN, MODULES, ROOT

# Functions whose argument of that name is another thing: problems are drawn, and episodes asked for, by a seed of their own.
OTHER_THINGS = {"seed", "split", "search"}
KINDS = [*roots(), *(section(name) for name in SECTIONS)]
KINDS += [getattr(import_module(module), name) for group in SCHEMAS.values() for name, module in group.items()]


def literals(path: Path):
    """Arguments of all functions of a file that have a literal as default."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args]
            pairs = [*zip(named[len(named) - len(arguments.defaults) :], arguments.defaults, strict=True)]
            pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
            for argument, default in pairs:
                if isinstance(default, ast.Constant) and default.value is not None:
                    yield node.name, argument.arg, default.value


def test_no_signature_repeats_a_default():
    known = {
        (name, repr(s.default)) for kind in KINDS for name, s in settings_of(kind).items() if name not in OTHER_THINGS
    }
    found = []
    for module, path in MODULES.items():
        if module == "agents.objective":  # formulas, in which 0 switches a term off
            continue
        if module.split(".")[0] in FORBIDDEN and path.is_relative_to(ROOT):
            found += [f"{module}.{f}({a}={v!r})" for f, a, v in literals(path) if (a, repr(v)) in known]
    assert not found


@pytest.mark.parametrize("group", SCHEMAS)
def test_files_hold_differences_only(group):
    for name in members(group):
        if (kind := schema(group, name)) is None:
            continue
        known = settings_of(kind)
        own = OmegaConf.to_container(config_file(f"{group}/{name}.yaml"), resolve=False)
        assert own["defaults"][0] == kind.__name__
        for key in own.keys() - {"defaults", "_target_"}:
            assert own[key] != known[key].default, f"{group}/{name}.yaml: {key}"


def test_every_setting_has_a_line_for_the_docs_and_an_allowed_default():
    for kind in KINDS:
        for name, known in settings_of(kind).items():
            assert known.rules.get("doc"), f"{kind.__name__}.{name}"
            known.check(name, known.default)


def test_the_page_of_all_settings_is_up_to_date():
    assert (ROOT / "docs" / "configuration.md").read_text() == document(), (
        "run python -m ollm_rl.config.document > docs/configuration.md"
    )


@pytest.mark.parametrize(
    ("rules", "good", "bad"),
    [
        ({"default": 1, "at_least": 1}, [1, 7, 2**31 - 1], [0, -1, 1.0, True, "1", None, 2**31]),
        ({"default": 0.5, "above": 0, "at_most": 1}, [1, 0.1], [0, 1.5, float("nan"), float("inf"), True, "0.5"]),
        ({"default": None, "at_least": 0}, [None, 0, 2.5], [-1, "x"]),
        ({"default": "a", "choices": ("a", "b")}, ["a", "b"], ["c", None, 1]),
        ({"default": True}, [True, False], [1, "true", None]),
        ({"default": [0]}, [[], [1, 2]], [[True], ["1"], 3, None]),
    ],
)
def test_values_are_checked_by_type_and_rule(rules, good, bad):
    rules = dict(rules)
    default = rules.pop("default")
    hints = {int: int, float: float, type(None): float | None, str: str, bool: bool, list: list[int]}
    kind = type("Kind", (), {"__annotations__": {"x": hints[type(default)]}, "x": setting(default, "", **rules)})
    known = settings_of(__import__("dataclasses").dataclass(kind))["x"]
    for value in good:
        known.check("group.x", value)
    for value in bad:
        with pytest.raises(ConfigurationError, match="group.x=.*; expected "):
            known.check("group.x", value)


def test_unknown_settings_are_said_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"no setting 'num_slot'; it takes .*Did you mean 'num_slots'\?"):
        import_module("ollm_rl.rollout.config").EngineConfig.of({"num_slot": 3})
    assert issubclass(import_module("ollm_rl.rollout.config").EngineConfig, Config)


@pytest.mark.parametrize("name", TASKS)
def test_the_command_line_judges_a_task_as_python_does(name, tmp_path):
    """By the reward that the task has: a group's member of its own says so to Hydra."""
    path = [f"task.path={tmp_path / 'none.jsonl'}"] if name == "jsonl" else []
    assert compose([f"task={name}", *path]).config.reward._target_ == dotted_name(TASKS[name].default_reward)
    assert compose([f"task={name}", "reward=reasoning_gym", *path]).config.reward._target_.endswith("ReasoningGym")
