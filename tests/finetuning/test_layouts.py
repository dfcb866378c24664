"""The layouts of data sets, from lists, files and folders; weights; the embedded sets."""

import gzip
import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.finetuning import INSTRUCTION_SETS, prepare, read_example, read_examples
from nbllm.finetuning.rows import rows_of
from nbllm.finetuning.tokens import tokenize

PAIR = [{"role": "user", "content": "What?\n\nThis"}, {"role": "assistant", "content": "That"}]
TASK = {
    "Definition": ["What?"], "Positive Examples": [], "Negative Examples": [],
    "Instances": [{"id": "1", "input": "This", "output": ["That", "It"]}, {"input": "Us", "output": ["We"]}],
}  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        PAIR,
        {"messages": PAIR, "id": 3},
        {"conversations": [{"from": "human", "value": "What?\n\nThis"}, {"from": "gpt", "value": "That"}]},
        {"instruction": "What?", "input": "This", "output": "That"},
        {"instruction": "What?\n\nThis", "input": "", "output": "That"},
        {"prompt": PAIR[:1], "completion": PAIR[1:]},
        {"instruction": "What?", "instances": [{"input": "This", "output": "That"}], "is_classification": False},
        {"inputs": "What?\n\nThis", "targets": "That", "task": "flan"},
        {"inputs": [4, 2], "inputs_pretokenized": "What?\n\nThis\n", "targets": [5], "targets_pretokenized": "\nThat"},
        TASK,
        {"definition": "What?", "inputs": "This", "targets": ["That", "It"]},
        {"text": "<human>: What?\n\nThis\n<bot>: That", "metadata": {}},
        {"prompt": "\n\nHuman: What?\n\nThis\n\nAssistant:", "response": " That", "chosen": " a", "rejected": " b"},
    ],
)  # fmt: skip
def test_layouts_of_a_conversation(value):
    assert list(read_example(value).messages) == PAIR


def test_a_row_may_hold_several_examples():
    assert [example.messages[1]["content"] for example in read_examples(TASK)] == ["That", "We"]


def test_layouts_of_texts():
    assert read_example("It is.").completion == read_example({"text": "It is."}).completion == "It is."
    read = read_example({"prompt": "Q", "completion": "A"})
    assert (read.prompt, read.completion) == ("Q", "A")
    turns = read_example(
        {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "response": "d"}
    ).messages
    assert [turn["content"] for turn in turns] == ["a", "b", "c", "d"]
    assert read_example({"text": "A text that says Human: what?"}).completion


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([{"role": "wizard", "content": "x"}, PAIR[1]], "no role 'wizard'"),
        (PAIR[:1], "no answer"),
        ([PAIR[0], {"role": "assistant", "content": " "}], "empty"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"instruction": "a", "instances": [{"input": "b", "output": ""}]}, "output is empty"),
        ({"instruction": "a", "instances": []}, "no example"),
        ({"instruction": "a", "instances": "b"}, "list of mappings"),
        ({"Definition": "a", "Instances": [{"input": "b", "output": []}]}, "not list"),
        ({"chosen": "a", "rejected": "b"}, "none of the known layouts"),
        ({"messages": "hello"}, "holds no messages"),
        ({"text": "a", "weight": -1}, "0 or more"),
        ({"text": "a", "weight": float("nan")}, "0 or more"),
        ({"text": "a", "weights": [[0, 1]]}, "a start, a stop"),
        ([PAIR[0], {**PAIR[1], "weight": "high"}], "0 or more"),
        ("", "empty"),
        (3, "not int"),
        ({"text": 5}, "not int"),
    ],
)
def test_bad_examples_are_named(value, said):
    with pytest.raises(DataError, match=said):
        read_examples(value)


def test_examples_from_files_and_folders(tokenizer, tmp_path):
    rows = [{"instruction": "What?", "input": "", "output": f"Item {number}"} for number in range(3)]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "rows.csv")
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, row in enumerate(rows):
        (folder / f"{number}.json").write_text(json.dumps(row))
    made = [
        prepare(source, tokenizer, length=64).store.fingerprint
        for source in (
            rows, tmp_path / "rows.jsonl", str(tmp_path / "rows.json"), tmp_path / "rows.jsonl.gz",
            tmp_path / "rows.parquet", tmp_path / "rows.csv", folder,
        )
    ]  # fmt: skip
    assert len(set(made)) == 1
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.parquet").write_text("{")
    (tmp_path / "word.json").write_text('"word"')
    for name in ("bad.json", "bad.parquet", "word.json"):
        with pytest.raises(DataError):
            rows_of(tmp_path / name)
    with pytest.raises(UserError, match="must be a list"):
        rows_of(5)


def test_embedded_sets_are_disjoint_and_right():
    train, test = (list(rows_of(name)) for name in ("reminders", "reminders-test"))
    assert (len(train), len(test)) == (240, 60)
    answers = [json.loads(row["output"]) for row in (*train, *test)]
    assert all(answer.keys() == {"what", "day", "time"} for answer in answers)
    assert not {answer["what"] for answer in answers[:240]} & {answer["what"] for answer in answers[240:]}
    for row, answer in zip((*train, *test), answers, strict=True):
        said = row["input"].lower()
        assert answer["what"].lower() in said and answer["day"].lower() in said
        hour, minute = map(int, answer["time"].split(":"))
        if "half past" in said:
            assert minute == 30
        if " am." in said or "morning" in said:
            assert hour < 12
    assert all(read_example(row).messages for name in INSTRUCTION_SETS for row in rows_of(name))


def test_weights_of_examples_turns_and_parts(tokenizer):
    turns = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "one two", "weight": 0},
        {"role": "user", "content": "Then?"},
        {"role": "assistant", "content": "three four", "weight": 2, "weights": [[0, 5, 0.5]]},
    ]
    made = tokenize(tokenizer, read_example({"messages": turns, "weight": 3}))
    texts = [tokenizer.decode([token]) for token in made.tokens]
    counted = {}
    for text, trained, weight in zip(texts, made.trained, made.weights, strict=True):
        if trained:
            counted.setdefault(float(weight), []).append(text)
    assert {weight: "".join(parts) for weight, parts in counted.items()} == {
        3.0: "three",
        6.0: " four<|im_end|>",
    }
    made = tokenize(tokenizer, read_example({"prompt": "a ", "completion": "b c", "weights": [[1, 3, 0]]}))
    trained = [text for text, kept in zip(made.tokens, made.trained, strict=True) if kept]
    assert "c" not in tokenizer.decode(trained)
