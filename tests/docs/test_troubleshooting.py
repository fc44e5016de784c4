"""The messages of docs/guides/troubleshooting.md are those that the code gives."""

import ast
import re

import pytest

from tests.test_layers import ROOT

OTHERS = (
    "agent.learning_rate=x; ",
    "zsh: ",
    "torch.OutOfMemoryError",
    "ModuleNotFoundError",
    "agents / envs / configs",
)  # not of ours, or made of parts
PAGE = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text().partition("## Questions")[0]
MESSAGES = [
    message
    for line in PAGE.splitlines()
    if line.startswith("| `") and not (message := line.split(" | ")[0].strip("|` ")).startswith(OTHERS)
]


def said() -> str:
    """What stands in the strings of the code; what is filled in is left out."""
    found = []
    for folder in ("ollm_rl", "agents", "envs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return " \0 ".join(" ".join(text.split()) for text in found)


@pytest.fixture(scope="module")
def code() -> str:
    return said()


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_code(message, code):
    words = re.sub(r"\.\.\.", " \0 ", message).split()
    runs = [" ".join(words[at : at + 3]) for at in range(len(words) - 2)] or [" ".join(words)]
    assert any(run in code for run in runs), message


def test_there_are_many():
    assert len(MESSAGES) > 40
