"""A task of one's own, made in a cell."""

import json

import pytest
from datasets import Dataset

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import TASKS, Source, evaluate, task

ROWS = [
    {"question": "the cat sat on a", "options": ["mat", "dog", "return"], "label": 0},
    {"question": "the dog ran to", "options": ["see", "def"], "label": 1},
    {"question": "def <script>", "options": ["return", "cat", "the"], "label": "cat"},
]


def made(rows=ROWS, **options):
    return task(
        rows, **{"prompt": "{question}\nAnswer:", "choices": "{options}", "answer": "label", **options}
    )


def test_rows_with_choices_are_measured(lm):
    report = evaluate(lm, made(shots=1), progress=False, resamples=20)
    rows = report.rows("task").columns
    assert rows["expected"] == (0, 1, 1) and rows["choices"][1] == ("see", "def")
    assert report.metric("task").metric == "accuracy"
    assert dict(report.rows().subject.settings)["template"] == "{question}\nAnswer:"
    assert "task" not in TASKS


def test_the_requests_are_what_the_templates_say():
    own = made(preamble="Choose.\n\n", shots=1, name="mine")
    examples, _ = own.examples(Source(None))
    (first, _, _), second = own.requests(examples[0]), own.requests(examples[1])
    assert str(first.context) == "Choose.\n\nthe dog ran to\nAnswer: def\n\nthe cat sat on a\nAnswer:"
    assert first.continuation == " mat" and str(second[0].context).count("Answer: mat") == 1


def test_choices_may_be_templates_or_words():
    rows = [{"text": "1 < 2", "a": "yes", "b": "no", "right": "yes"}]
    for choices in (["{a}", "{b}"], ["yes", "no"]):
        own = task(rows, prompt="{text}?", choices=choices, answer="right")
        assert [request.continuation for request in own.requests(own.examples(Source(None))[0][0])] == [
            " yes",
            " no",
        ]


def test_without_choices_the_model_writes(lm):
    own = task(
        Dataset.from_list([{"q": "the cat", "a": "sat"}, {"q": "the dog", "a": "ran"}]),
        prompt="{q}", answer="a", max_new_tokens=3,
    )  # fmt: skip
    report = evaluate(lm, own, progress=False, resamples=20)
    assert report.rows().columns["references"] == (("sat",), ("ran",))
    assert report.metric("exact_match").value in (0, 0.5, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt": "{qestion}"}, r"(?s)names the column 'qestion'.*row 1.*Did you mean 'question'"),
        ({"choices": "{option}"}, r"(?s)names the column 'option'.*Did you mean 'options'"),
        ({"choices": ["{a}", "no"]}, "names the column 'a'"),
        ({"answer": "lable"}, r"(?s)no column 'lable'.*Did you mean 'label'"),
        ({"prompt": "{question"}, "malformed"),
        ({"rows": [*ROWS[:1], {**ROWS[1], "label": 2}]}, r"(?s)'label' is 2; it must be one of 0, 1.*row 2"),
        ({"rows": [{**ROWS[0], "options": "mat"}]}, "must be a list of texts"),
        ({"rows": [3]}, "not a mapping with columns"),
        ({"name": "mmlu"}, "a task named 'mmlu' already"),
        ({"shotts": 1}, r"(?s)no setting 'shotts'.*Did you mean 'shots'"),
        ({"shots": 3}, "2 worked examples"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_before_anything_is_measured(change, message):
    with pytest.raises((DataError, UserError), match=message):
        made(**change)


def test_a_file_is_read_with_its_lines(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps({**row, "label": 9}) for row in ROWS))
    with pytest.raises(DataError, match=r"mine.jsonl, line 1"):
        made(file)
