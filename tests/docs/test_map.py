"""docs/map.md has one line for every file."""

import shutil
import subprocess
import sys

import pytest

from tests.test_layers import ROOT


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="lists files with git")
def test_the_map_is_up_to_date():
    made = subprocess.run(
        [sys.executable, "docs/make_map.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "map.md").read_text() == made, "run python docs/make_map.py > docs/map.md"
    assert "TODO" not in made
