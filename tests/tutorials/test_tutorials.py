"""The tutorials run from the first cell to the last on the tiny model, and their pages say what they say."""

import os
import re
import subprocess
import sys

import pytest

from tests.test_layers import ROOT

NOTEBOOKS = sorted((ROOT / "tutorials").glob("[0-9]_*.py"))
PAGES = ROOT / "docs" / "tutorials"
LONGEST, LARGEST_KB = 15, 300  # lines of a cell; all pages with their pictures


def cells(path):
    """(is it text, its lines) of every cell of a notebook in the percent format."""
    parts = re.split(r"^# %%(.*)\n", path.read_text(), flags=re.M)[1:]
    return [("[markdown]" in head, body.strip()) for head, body in zip(parts[::2], parts[1::2], strict=True)]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, own_cache, tmp_path):
    """In a process of its own, as a user runs it."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "TUTORIAL_BACKBONE": "tiny", "MPLBACKEND": "Agg", "OLLM_RL_CACHE": str(own_cache), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    found = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_explained(path):
    found = cells(path)
    assert found[0][0] and found[0][1].startswith("# # ")
    assert "Claim:" in found[0][1] and "What this does not show" in path.read_text()
    for text, body in found:
        assert text or len(re.sub(r"\n\s*\n", "\n", body).splitlines()) <= LONGEST, body


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_page_is_of_this_text(path):
    page = PAGES / f"{path.stem}.md"
    shown = page.read_text()
    for text, body in cells(path):
        said = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines()) if text else body
        assert said.strip() in shown, f"{page} is older than {path}: python tutorials/build.py {path.stem}"
    assert not re.search(r"Traceback|/home/|/root/|/tmp/", shown)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", shown):
        assert (PAGES / picture).is_file()


def test_the_pages_are_small():
    assert sum(path.stat().st_size for path in PAGES.iterdir()) < LARGEST_KB * 1000
    assert {path.stem for path in PAGES.glob("*.md")} == {path.stem for path in NOTEBOOKS}
