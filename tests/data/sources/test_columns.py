"""The text of a table is its text: never its ids, its envelope, or half of a conversation."""

import json

import pandas as pd
import pytest
from datasets import Dataset

from nbllm.core.errors import DataError
from nbllm.data import load
from nbllm.data.sources.chats import plain_text

OPENAI = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
SHAREGPT = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
PLAIN = "User: Hi?\nAssistant: Hello.\n"
FRAME = pd.DataFrame({"n": [1, 2], "body": ["one", "two"]})


def write(folder, value, name="a.json"):
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize("orient", ["records", "split", "index", "columns", "table"])
def test_what_pandas_writes_in_every_orientation(tmp_path, orient):
    path = write(tmp_path, FRAME.to_json(orient=orient))
    assert load(path)["text"][:] == ["one", "two"]


def test_rows_in_an_envelope(tmp_path):
    rows = [{"id": "x", "text": "one"}, {"id": "y", "text": "two"}]
    assert load(write(tmp_path, {"version": "1.1", "data": rows}))["text"][:] == ["one", "two"]
    assert load(write(tmp_path, {"text": "t", "parts": rows}))["text"][:] == ["t"]


def test_paragraphs_under_a_title_are_not_the_title(tmp_path):
    """The layout of SQuAD: the only string of a row is its title."""
    rows = [{"title": "A", "paragraphs": [{"context": "The text.", "qas": []}]}]
    with pytest.raises(DataError, match="Columns: 'title', 'paragraphs'") as caught:
        load(write(tmp_path, {"version": "1.1", "data": rows}))
    assert "column='...'" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"id": "x", "content": "c"}, "content"),
        ({"url": "u", "date": "2024", "body": "b"}, "body"),
        ({"id": "x", "story": "s", "meta": {"source": "web"}}, "story"),
        ({"id": "x"}, "id"),
        ({"content": "c", "tokens": ["c"]}, "content"),
    ],
)
def test_labels_are_not_the_text(tmp_path, row, column):
    assert load(write(tmp_path, [row]))["text"][:] == [row[column]]


@pytest.mark.parametrize("row", [{"id": "x", "n": 1}, {"id": "x", "turns": ["a", "b"]}, {"a": "x", "b": "y"}])
def test_where_no_column_is_the_text_the_columns_and_the_argument_are_named(tmp_path, row):
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, json.dumps(row), "a.jsonl"))
    assert all(repr(name) in caught.value.what for name in row)
    assert "column='...'" in str(caught.value.hint)


def test_a_later_row_does_not_change_the_column(tmp_path):
    path = write(tmp_path, '{"body": "one"}\n{"title": "not this"}\n', "a.jsonl")
    with pytest.raises(DataError, match="no column 'body'"):
        load(path)


def test_the_chosen_column_is_said(tmp_path):
    assert "column 'body'" in load(write(tmp_path, FRAME.to_json(orient="records"))).info.description


@pytest.mark.parametrize("chat", [OPENAI, SHAREGPT])
def test_conversations_in_both_spellings(tmp_path, chat):
    for name in ("messages", "conversations"):
        rows = [{"id": "x", name: chat}]
        frame = pd.DataFrame(rows)
        frame.to_parquet(tmp_path / "a.parquet")
        sources = (
            write(tmp_path, rows),
            write(tmp_path, json.dumps(rows[0]), "b.jsonl"),
            tmp_path / "a.parquet",
            rows,
            frame,
            Dataset.from_list(rows),
        )
        for source in sources:
            data = load(source)
            assert data["text"][:] == [PLAIN]
            assert data["messages"][0] == OPENAI
    assert load([chat])["messages"][0] == OPENAI
    assert load(chat)["messages"][0] == OPENAI


def test_a_data_set_with_conversations_keeps_its_other_columns():
    data = load(
        Dataset.from_list([{"id": "x", "conversations": SHAREGPT, "text": "old"}]), column="conversations"
    )
    assert data["id"][:] == ["x"]
    assert data["text"][:] == [PLAIN]


def test_messages_as_apis_write_them():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": None},
    ]
    data = load([{"messages": chat}])
    assert [message["content"] for message in data["messages"][0]] == ["Be brief.", "ab", ""]
    assert data["text"][0] == "Be brief.\n\nUser: ab\nAssistant: \n"
    with pytest.raises(DataError, match="something other than text"):
        load([{"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]}])


def test_the_plain_rendering_is_the_chat_panels():
    from nbllm.data import train_tokenizer
    from nbllm.inference.chat_prompt import PLAIN_TEMPLATE

    chat = [{"role": "system", "content": "S"}, *OPENAI, {"role": "user", "content": "And?"}]
    tokenizer = train_tokenizer(["text"], 300)
    rendered = tokenizer.apply_chat_template(chat, chat_template=PLAIN_TEMPLATE, tokenize=False)
    assert plain_text(chat) == rendered


def test_texts_and_conversations_together(tmp_path):
    write(tmp_path, "plain", "a.txt")
    write(tmp_path, [{"messages": OPENAI}], "b.json")
    data = load(tmp_path)
    assert data["text"][:] == ["plain", PLAIN]
    assert data["messages"][:] == [None, OPENAI]


def test_a_million_columns_make_a_short_message(tmp_path):
    path = write(tmp_path, {f"column {n}": n for n in range(1_000_000)})
    with pytest.raises(DataError) as caught:
        load(path)
    assert len(str(caught.value)) < 5000
    assert "999,970 more" in str(caught.value)


def test_deep_json_is_named(tmp_path):
    for text in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(DataError, match="This is not JSON"):
            load(write(tmp_path, text))
