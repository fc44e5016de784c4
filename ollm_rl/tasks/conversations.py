"""Rows in the formats of TRL's data sets, as the fields that we read.

`prompt` and `completion` are texts (standard) or lists of messages (conversational); `messages` holds both. A message is
`{"role": ..., "content": ...}`. What the user says last is the problem, what the assistant says last its solution.
"""

from typing import Any, NamedTuple

from ollm_rl.errors import DataError

ROLES = ("system", "user", "assistant")
MESSAGE = '{"role": ..., "content": ...}'


class Said(NamedTuple):
    """What stands before a problem: a system message, and earlier messages as (role, text)."""

    system: str | None = None
    turns: tuple[tuple[str, str], ...] = ()


def from_trl(row: dict[str, Any], where: str) -> tuple[dict[str, Any], Said]:
    """The row with `problem`, and with `solution` if it has one, and what stands before the problem.

    Rows that have a `problem`, and those that have none of TRL's columns, stay as they are.

    Raises:
        DataError: messages that are none, or that no prompt can be made of.
    """
    if "problem" in row or not ("prompt" in row or "messages" in row):
        return row, Said()
    rest = {key: value for key, value in row.items() if key not in ("prompt", "completion", "messages")}
    said = None
    if "messages" in row:
        messages = _messages(row["messages"], where, "messages")
        if messages and messages[-1]["role"] == "assistant":
            said = messages.pop()["content"]
    else:
        prompt, completion = row["prompt"], row.get("completion")
        messages = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt, where, "prompt")
        )
        if isinstance(completion, list):
            answers = _messages(completion, where, "completion")
            if len(answers) != 1 or answers[0]["role"] != "assistant":
                raise DataError(f"{where} has {len(answers)} messages in 'completion', expected one of the assistant.")
            said = answers[0]["content"]
        elif completion is not None:
            said = completion
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))] or len(roles) % 2 == 0:
        raise DataError(
            f"{where} has messages of {', '.join(roles) or 'nobody'}; expected the user's, then by turns the assistant's and the "
            "user's, after at most one of the system, and the user's last"
        )
    found = {**rest, "problem": messages[-1]["content"]}
    if said is not None and rest.get("solution") is None:
        found["solution"] = said
    return found, Said(system, tuple((message["role"], message["content"]) for message in messages[:-1]))


def _messages(value: Any, where: str, field: str) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise DataError(
            f"{where} has {value!r:.60} in the field '{field}', expected a text or a list of messages {MESSAGE}."
        )
    found = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise DataError(
                f"{where} has the message {message!r:.60} in '{field}', expected {MESSAGE} of {', '.join(ROLES)}."
            )
        found.append({"role": role, "content": _content(message.get("content"), where, field)})
    return found


def _content(content: Any, where: str, field: str) -> str:
    if isinstance(content, list) and all(isinstance(x, dict) and x.get("type") == "text" for x in content):
        content = "".join(str(x.get("text") or "") for x in content)
    if not isinstance(content, str):
        raise DataError(f"{where} has the content {content!r:.60} in '{field}', expected a text.")
    return content
