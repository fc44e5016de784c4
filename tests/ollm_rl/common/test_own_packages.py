"""Packages of the same names: which one is in the way is said before anything else goes wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ollm_rl
from ollm_rl.common.own_packages import BESIDE, check_own_packages
from ollm_rl.errors import ConfigurationError
from tests.test_layers import ROOT


def test_ours_are_found():
    assert check_own_packages() == ROOT == Path(ollm_rl.__file__).parent.parent


@pytest.mark.parametrize("name", BESIDE)
def test_another_one_is_named_with_its_place(name, tmp_path):
    """In a process of its own, as a user has it: the other package comes first on the path."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "COLUMNS": "1000"}
    for command in ("doctor", "train"):
        found = subprocess.run(
            [sys.executable, "-m", "ollm_rl", command], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert found.returncode == 2, found.stderr
        assert f"{name} is {tmp_path / name / '__init__.py'}" in found.stderr
        assert "Traceback" not in found.stderr


def test_a_directory_without_init_hides_nothing(tmp_path):
    for name in BESIDE:
        (tmp_path / name).mkdir()
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    code = "from ollm_rl.common.own_packages import check_own_packages; print(check_own_packages())"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(ROOT)


def test_one_that_is_missing_is_said(monkeypatch):
    monkeypatch.setattr("ollm_rl.common.own_packages.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="agents is missing"):
        check_own_packages()
