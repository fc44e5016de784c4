"""What is installed: every file that the packages read travels in the wheel, and the version is one."""

import subprocess
import tomllib
from pathlib import PurePosixPath

import pytest
import yaml

import ollm_rl
from tests.test_layers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="lists files with git")
def test_data_files_are_in_the_wheel():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    given = {name.replace(".", "/"): patterns for name, patterns in data.items()}
    packages = [pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    files = subprocess.run(
        ["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    others = [PurePosixPath(name) for name in files if not name.endswith(".py")]
    assert others

    def travels(path):
        return any(
            path.is_relative_to(folder)
            and any(
                path.relative_to(folder).full_match(p)
                if hasattr(path, "full_match")
                else matches(path.relative_to(folder), p)
                for p in patterns
            )
            for folder, patterns in given.items()
        )

    assert not [str(path) for path in others if not travels(path)]


def matches(path, pattern):
    """`full_match` of Python 3.13."""
    if pattern.startswith("**/"):
        return PurePosixPath(path.name).match(pattern[3:])
    return len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)


def test_the_version_is_one():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["project"]["version"] == ollm_rl.__version__
    assert f"## {ollm_rl.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_issue_templates_are_forms():
    """GitHub shows nothing of a form that it cannot read."""
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        found = yaml.safe_load(path.read_text())
        if path.stem != "config":
            assert {"name", "description", "body"} <= found.keys()
            for field in found["body"]:
                assert (
                    field["type"] in ("input", "textarea", "dropdown", "checkboxes", "markdown")
                    and field["attributes"]["label"]
                )
