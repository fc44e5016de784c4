"""The same rows from every format of file; what is damaged is named with its place."""

import csv
import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from ollm_rl.errors import DataError
from ollm_rl.tasks import make_task
from ollm_rl.tasks.base import SPLITS
from ollm_rl.tasks.formats import read_rows

ROWS = [
    {"problem": f"What is {i} + 1?", "answer": str(i + 1), "solution": f"{i} + 1 = {i + 1}", "difficulty": 1.5, "split": split}
    for i, split in enumerate(["sft", "train", "tune", "test"] * 5)
]  # fmt: skip


def as_lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_array(path):
    path.write_text(json.dumps(ROWS, indent=2))


def as_table(path, delimiter=","):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)


def as_parquet(path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS = {
    "x.jsonl": as_lines, "x.json": as_array, "x.csv": as_table, "x.tsv": lambda path: as_table(path, "\t"), "x.parquet": as_parquet,
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_all_formats_give_the_same_problems(tmp_path, name, packed):
    as_lines(tmp_path / "told.jsonl")
    WRITERS[name](path := tmp_path / name)
    if packed:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path = tmp_path / f"{name}.gz"
    task, told = (make_task("jsonl", path=str(p), num_examples=1) for p in (path, tmp_path / "told.jsonl"))
    for split in SPLITS:
        found = [(p.problem, p.answer, p.solution, p.extra) for p in task.problems(split, 9)]
        assert found and found == [(p.problem, p.answer, p.solution, p.extra) for p in told.problems(split, 9)]


def test_a_directory_is_read_whole_and_names_of_files_are_marks(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, number in (
        ("train-00000-of-00002.jsonl", 0),
        ("deep/TEST.csv", 1),
        ("other.json", 2),
        ("deep/trainer.jsonl", 3),
    ):
        row = {"problem": f"{number}?", "answer": number}
        text = f"problem,answer\n{number}?,{number}\n" if name.endswith("csv") else json.dumps(row)
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / ".hidden.jsonl").write_text("no data")
    assert [(row["problem"], row.get("split")) for _, row in read_rows(str(tmp_path))] == [
        ("1?", "test"), ("3?", None), ("2?", None), ("0?", "train"),
    ]  # fmt: skip


def test_numbers_keep_their_digits_and_times_become_texts(tmp_path):
    from datetime import date
    from decimal import Decimal

    rows = [
        {"problem": "1?", "answer": Decimal("2.50"), "day": date(2026, 1, 2), "raw": b"x", "tests": {"calls": [[1, 2]]}}
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    [(where, row)] = read_rows(str(tmp_path / "x.parquet"))
    assert where.endswith("x.parquet, row 1") and json.dumps(row)
    assert row["answer"].digits == "2.50" and row["day"] == "2026-01-02" and row["tests"] == {"calls": [[1, 2]]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", b"problem,answer\n1?,2,3\n", "line 2 has 3 cells; expected 2"), ("x.csv", b"a,a\n1,2\n", "names the column 'a' twice"),
        ("x.csv", b'problem,answer\n"1?,2\n', "line 2 cannot be read"), ("x.csv", b"", "is empty"), ("x.csv", b"problem,answer\n", "is empty"),
        ("x.csv", b"problem,answer\n1?,\xff\n", "not a UTF-8 text"), ("x.json", b"[]", "is empty"), ("x.json", b'[{"problem": 1},]', "is not JSON"),
        ("x.jsonl.gz", gzip.compress(b'{"problem": "1?"}\n' * 99, mtime=0)[:-30], "gzip cannot unpack it"), ("x.parquet", b"PAR1 no more", "begins as a Parquet file"),
        ("x.gz", gzip.compress(b"PK\x03\x04", mtime=0), "is a zip archive"), ("x.json", b'[\n{"problem": 1},\n{"problem" 2}]', r"x.json, line 3 is not JSON \(Expecting ':' delimiter at column 12\). The line ends with '{\"problem\" 2}\]'"),
        ("x.jsonl", b'{"problem": "1?"}\n{"problem": "2?"\n', r"x.jsonl, line 2 is not JSON \(Expecting ',' delimiter at column 17\). The line ends with '{\"problem\": \"2\?\"'\."),
        ("x.jsonl", b'{"problem": "1?"}\r\n\r\n{"problem": "' + b"x" * 99 + b'yz\r\n', r"line 3 is not JSON \(Unterminated string starting at column 13\). The line ends with ...'x{58}yz'"),
        ("x.jsonl", b'{\n  "problem": "1?"\n}\n', r"line 1 is not JSON \(.* at column 2\). The line ends with '{'"),
        ("x.jsonl", b'{"problem": "a\tb"}\n', r"\(Invalid control character at column 15\)"),
        ("x.json", b'[{"problem": 1},\n', r"line 2 is not JSON \(Expecting value at column 1\). The line ends with ''"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(read_rows(str(tmp_path / name)))
    assert name in str(caught.value)


def test_a_directory_without_data_and_lines_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("ollm_rl.tasks.formats.MOST", 1000)
    with pytest.raises(DataError, match="is a directory without files that end in .jsonl"):
        list(read_rows(str(tmp_path)))
    (tmp_path / "x.jsonl").write_text('{"problem": "1?"}\n{"problem": "' + "x" * 5000 + '"}\n')
    with pytest.raises(DataError, match="line 2 has more than 1,000 characters"):
        list(read_rows(str(tmp_path)))


def test_columns_of_other_names(tmp_path):
    row = {"question": "1 + 1?", "reward_model": {"ground_truth": "2", "style": "rule"}, "final.answer": "3"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    path = str(tmp_path / "x.jsonl")
    for theirs, answer in (("reward_model.ground_truth", "2"), ("final.answer", "3")):
        task = make_task("jsonl", path=path, columns={"problem": "question", "answer": theirs})
        [problem] = [p for split in SPLITS for p in task.problems(split, 9)]
        assert (problem.problem, problem.answer) == ("1 + 1?", answer)
    with pytest.raises(DataError, match=r"no column 'questoin', which task.columns names.*Did you mean 'question'"):
        make_task("jsonl", path=path, columns={"problem": "questoin"})
