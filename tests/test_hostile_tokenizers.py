"""Tokenizer files of wrong types and shapes: a tokenizer that encodes, or a named error; no code of theirs is run."""

import json

import pytest

from nbllm.core.errors import UserError
from nbllm.data import train_tokenizer
from nbllm.opening import load_tokenizer

ODD = [
    None, True, -1, 0, 1.5, 2**63, 10**30, "", "x" * 3000, [], [[]], {}, {"a": 1}, "\ud800", "[[[[", "\x1b]0;owned\x07",
]  # fmt: skip


def places(value, path=()):
    """Every place in a tokenizer's file; of the tokens and merges the first few."""
    yield path
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for number, (key, item) in enumerate(entries):
        if number < 3 or path[:2] not in (("model", "vocab"), ("model", "merges")):
            yield from places(item, (*path, key))


def changed(record, path, value):
    if not path:
        return value
    copy = dict(record) if isinstance(record, dict) else list(record)
    copy[path[0]] = changed(record[path[0]], path[1:], value)
    return copy


def answer(folder):
    try:
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        assert str(folder) in str(error) and len(str(error)) < 7000
        assert "\x1b" not in str(error)
        return False
    tokenizer.encode("the cat sat")
    return True


@pytest.fixture
def folder(tmp_path):
    train_tokenizer(["the cat sat on the mat"] * 3, 270).save_pretrained(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_whatever_stands_in_a_file(folder, name):
    record = json.loads((folder / name).read_text())
    answers = []
    for place in places(record):
        for value in ODD:
            (folder / name).write_text(json.dumps(changed(record, place, value)))
            answers.append(answer(folder))
    assert answers.count(False) > 50 and answers.count(True) > 10


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "", "\0" * 100, "9" * 5000, "null"])
def test_files_that_are_no_json_of_a_tokenizer(folder, name, content):
    (folder / name).write_text(content)
    answer(folder)


def test_code_beside_a_tokenizer_is_neither_run_nor_asked_about(folder, monkeypatch, tmp_path_factory):
    mark = tmp_path_factory.mktemp("elsewhere") / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run foreign code"))
    for entry in (["evil.Evil", None], [None, "evil.Evil"], "evil.Evil", "repo--evil.Evil"):
        for config in ("tokenizer_config.json", "config.json"):
            path = folder / config
            values = json.loads(path.read_text()) if path.exists() else {"model_type": "evil"}
            path.write_text(
                json.dumps(values | {"auto_map": {"AutoTokenizer": entry, "AutoConfig": "evil.Evil"}})
            )
        answer(folder)
    assert not mark.exists()
