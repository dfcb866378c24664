"""Read the texts out of a data set, or out of any iterable of strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nbllm.core.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 256  # rows read from Arrow at once


def iterate_texts(texts: Dataset | Iterable[str]) -> Iterator[str]:
    """Yield each text in order.

    Raises:
        DataError: There is no column `text`, or a text is not a string.
    """
    for number, text in enumerate(_raw(texts)):
        if not isinstance(text, str):
            raise DataError(
                f"Document {number} is not text but {type(text).__name__}.",
                hint="nbllm.data.load checks a data set, and leaves such rows out with on_error='skip'.",
            )
        yield text


def _raw(texts: Dataset | Iterable[str]) -> Iterator[object]:
    if isinstance(texts, str):
        raise DataError("One string is no collection of documents.", hint="Put it into a list: [text].")
    columns = getattr(texts, "column_names", None)
    if columns is None:
        yield from texts
        return
    if not isinstance(columns, list):
        raise DataError(
            f"This is a dictionary of the splits {', '.join(columns)}.", hint="Choose one of them first."
        )
    if "text" not in columns:
        raise DataError("The data set has no column 'text'.", hint=nearest("text", columns))
    for batch in texts.select_columns("text").with_format(None).iter(ROWS):  # type: ignore[union-attr]
        yield from batch["text"]
