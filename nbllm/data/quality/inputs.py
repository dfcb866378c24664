"""Texts that a classifier or model of text is made from, as the kernels read them."""

from __future__ import annotations

import itertools
from typing import Any

import pyarrow as pa

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.texts import iterate_texts


def read_texts(source: Any, what: str, most: int | None = None) -> Texts:
    """Return the documents of a list, an Arrow column, or of anything that `nbllm.data.load` takes.

    Args:
        source: Where the documents are.
        what: What they are for, in a message.
        most: How many are read, from the beginning; None: all.

    Raises:
        UserError: there is none.
    """
    if isinstance(source, pa.Array | pa.ChunkedArray):
        column = source if most is None else source.slice(0, most)
    else:
        texts = [text.encode("utf-8", "replace") for text in itertools.islice(iterate_texts(source), most)]
        column = pa.array(texts, pa.large_binary())
    if not len(column):
        raise UserError(f"There are no {what}.")
    return Texts.of(column)
