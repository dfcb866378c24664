"""Texts: the documents of every kind of Arrow column, without a copy where there is one buffer."""

import numpy as np
import pyarrow as pa
import pytest

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts

WORDS = ["", "a", "mööse", None, "👩‍👩‍👧", "x" * 40, None, ""]
COLUMNS = {
    "string": pa.array(WORDS),
    "large": pa.array(WORDS, pa.large_string()),
    "view": pa.array(WORDS, pa.string_view()),
    "dictionary": pa.array(WORDS).dictionary_encode(),
    "binary": pa.array([word and word.encode() for word in WORDS], pa.binary()),
    "slice": pa.array(["before", *WORDS, "after"]).slice(1, len(WORDS)),
    "slice of a slice": pa.array(["b", "c", *WORDS, "after"]).slice(1).slice(1, len(WORDS)),
    "chunks": pa.chunked_array([WORDS[:3], [], WORDS[3:]], pa.string()),
    "chunks of a dictionary": pa.chunked_array(
        [pa.array(WORDS[:3]).dictionary_encode(), pa.array(WORDS[3:]).dictionary_encode()]
    ),
    "one chunk": pa.chunked_array([WORDS]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_documents_equal_the_columns_values(name):
    texts = Texts.of(COLUMNS[name])

    assert [texts[i] if texts.valid[i] else None for i in range(texts.num_documents)] == [
        None if word is None else word.encode() for word in WORDS
    ]
    assert texts.offsets.size == len(WORDS) + 1
    assert (np.diff(texts.offsets) >= 0).all()
    assert (texts.data.dtype, texts.offsets.dtype, texts.valid.dtype) == (np.uint8, np.int64, np.bool_)
    assert not any(array.flags.writeable for array in (texts.data, texts.offsets, texts.valid))


@pytest.mark.parametrize(
    "column", [pa.array([], pa.string()), pa.chunked_array([], pa.string()), pa.nulls(0)]
)
def test_an_empty_column_has_no_documents(column):
    texts = Texts.of(column)

    assert texts.num_documents == 0
    assert texts.offsets.tolist() == [0]


def test_a_column_of_nulls_has_documents_without_text():
    texts = Texts.of(pa.nulls(3))

    assert texts.valid.tolist() == [False] * 3
    assert [texts[i] for i in range(3)] == [b""] * 3


def test_the_bytes_are_arrows_own():
    column = pa.array(["one", "two"])

    assert Texts.of(column.slice(1)).data.ctypes.data == column.buffers()[2].address


def test_numbers_are_refused_by_their_type():
    with pytest.raises(UserError, match="int64"):
        Texts.of(pa.array([1, 2]))


def test_an_index_beyond_the_documents_is_refused():
    with pytest.raises(IndexError):
        Texts.of(pa.array(["a"]))[1]
