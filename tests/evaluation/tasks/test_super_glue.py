"""SuperGLUE's official files, whose nesting the hub flattens, and how ReCoRD is scored."""

import json
from types import SimpleNamespace

import pytest

from nbllm.core.errors import DataError
from nbllm.evaluation import TASKS, Source
from nbllm.evaluation.splits import load_split


def rows(name):
    layout = TASKS[name]().layout
    return [dict(record.values) for record in load_split(None, layout, layout.splits)[0]]


def read(name, rows, folder):
    """Return the examples of rows that are written as the official archive has them."""
    file = folder / "val.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(TASKS[name]().examples(Source(None, folder))[0])


def nested_wsc(row):
    spans = {key: value for key, value in row.items() if key.startswith("span")}
    return {"idx": 0, "label": bool(row["label"]), "target": spans, "text": row["text"]}


def nested_record(row):
    text = row["passage"]
    entities = [
        {"start": text.index(each), "end": text.index(each) + len(each) - 1} for each in row["entities"]
    ]
    answers = [{"start": 0, "end": 0, "text": each} for each in row["answers"]]
    asked = {"query": row["query"], "answers": answers, "idx": 0}
    return {"source": "own", "passage": {"text": text, "entities": entities}, "idx": 0, "qas": [asked]}


@pytest.mark.parametrize("name, nested", [("wsc", nested_wsc), ("record", nested_record)])
def test_the_official_files_give_the_examples_of_the_hub(name, nested, tmp_path):
    expected = list(TASKS[name]().examples(Source(None))[0])
    assert read(name, map(nested, rows(name)), tmp_path) == expected


@pytest.mark.parametrize("index", [-1, 13, "9", True, None])
def test_the_pronoun_of_wsc_must_be_a_word_of_the_text(index, tmp_path):
    with pytest.raises(DataError, match=r"span2_index(?s:.*)line 1"):
        read("wsc", [{**rows("wsc")[0], "span2_index": index}], tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"passage": {"text": "Holm", "entities": [{"start": 9, "end": 12}]}}, "mark no text"),
        ({"qas": [{"query": "@placeholder", "answers": []}]}, "no answer"),
        ({"qas": [{"query": "Holm", "answers": [{"text": "Holm"}]}]}, "no @placeholder"),
    ],
)
def test_what_is_wrong_in_record_is_named(change, message, tmp_path):
    with pytest.raises(DataError, match=rf"{message}(?s:.*)line 1"):
        read("record", [{**nested_record(rows("record")[0]), **change}], tmp_path)


def test_the_likeliest_entity_is_compared_with_all_right_ones():
    task = TASKS["record"]()
    example = task.examples(Source(None))[0][0]
    assert example["references"] == ["Ingrid Lund", "Lund"]

    def score(*likely):
        found = [0.0 if choice in likely else -1.0 for choice in example["choices"]]
        return task.score(example, [SimpleNamespace(log_probability=each) for each in found])

    assert {key: score("Lund")[key] for key in ("predicted", "correct", "exact_match", "f1")} == {
        "predicted": "Lund", "correct": 1, "exact_match": 1, "f1": 1,
    }  # fmt: skip
    tied = score("Lund", "Aurora")
    assert (tied["exact_match"], tied["f1"], tied["margin"]) == (0.5, 0.5, 0)
    assert score("Aurora")["exact_match"] == score("Aurora")["f1"] == 0
    other = {**example, "references": ["Ingrid"]}
    found = [SimpleNamespace(log_probability=-float(each != "Ingrid Lund")) for each in example["choices"]]
    assert task.score(other, found)["exact_match"] == 0 and task.score(other, found)["f1"] == pytest.approx(
        2 / 3
    )
