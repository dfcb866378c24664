"""Which column holds the text, and whether a value is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbllm.core.errors import listed, nearest
from nbllm.data.sources.chats import COLUMNS, is_conversation, plain_text, read_messages
from nbllm.data.sources.documents import Document
from nbllm.data.sources.omissions import Omissions

TEXT_NAMES = ("text", "content", "body", "document", "article")
# Strings that say something about a text. Where a table has another column of strings, these are not the text.
LABELS = frozenset(
    "id _id uid uuid guid idx index key hash sha sha1 sha256 md5 url uri link path file filename file_name source"
    " origin version date time datetime timestamp created created_at updated_at lang language locale label"
    " category class type kind tag tags split subset license licence author name meta metadata".split()
)


class ColumnChoice:
    """Chooses the column that holds the text, once, and reads documents out of rows.

    The column asked for; else `text`; else one that holds conversations; else the only one that holds text:
    identifiers, dates and the like are none, unless there is nothing else.

    Args:
        wanted: The column asked for, or None.
        omissions: Told what cannot be used.
        title: Of the file, for what is noted.
    """

    def __init__(self, wanted: str | None, omissions: Omissions, title: str) -> None:
        self._wanted, self._omissions, self._title = wanted, omissions, title
        self.name: str | None = None

    def choose(self, known: Sequence[str], example: Mapping[str, Any], where: str) -> str | None:
        """Return the column, or None when there is none and that is to be left out.

        Args:
            known: All columns.
            example: A value of each; those that are not here are neither text nor conversations.
            where: For the error.
        """
        if self.name is not None:
            if self.name in known:
                return self.name
            return self._missing(self.name, known, where, None)
        name = self._wanted if self._wanted is not None else choose_column(known, example)
        if name is None:
            return self._missing("text", known, where, "Name one of them: column='...'.")
        if name not in known:
            return self._missing(name, known, where, nearest(name, known) if known else None)
        if list(known).count(name) > 1:
            self._omissions.add(
                "ambiguous column", f"There are several columns {name!r}.", where=where, hint="Rename them."
            )
            return None
        self.name = name
        if self._wanted is None and name != "text" and len(known) > 1:
            self._omissions.note(f"The text of {self._title} is its column {name!r}.")
        return name

    def document(self, row: Mapping[str, Any], source: str, where: str) -> Document | None:
        """Return the document of a row, or None where it has none and is left out."""
        if self.name is None or self.name not in row:
            chosen = self.choose(list(row), row, where)
            if chosen is None:
                return None
        assert self.name is not None
        return make_document(row[self.name], self.name, source, where, self._omissions)

    def _missing(self, name: str, known: Sequence[str], where: str, hint: str | None) -> str | None:
        self._omissions.add(
            "missing column",
            f"There is no column {name!r}. Columns: {listed(known)}.",
            where=where,
            hint=hint or "Name the column of the text: column='...'.",
        )
        return None


def choose_column(known: Sequence[str], example: Mapping[str, Any]) -> str | None:
    """Return the column that holds the text as far as that can be told, or None."""
    if "text" in known:
        return "text"
    chats = [name for name in known if is_conversation(example.get(name)) or _is_empty_chat(name, example)]
    if chats:
        usual = [name for name in chats if name in COLUMNS]
        return (usual or chats)[0] if len(chats) == 1 or len(usual) == 1 else None
    textual = [name for name in known if is_textual(example.get(name))]
    candidates = [name for name in textual if name.lower() not in LABELS]
    for name in candidates:
        if name.lower() in TEXT_NAMES and len(candidates) == 1:
            return name
    if any(_holds_text(example.get(name)) for name in known if name.lower() not in LABELS):
        return None  # a list or an object: it may be what is meant
    if len(candidates) == 1:
        return candidates[0]
    return textual[0] if len(textual) == len(known) == 1 else None


def is_textual(value: object) -> bool:
    """Return whether a value is text that is not just a number."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def make_document(
    value: object, column: str, source: str, where: str, omissions: Omissions
) -> Document | None:
    """Return a text or a conversation as a document; leave out any other value and return None."""
    if isinstance(value, str):
        return Document(value, source, where)
    if is_conversation(value):
        messages = read_messages(value)  # type: ignore[arg-type]
        if messages is not None:
            return Document(plain_text(messages), source, where, messages)
        omissions.add(
            "no text in conversation",
            f"A message in column {column!r} holds something other than text.",
            where=where,
            hint='Write each message as {"role": "user", "content": "..."}.',
        )
        return None
    found = "nothing" if value is None else type(value).__name__
    omissions.add(
        "no text in column",
        f"Column {column!r} holds {found} where text should be.",
        where=where,
        hint="Fix the row, or name another column: column='...'.",
    )
    return None


def _is_empty_chat(name: str, example: Mapping[str, Any]) -> bool:
    value = example.get(name)
    return name in COLUMNS and isinstance(value, Sequence) and len(value) == 0


def _holds_text(value: object) -> bool:
    """Return whether a list or an object has a text somewhere near its top."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return False
    return any(
        isinstance(part, str)
        or (isinstance(part, Mapping) and any(isinstance(v, str | list | dict) for v in part.values()))
        for part in list(value)[:8]
    )
