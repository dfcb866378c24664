"""A token store while others write to its files, and one whose files were made to deceive."""

import json
import os
import shutil

import numpy as np
import pytest
from datasets import Dataset

from nbllm.core.errors import DataError
from nbllm.data import TokenStore, WindowSource, pack, train_tokenizer
from nbllm.data.token_file import TokenFile
from nbllm.data.token_store import OFFSETS, RECORD, shard_name

TEXTS = [f"document {n}: " + " ".join(f"word{(n * k) % 97}" for k in range(80)) for n in range(20)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture
def store(tokenizer):
    return pack(Dataset.from_dict({"text": TEXTS}), tokenizer)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_windows_equal_indexing_on_a_circle(tmp_path, dtype):
    tokens = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 37, dtype=dtype, endpoint=True)
    tokens.tofile(tmp_path / "file")
    file = TokenFile(tmp_path / "file", dtype=dtype, count=37, sha256="")
    for length in (0, 1, 10, 37):
        starts = np.array([0, 5, 30, 36])
        windows = file.windows(starts, length)
        np.testing.assert_array_equal(windows, tokens[(starts[:, None] + np.arange(length)) % 37])
    np.testing.assert_array_equal(file.read(3, 9), tokens[3:9])
    assert file.read(5, 5).shape == (0,)


def test_what_is_read_does_not_change_with_the_file(store):
    cut = WindowSource(store, length=33, overlap=1)
    windows, documents = cut.draw(0, 8), store.document(3)
    before = windows.copy(), documents.copy()
    path = store.path / shard_name(0)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    np.testing.assert_array_equal(windows, before[0])
    np.testing.assert_array_equal(documents, before[1])


@pytest.mark.parametrize("change", ["overwritten", "truncated", "emptied", "grown"])
def test_a_file_that_is_changed_while_it_is_in_use(store, change):
    cut = WindowSource(store, length=33, overlap=1)
    cut.draw(0, 8)
    path = store.path / shard_name(0)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    size = {"overwritten": len(content), "truncated": len(content) - 2, "emptied": 0}.get(change)
    with open(path, "r+b") as file:  # the same file, not a new one of its name
        if change == "grown":
            file.seek(0, os.SEEK_END)
            file.write(b"xx")
        else:
            file.write(content)
            file.truncate(size)
    for read in (lambda: cut.draw(8, 64), lambda: store.document(0), store.read):
        for _ in range(2):  # it is not forgotten
            with pytest.raises(DataError, match="token store is damaged") as caught:
                read()
    assert str(path) in str(caught.value)


def test_a_file_that_is_touched_deleted_or_replaced_serves_on(store, tokenizer):
    cut = WindowSource(store, length=33, overlap=1)
    expected = cut.draw(0, 64)
    os.utime(store.path / shard_name(0), (0, 0))
    np.testing.assert_array_equal(cut.draw(0, 64), expected)
    os.unlink(store.path / shard_name(0))
    np.testing.assert_array_equal(cut.draw(0, 64), expected)
    shutil.rmtree(store.path)
    again = pack(Dataset.from_dict({"text": TEXTS}), tokenizer)
    np.testing.assert_array_equal(cut.draw(0, 64), expected)
    np.testing.assert_array_equal(again.read(), store.read())


def test_a_pipe_is_not_opened(store):
    os.unlink(store.path / shard_name(0))
    os.mkfifo(store.path / shard_name(0))
    with pytest.raises(DataError, match="cannot be opened"):
        TokenStore.open(store.path)


def forge(store, **changes):
    record = json.loads((store.path / RECORD).read_text())
    (store.path / RECORD).write_text(json.dumps(record | changes))


VALUES = [None, True, -1, 0, 2**62, 10**400, 1.5, "x", "9" * 5000, [], [[]], {}, {"a": 1}]


@pytest.mark.parametrize("name", ["dtype", "num_tokens", "num_documents", "num_bytes", "eos_id", "vocab_size",
                                  "fingerprint", "sha256", "num_conversations", "schema"])  # fmt: skip
def test_a_record_of_wrong_types_and_sizes(store, tokenizer, name):
    original = (store.path / RECORD).read_bytes()
    for value in VALUES:
        forge(store, **{name: value})
        try:
            opened = TokenStore.open(store.path)
            opened.verify()
            opened.document(0)
        except DataError as error:
            assert len(str(error)) < 3000
        (store.path / RECORD).write_bytes(original)
    forge(store, **{name: [[]]})
    assert len(pack(Dataset.from_dict({"text": TEXTS}), tokenizer)) == len(TEXTS)  # made again


def test_offsets_and_tokens_that_lie(store):
    """Checksums say that nothing broke; they do not say that what was written makes sense."""
    path, offsets = store.path / OFFSETS, store.offsets.astype("<i8")
    for place, value in ((0, 5), (3, 2**60), (3, -(2**60)), (3, 0), (-1, 2**60)):
        wrong = offsets.copy()
        wrong[place] = value
        wrong.tofile(path)
        with pytest.raises(DataError, match="does not divide the tokens"):
            TokenStore.open(store.path).document(2)
    offsets.tofile(path)
    forge(store, vocab_size=100)
    with pytest.raises(DataError, match="of a vocabulary of 100"):
        WindowSource(TokenStore.open(store.path), length=33).draw(0, 64)


def test_a_deeply_nested_record(store):
    (store.path / RECORD).write_text('{"schema":' + "[" * 200_000)
    with pytest.raises(DataError, match="record cannot be read"):
        TokenStore.open(store.path)
