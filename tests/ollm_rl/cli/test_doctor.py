"""`ollm-rl doctor` on one's own data and reward: what is judged, and what a reward has to take."""

import json
import textwrap

import pytest

from ollm_rl.cli.app import main

REWARDS = """
    import json

    def off(completions, answer, **columns):
        return [-2.0 if a == "3" else 0.5 for c, a in zip(completions, answer)]

    def third(completions, answer, **columns):
        return [float(int(a) % 3 == 0) for a in answer]

    def most(completions, answer, **columns):
        return [float(a != "3") for a in answer]

    def last(completions, **columns):
        return [float(c.split()[-1] == "x") for c in completions]

    def parses(completions, **columns):
        return [1.0 if c == "" else float(bool(json.loads(c) or True)) if "boxed" not in c else 1.0 for c in completions]

    def nothing(completions, **columns):
        return [1.0 if c else float("nan") for c in completions]

    def counted(completions, completion_ids, **columns):
        return [len(c) / len(ids) * 0 + 1 for c, ids in zip(completions, completion_ids)]

    def undecided(completions, **columns):
        return [None for _ in completions]
"""


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys, own_cache):
    """Its exit code, and its lines by check, for a reward on a file of sums."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(textwrap.dedent(REWARDS))
    rows = [{"problem": f"{i} + 0?", "answer": i, "solution": f"Nothing is added: {i}."} for i in range(40)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def examined(reward, *more):
        code = 0
        try:
            main(["doctor", "task=jsonl", "task.path=sums.jsonl", "backbone=tiny", f"reward={reward}", *more])
        except SystemExit as stopped:
            code = stopped.code
        found, name = {}, ""
        for line in capsys.readouterr().out.splitlines():
            if line.startswith(("ok ", "warn ", "fail ", "skip ")):
                sign, name = line.split()[:2]
                found[name] = sign
            found[name] = f"{found.get(name, '')} {' '.join(line.split())}"
        return code, found

    return examined


def test_solutions_that_nobody_pays_fail_and_one_is_shown(doctor):
    code, found = doctor("my_rewards.off")
    said = found["solutions"]
    assert code == 2 and said.startswith("fail") and "0 of 38 worked solutions get the full reward from 'off'" in said
    assert "the least got 'Nothing is added: 3.' (problem 4): reward -2" in said
    assert "The full reward is 1 (reward.solved_at)" in said
    code, found = doctor("my_rewards.off", "reward.solved_at=0.5")
    assert code == 0 and found["solutions"].startswith("ok") and "37 of 38" in found["solutions"]
    code, found = doctor("my_rewards.undecided")
    assert code == 2 and "no reward (None)" in found["solutions"] and found["reward"].startswith("ok")


def test_fewer_than_half_are_a_warning(doctor):
    code, found = doctor("my_rewards.third")
    assert (
        code == 0
        and found["solutions"].startswith("warn")
        and "the least got 'Nothing is added: " in found["solutions"]
    )
    code, found = doctor("my_rewards.most")
    assert code == 0 and found["solutions"].startswith("ok") and "the least got" in found["solutions"]


def test_solutions_that_do_not_fit_the_token_budget_are_a_warning(doctor):
    code, found = doctor("my_rewards.most", "engine.max_new_tokens=2")
    assert code == 0 and found["solutions"].startswith("warn") and "38 have more than 2 tokens" in found["solutions"]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (
            "last",
            ("raised IndexError", "It fails for ''", "in last return [float(c.split()[-1]", "my_rewards.py, line"),
        ),
        ("parses", ("raised JSONDecodeError", "It fails for '?!'", "json.loads(c)")),
        ("nothing", ("returned nan", "It was asked about the text ''")),
    ],
)
def test_a_reward_has_to_take_any_text(doctor, reward, words):
    code, found = doctor(f"my_rewards.{reward}")
    assert code == 2 and found["reward"].startswith("fail") and found["solutions"].startswith("skip")
    for each in words:
        assert each in found["reward"]
    assert found["reward"].count("File ") <= 2  # the user's alone; a comprehension may have a frame


def test_texts_come_with_their_tokens(doctor):
    code, found = doctor("my_rewards.counted")
    assert code == 0 and "'counted' gives reward 1 for '', reward 1 for '?!'" in found["reward"]


def test_a_reward_that_pays_texts_that_answer_nothing_is_doubted(doctor):
    code, found = doctor("my_rewards.counted")
    assert code == 0 and found["reward"].startswith("warn")
    assert "pays texts that answer nothing in full" in found["reward"]


def test_rows_without_an_answer_and_misspelt_names_are_said(doctor, tmp_path):
    rows = [{"problem": f"{i}?", "answer": i} for i in range(40)] + [{"problem": "none?"}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Such problems stay, and rewards get '' as their answer." in doctor("my_rewards.undecided")[1]["task"]
    assert "Did you mean 'undecided'?" in str(doctor("my_rewards.undecide")[1])
    (tmp_path / "sums.jsonl").write_text('{"question": "1?", "answer": 1}\n')
    assert "task.columns={problem: <column>}" in doctor("my_rewards.undecided")[1]["task"]


def test_golds_of_which_none_is_accepted_fail(doctor, tmp_path):
    (tmp_path / "sums.jsonl").write_text(json.dumps({"problem": "1?", "answer": r"\frac{1}{2"}) + "\n")
    code, found = doctor("math_verify")
    assert code == 2 and found["golds"].startswith("fail") and "0 of 1 gold answers are accepted" in found["golds"]


def test_a_misspelt_setting_is_refused(doctor):
    code, found = doctor("my_rewards.off", "reward.of=3")
    assert code == 2 and "has no setting 'of'" in found["reward"]
