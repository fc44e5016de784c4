"""Rows of TRL's data sets: what is the problem, what its solution, what came before."""

import json

import pytest

import ollm_rl as ol
from ollm_rl.errors import DataError
from ollm_rl.tasks import make_task
from ollm_rl.tasks.base import SPLITS
from ollm_rl.tasks.conversations import from_trl
from ollm_rl.tasks.prompts import Prompter


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "1+1?"}, {"problem": "1+1?"}),
        ({"prompt": "1+1?", "completion": "It is 2.", "answer": "2"}, {"problem": "1+1?", "solution": "It is 2.", "answer": "2"}),
        ({"prompt": [user("1+1?")], "completion": [assistant("2")]}, {"problem": "1+1?", "solution": "2"}),
        ({"messages": [user("1+1?"), assistant("2")]}, {"problem": "1+1?", "solution": "2"}), ({"messages": [user("1+1?")]}, {"problem": "1+1?"}),
        ({"prompt": [SYSTEM, user("1+1?")]}, {"problem": "1+1?"}),
        ({"prompt": [user("hi"), assistant("yes?"), user("1+1?")]}, {"problem": "1+1?"}),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}]}, {"problem": "1+1?"}),
        ({"problem": "1?", "prompt": "x"}, {"problem": "1?", "prompt": "x"}), ({"question": "1?"}, {"question": "1?"}),
    ],
)  # fmt: skip
def test_formats(row, found):
    given, before = from_trl(row, "here")
    assert given == found
    assert before.system == ("Be brief." if "system" in str(row) else None)
    assert before.turns == ((("user", "hi"), ("assistant", "yes?")) if "hi" in str(row) else ())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": 1}, "expected a text or a list of messages"), ({"prompt": []}, "messages of nobody"), ({"prompt": [{"role": "bot", "content": "x"}]}, "has the message"),
        ({"prompt": [assistant("x")]}, "messages of assistant; expected the user's"), ({"prompt": [user("x"), user("y")]}, "messages of user, user"),
        ({"prompt": "x", "completion": [user("y")]}, "expected one of the assistant"), ({"messages": [user(None)]}, "has the content None"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "expected a text"), ({"messages": ["x"]}, "has the message 'x'"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_named(row, said):
    with pytest.raises(DataError, match=f"here .*{said}"):
        from_trl(row, "here")


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_conversation_is_the_prompt_that_the_model_sees(tmp_path, tiny):
    rows = [
        {"prompt": [SYSTEM, user(f"hi {i}"), assistant("yes?"), user(f"{i} + 1?")], "completion": [assistant(rf"It is \boxed{{{i + 1}}}.")]}
        for i in range(40)
    ]  # fmt: skip
    task = make_task("jsonl", path=written(tmp_path / "x.jsonl", rows), num_examples=0)
    problems = [p for split in SPLITS for p in task.problems(split, 99)]
    assert len(problems) == 40 and not task.unanswered and task.system_prompt == "Be brief."
    assert all(p.answer == str(int(p.problem.split()[0]) + 1) for p in problems)
    prompter = Prompter.for_task(tiny.backbone, task)
    for p in problems[:5]:
        whole = prompter.decode([*prompter.prefix, *prompter.encode(p)])
        words = [whole.index(x) for x in ("Be brief.", p.turns[0][1], "yes?", f"{p.problem}")]
        assert words == sorted(words)
    assert prompter.own(problems[0]) != prompter.own(problems[1])
    twins = [{"prompt": [user(f"{i}"), assistant("yes?"), user("Go on.")], "answer": i % 3} for i in range(40)]
    path = written(tmp_path / "x.jsonl", twins)
    same = make_task("jsonl", path=path, num_examples=0)
    assert sum(len(same.problems(split, 99)) for split in SPLITS) == 40 and all(
        same.problems(split, 1) for split in SPLITS
    )
    rows[7]["prompt"][0] = {"role": "system", "content": "Be long."}
    path = written(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError, match="line 8 has another system message than .*line 1"):
        make_task("jsonl", path=path)
    assert make_task("jsonl", path=path, system_prompt="Mine.").system_prompt == "Mine."


def test_answers_are_needed_only_where_the_reward_compares_with_them(tmp_path, tiny):
    path = written(tmp_path / "x.jsonl", [{"prompt": f"{i}?", "anwser": i} for i in range(9)])
    task = make_task("jsonl", path=path)
    with pytest.raises(DataError, match="line 1 has no field 'answer'; found fields .*Did you mean 'anwser'"):
        ol.Session(tiny.backbone, tiny.plugin, task)
    ol.Session(tiny.backbone, tiny.plugin, task, reward=lambda completions, **_: [0.0 for _ in completions]).close()
    assert not make_task("jsonl", path=path, columns={"answer": "anwser"}).unanswered


def test_columns_of_ones_own_are_no_conversation(tmp_path, tiny):
    rows = [{"problem": f"{i}?", "answer": i, "turns": i, "system": f"metric {i}"} for i in range(20)]
    task = make_task("jsonl", path=written(tmp_path / "x.jsonl", rows), num_examples=0)
    found = [p for split in SPLITS for p in task.problems(split, 99)]
    assert len(found) == 20 and task.system_prompt is None
    assert all(p.turns == () and p.extra == {"turns": int(p.answer), "system": f"metric {p.answer}"} for p in found)
    assert Prompter.for_task(tiny.backbone, task).encode(found[0])
