"""The rows of examples as CSV and Parquet, read back by programs that nobody here wrote."""

from __future__ import annotations

import csv
import io
import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from nbllm.core.errors import UserError
from nbllm.core.report import Report, Rows, Subject

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1+1", "=cmd|' /C calc'!A0", "\uff1d1+1"]


def report():
    mmlu = Subject(task="mmlu", data="", fingerprint="0")
    qa = Subject(task="qa", data="mine", fingerprint="1")
    columns = {
        "question": (*FORMULAS, 'a "quoted", text\nof two lines'),
        "correct": (1.0, 0.5) * 5,
        "n": range(10),
    }
    answers = {
        "golds": (("a", "=b"), ()),
        "correct": ("yes", "no"),
        "task": ("x", None),
        "half": ("\ud800", "b"),
    }
    return Report("r").add(
        Rows(subject=mmlu, columns=columns, num_examples=10),
        Rows(subject=qa, columns=answers, num_examples=2),
    )


def test_parquet_holds_every_row_with_its_types(tmp_path):
    table = pq.read_table(report().save(tmp_path / "examples.parquet"))
    assert table.column_names == [
        "task",
        "data",
        "example",
        "question",
        "correct",
        "n",
        "golds",
        "task_",
        "half",
    ]
    rows = table.to_pylist()
    assert len(rows) == 12 and rows[0]["question"] == "=1+1"  # no spreadsheet: as it is
    assert [row["golds"] for row in rows[-2:]] == [["a", "=b"], []] and rows[0]["golds"] is None
    assert rows[3]["n"] == 3 and rows[-1]["n"] is None and rows[-1]["data"] == "mine"
    assert [row["correct"] for row in rows] == ["1.0", "0.5"] * 5 + ["yes", "no"]  # of two types: texts
    assert rows[-2]["half"] == "\ufffd"
    frame = pd.read_parquet(tmp_path / "examples.parquet")
    assert list(frame["example"]) == [*range(1, 11), 1, 2]


def test_csv_is_read_back_by_others_and_no_cell_is_a_formula(tmp_path):
    data = report().save(tmp_path / "examples.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert len(rows) == 12
    for row, formula in zip(rows, FORMULAS, strict=False):
        assert row["question"] == f"'{formula}"
    for row in rows:
        for cell in row.values():
            assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))
    assert rows[9]["question"] == 'a "quoted", text\nof two lines'
    assert json.loads(rows[10]["golds"]) == ["a", "=b"]
    frame = pd.read_csv(tmp_path / "examples.csv")
    assert list(frame["n"][:10]) == list(range(10))


def test_a_negative_number_stays_a_number(tmp_path):
    subject = Subject(task="t", data="", fingerprint="0")
    made = Report("r").add(Rows(subject=subject, columns={"nats": (-1.5, None)}, num_examples=2))
    assert pd.read_csv(made.save(tmp_path / "a.csv"))["nats"][0] == -1.5


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_report_without_examples_has_no_table(tmp_path, suffix):
    with pytest.raises(UserError, match="holds no examples"):
        Report("r").save(tmp_path / f"a.{suffix}")
    assert not list(tmp_path.iterdir())
