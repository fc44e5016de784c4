"""The Python of README and docs runs: on the tiny backbone, with sizes cut down, one page after another in a notebook's state."""

import contextlib
import io
import re
import shutil

import pytest

import ollm_rl as ol
from ollm_rl.cli.app import main
from ollm_rl.options.policies import LatentPolicy
from tests.conftest import QUICK_KEYS
from tests.docs.pages import ALL, Block, modules

QUICK = (
    ('"smollm2"', '"tiny"'),
    (
        "ol.convert(backbone, task)",
        "ol.convert(backbone, task, num_solutions=60, num_heldout=20, epochs=1, prior_epochs=1, reader_epochs=1)",
    ),
    ("total_episodes=768", "total_episodes=16, num_generations=4, problems_per_iteration=4, num_problems=16"),
    ("num_problems=200, samples=8", "num_problems=4, samples=2"),
    ("num_problems=50", "num_problems=4"),
    ("budget=500", "budget=40"),
    ('problems("test", 50)', 'problems("test", 2)'),
    ('backbone="tiny", task="chain_sum"', "session=session"),
    ("num_envs=64,", "num_envs=2, session=session,"),
)
RUN = (
    "README.md", "docs/start/quickstart.md", "docs/python.md", "docs/reference/results.md", "docs/reference/files.md",
    "docs/reference/environments.md", "docs/guides/deployment.md", "docs/guides/backbones.md", "docs/export.md", "docs/play.md",
    "docs/agents.md", "docs/tasks.md", "docs/oracle.md", "docs/verifier.md",
)  # fmt: skip
PYTHON = [block for block in ALL if block.language == "python" and ">>> " not in block.text]


def run(block: Block, names: dict) -> None:
    text = block.text
    for long, quick in QUICK:
        text = text.replace(long, quick)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile("\n" * block.line + text, block.page, "exec"), names)


@pytest.fixture(scope="module")
def notebook(own_cache, tmp_path_factory):
    """The names that README's notebook leaves, in a directory with the runs that pages speak of."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.syspath_prepend(str(folder))
        for name, text in modules().items():
            (folder / f"{name}.py").write_text(text)
        names: dict = {"__name__": "notebook"}
        [first] = [block for block in PYTHON if block.page == "README.md"]
        run(first, names)
        small = [
            "agent.num_generations=4",
            "agent.problems_per_iteration=4",
            "agent.total_episodes=16",
            "agent.num_problems=16",
        ]
        main(["train", "agent=grpo", "name=demo", *QUICK_KEYS, *small])
        for place in ("demo/grpo-0", "first"):
            shutil.copytree("runs/notebook", f"runs/{place}")
        shutil.copytree("runs/demo/rollouts", "runs/demo/grpo-0/rollouts", dirs_exist_ok=True)
        names["session"].lm.save_pretrained("runs/my_plugin/plugin")
        ol.export(names["agent"], "sums")
        yield names
        names["session"].close()


@pytest.mark.parametrize("page", RUN)
def test_python_of_a_page_runs(page, notebook):
    mine = [block for block in PYTHON if block.page == page]
    assert mine
    names = dict(notebook)
    for block in mine:
        names["agent"] = notebook["agent"]  # some blocks make another
        run(block, names)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_can_be_read(block):
    compile(block.text, block.page, "exec")


def test_what_readers_copy_works(notebook):
    """The classes of the guides, in files of their own."""
    session, problems = notebook["session"], notebook["session"].problems("test", 2)
    agent = ol.make_agent("my_reinforce.Reinforce", session, total_episodes=8, episodes_per_iteration=8)
    assert agent.learn("runs/reinforce")["train_episodes"] == 8
    prior = LatentPolicy.from_prior(session.plugin)
    found = ol.Oracle(session, prior, search="my_searches.RandomOrder", params={"seed": 1}, budget=40).solve(problems)
    assert [search.problem for search in found] == problems
    assert len(ol.make_task("my_tasks.Products", largest=20).problems("train", 5)) == 5
    from my_rewards import right_and_short

    assert right_and_short(["?"], ["It is \\boxed{3}."], ["3"]) == [1.1]


def test_the_substitutions_are_met():
    """A page that says it otherwise would run for minutes."""
    text = "".join(block.text for block in PYTHON if block.page in RUN).replace('"smollm2"', '"tiny"')
    assert [long for long, _ in QUICK[1:] if long not in text] == []
    assert not re.findall(r"total_episodes=(?!768\b)\d{3,}", text)
