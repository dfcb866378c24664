"""STS-B: the number that an answer gives, the answers that give none, and GLUE's own files."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from nbllm.core.errors import DataError
from nbllm.evaluation import Source
from nbllm.evaluation.columns import to_arrays
from nbllm.evaluation.tasks.stsb import Stsb, similarity


@pytest.mark.parametrize(
    "text, expected",
    [
        (" 3.8", 3.8), ("4 out of 5", 4), ("about 2.", 2), (".5", 0.5), ("0", 0), ("5.0\n", 5), ("3,5", 3),
        ("", None), ("very", None), ("5.1", None), ("-1", None), ("38", None), ("²", None),
    ],
)  # fmt: skip
def test_the_first_number_from_0_to_5_is_the_answer(text, expected):
    assert similarity(text) == expected


def test_answers_without_a_number_count_as_minus_one_and_are_named():
    task = Stsb()
    examples = task.examples(Source(None))[0]
    texts = ["5", "no idea", "2.5", "9", "0.5", "4"]
    rows = [
        task.score(example, [SimpleNamespace(text=text, stopped_by="stop")])
        for example, text in zip(examples, texts, strict=True)
    ]
    columns = to_arrays(
        {name: tuple(row[name] for row in rows) for name in ("predicted", "expected", "read")}
    )
    assert columns["predicted"].tolist() == [5, -1, 2.5, -1, 0.5, 4]
    pearson, spearman = (metric.compute(columns) for metric in task.metrics)
    assert pearson == pytest.approx(stats.pearsonr(columns["predicted"], columns["expected"]).statistic)
    assert spearman == pytest.approx(stats.spearmanr(columns["predicted"], columns["expected"]).statistic)
    notes = task.notes(SimpleNamespace(columns=columns, left_out=""))
    assert "For 2 pairs no number from 0 to 5 was written; the answer counts as -1: 2, 4" in notes[1]
    columns["read"] = np.ones(6)
    assert task.notes(SimpleNamespace(columns=columns, left_out="")) == ["", "", ""]
    columns["predicted"] = np.full(6, 1.6)
    assert "All answers are the same" in task.notes(SimpleNamespace(columns=columns, left_out=""))[2]
    assert [metric.compute(columns) for metric in task.metrics] == [0, 0]


def test_the_file_of_glue_is_read(tmp_path):
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    row = '0\tmain-news\theadlines\t2013\t12\tnone\tnone\tHe said "no.\tShe said no.\t{}\n'
    (tmp_path / "dev.tsv").write_text(head + row.format("3.250"))
    (tmp_path / "train.tsv").write_text(head + row.format("1.000"))
    task = Stsb(shots=1)
    ((example,), _) = task.examples(Source(None, tmp_path))
    (request,) = task.requests(example)
    assert example["references"] == ["3.25"]
    assert str(request.prompt).startswith(
        'Sentence 1: He said "no.\nSentence 2: She said no.\nQuestion: How similar'
    )
    assert "Number: 1.0\n\nSentence 1" in str(request.prompt)
    for score in ("5.5", "-1", "nan", "high"):
        (tmp_path / "dev.tsv").write_text(head + row.format(score))
        with pytest.raises(DataError, match=r"'score' is(?s:.*)dev.tsv, line 2"):
            task.examples(Source(None, tmp_path))
