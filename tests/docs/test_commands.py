"""Every `ollm-rl` line of README and docs is one that the command line takes: its command, keys and values."""

import re
import shlex
from collections.abc import Iterator

import pytest

from ollm_rl.cli.app import own_settings, tuned_agents
from ollm_rl.cli.commands import COMMANDS
from ollm_rl.cli.sweep import SWEPT, combinations
from ollm_rl.config.checks import check_values
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError
from ollm_rl.experiments.overrides import of_tasks, shared, trial_settings
from ollm_rl.experiments.tuning_plan import plan_of
from tests.docs.pages import ALL, Block, modules

SHELL = ("", "bash", "sh", "shell", "console")
OURS = re.compile(r"(?:^|[\s&|/])(?:ollm-rl|-m ollm_rl|ollm_rl/__main__\.py) ")
ENDS = {"&&", "||", "|", "&", ";", ">", "2>&1"}
PLACES = ("view",)  # commands that take a place as well


def commands(block: Block) -> Iterator[list[str]]:
    """The arguments of every call of ours in a block of shell lines."""
    for line in block.text.replace("\\\n", " ").splitlines():
        line = line.removeprefix("$ ")
        if not (found := OURS.search(line)) or "..." in line or "[group=choice]" in line:
            continue
        words = shlex.split(re.sub(r"<[^>]+>", "x", line[found.end() :]), comments=True)
        yield words[: next((i for i, word in enumerate(words) if word in ENDS), len(words))]


LINES = [(block, words) for block in ALL if block.language in SHELL for words in commands(block)]


def check(words: list[str]) -> None:
    """As `ollm-rl <words> --dry-run` does, but for classes and files, which are the reader's own.

    Raises:
        ConfigurationError: the command line would refuse it.
    """
    words = [word for word in words if not word.startswith("--")]
    if words[0] not in COMMANDS:
        raise ConfigurationError(f"unknown command '{words[0]}'")
    command, overrides = words[0], words[1:]
    if command in PLACES:
        overrides = [word for word in overrides if "=" in word]
    if command == "tune":
        overrides = tuned_agents(overrides)
    overrides = own_settings(command, overrides)
    for job in combinations(overrides) if command in SWEPT else [overrides]:
        settings = compose(shared(job) if command in ("compare", "demo", "tune") else job)
        check_values(settings.config, settings.choices)
        if command == "tune":
            plan_of(job, settings)
        if command == "compare":
            for mine, given in of_tasks(job, settings).values():
                for name in mine.config.agents:
                    if "." not in name:
                        trial_settings(given, mine, name)


@pytest.fixture(scope="module", autouse=True)
def readers_modules(tmp_path_factory):
    """The classes that the documents show, where Python finds them."""
    folder = tmp_path_factory.mktemp("modules")
    for name, text in modules().items():
        (folder / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(folder))
        yield


@pytest.mark.parametrize("at", range(len(LINES)), ids=lambda at: str(LINES[at][0]))
def test_lines_of_the_documents_are_taken(at):
    block, words = LINES[at]
    try:
        check(words)
    except ConfigurationError as error:
        pytest.fail(f"{block}: ollm-rl {shlex.join(words)}: {error}")


def test_there_are_lines_and_wrong_ones_are_refused():
    assert len(LINES) > 80
    for wrong in (
        ["trian"],
        ["train", "agent=grop"],
        ["train", "agent.learning_rate=x"],
        ["tune", "agent=grpo", "grpo.rate=1,2"],
    ):
        with pytest.raises(ConfigurationError):
            check(wrong)
