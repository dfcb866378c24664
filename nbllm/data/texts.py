"""Read documents from anything that holds text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from nbllm.data.sources.chats import Message

ROWS = 256  # rows read from Arrow at once


def as_dataset(source: Any) -> Dataset:
    """Return a data set with a column `text`: `source` where it is one, else what `nbllm.data.load` makes of it.

    Raises:
        DataError: It holds no text.
    """
    from nbllm.data.sources.loading import load

    columns = getattr(source, "column_names", None)
    return source if isinstance(columns, list) and "text" in columns else load(source)


def iterate_texts(texts: Dataset | str | os.PathLike[str] | Iterable[Any]) -> Iterator[str]:
    """Yield each text in order, of a list or an iterator of texts or of anything that `nbllm.data.load` takes.

    Raises:
        DataError: There is no text, or a text is not a string.
    """
    for number, text in enumerate(_raw(texts)):
        if not isinstance(text, str):
            raise DataError(
                f"Document {number} is not text but {type(text).__name__}.",
                hint="nbllm.data.load checks a data set, and leaves such rows out with on_error='skip'.",
            )
        yield text


def iterate_documents(dataset: Dataset) -> Iterator[tuple[str, list[Message] | None]]:
    """Yield the text of each row, and the messages of those that are conversations.

    Raises:
        DataError: A text is not a string.
    """
    if "messages" not in dataset.column_names:
        for text in iterate_texts(dataset):
            yield text, None
        return
    conversations = _column(dataset, "messages")
    for text, messages in zip(iterate_texts(dataset), conversations, strict=True):
        yield text, messages  # type: ignore[misc]


def _raw(texts: Any) -> Iterator[object]:
    from nbllm.data.sources.frames import is_frame
    from nbllm.data.sources.paths import paths_of_list

    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts[:1]):
        loads = bool(paths_of_list(texts))
    else:
        loads = (
            hasattr(texts, "column_names")
            or is_frame(texts)
            or isinstance(texts, list | tuple | str | os.PathLike)
        )
    yield from _column(as_dataset(texts), "text") if loads else texts


def _column(dataset: Dataset, name: str) -> Iterator[object]:
    for batch in dataset.select_columns(name).with_format(None).iter(ROWS):
        yield from batch[name]
