"""A catalogue shown in a cell: one row an entry, the columns that there is room for first, the others folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, Protocol, Self, TypeVar, overload

from nbllm.core.text_table import text_table


class Entry(Protocol):
    """What stands in a row."""

    def row(self) -> tuple[str, ...]:
        """Return the cells, in the order of the header."""
        ...


EntryT = TypeVar("EntryT", bound=Entry)


class EntryList(Sequence[EntryT], Generic[EntryT]):
    """Entries, shown in a cell as tables. As text, the first columns stand.

    Args:
        entries: The entries.

    Attributes:
        header: The columns.
        shown: How many of them a line of text and a notebook's cell have room for.
        named: How many of them name an entry, and head its row of the folded table, too.
        folded: What the other columns say.
    """

    header: ClassVar[tuple[str, ...]]
    shown: ClassVar[int]
    named: ClassVar[int]
    folded: ClassVar[str]

    def __init__(self, entries: Sequence[EntryT]) -> None:
        self._entries = tuple(entries)

    @overload
    def __getitem__(self, key: int) -> EntryT: ...
    @overload
    def __getitem__(self, key: slice) -> Self: ...
    def __getitem__(self, key: int | slice) -> EntryT | Self:
        return type(self)(self._entries[key]) if isinstance(key, slice) else self._entries[key]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[EntryT]:
        return iter(self._entries)

    def __repr__(self) -> str:
        return text_table([row[: self.shown] for row in (self.header, *(each.row() for each in self))])

    def _repr_html_(self) -> str:
        from nbllm.core.html import fragment, table

        named, shown = self.named, self.shown
        rows = [each.row() for each in self]
        first = table([row[:shown] for row in rows], self.header[:shown], row_headers=True)
        others = table(
            [(*row[:named], *row[shown:]) for row in rows],
            (*self.header[:named], *self.header[shown:]),
            row_headers=True,
        )
        return fragment(f"{first}<details><summary>{self.folded}</summary>{others}</details>")
