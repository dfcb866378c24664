"""Loading real data sets as they are published; they lie beside the checkout, not in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbllm as nb
from nbllm.core.errors import DataError

FOLDER = Path(__file__).parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the real data sets are not here"),
]


@pytest.mark.parametrize(
    ("path", "column", "count"),
    [
        ("gsm8k/test.jsonl", "question", 1319),
        ("humaneval/HumanEval.jsonl.gz", "prompt", 164),
        ("hh_rlhf/test.jsonl.gz", "chosen", None),
    ],
)
def test_published_files_load_by_column(path, column, count):
    text = nb.data.load(FOLDER / path, column=column)
    assert count is None or len(text) == count
    assert all(text["text"])
    with pytest.raises(DataError, match=f"(?s)no column.*{column}"):
        nb.data.load(FOLDER / path)


def test_tinyshakespeare_is_packed_without_loss(tmp_path):
    (file,) = (
        p for p in (FOLDER / "tinyshakespeare").iterdir() if p.suffix == ".txt" and "LICENSE" not in p.name
    )
    text = nb.data.load(file)
    tokenizer = nb.data.train_tokenizer(text, vocab_size=1024)
    store = nb.data.pack(text, tokenizer, folder=tmp_path)
    assert store.num_bytes == len(file.read_bytes())
    assert tokenizer.decode(store.document(0)) == file.read_text()
