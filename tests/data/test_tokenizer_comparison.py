"""The figures of tokenizers side by side, against counts by hand."""

import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import compare_tokenizers, train_tokenizer

TEXTS = ["the cat sat on the mat and the dog sat on the log. " * 4, "a man and a woman ate the fish"]
NEW = ["the cat ate", "", "日本 <b>cat</b>"]


def test_figures_are_those_counted_by_hand():
    tokenizers = {kind: train_tokenizer(TEXTS, kind=kind) for kind in ("byte", "wordpiece", "character")}
    found = compare_tokenizers(tokenizers, NEW)
    size = sum(len(text.encode()) for text in NEW)
    assert (found.num_documents, found.num_bytes) == (2, size)
    byte = found["byte"]
    assert (byte.num_tokens, byte.bytes_per_token, byte.coverage, byte.restored) == (size, 1.0, 1.0, 1.0)
    # words: the cat ate; 日本 < b > cat </ b >
    assert byte.fertility == pytest.approx(size / 11)
    assert byte.used == len(set("".join(NEW).encode())) / 257
    wordpiece = found["wordpiece"]
    unknown = len("日本".encode()) + len("<b></b>")  # no text that it was trained on has these
    assert wordpiece.coverage == pytest.approx(1 - unknown / size)
    assert wordpiece.restored == 0.5
    assert found["character"].coverage == pytest.approx(1 - unknown / size)
    assert "wordpiece" in repr(found) and "<b>" not in found._repr_html_().replace("<b>cat", "")


def test_names_are_escaped_and_a_list_is_numbered():
    tokenizer = train_tokenizer(TEXTS, kind="byte")
    assert [row.name for row in compare_tokenizers([tokenizer, tokenizer], NEW)] == [
        "tokenizer 1",
        "tokenizer 2",
    ]
    assert "<script>" not in compare_tokenizers({"<script>": tokenizer}, NEW)._repr_html_()


def test_nothing_to_compare_is_said():
    with pytest.raises(UserError, match="no tokenizer to compare"):
        compare_tokenizers({}, NEW)
    with pytest.raises(UserError, match="is no tokenizer but int"):
        compare_tokenizers({"x": 3}, NEW)
    with pytest.raises(DataError, match="no text"):
        compare_tokenizers([train_tokenizer(TEXTS, kind="byte")], ["", ""])
