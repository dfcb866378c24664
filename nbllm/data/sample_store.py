"""Examples to learn from on disk: rows, each of which has an entry in every column."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from nbllm.core.cache import cache_folder, make_folder, remove_abandoned, unwritable
from nbllm.core.config import PlainConfig
from nbllm.core.errors import DataError, UserError
from nbllm.core.io import atomic_directory, read_json, sha256_file, write_json
from nbllm.core.seeding import derive

SCHEMA = "nbllm-samples/2"
RECORD = "samples.json"
NO_EXAMPLE = -1  # of padding
_MAX_RECORD = 1 << 20  # bytes
_CYCLE = 1024  # draws in which each data set of a mixture gets its share
_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")

Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""By name, (row, ...) each: int32 (tokens, targets of which -100 is not predicted, numbers of examples) or float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRecord(PlainConfig):
    """What the record says of the columns beside it."""

    fingerprint: str
    sha256: Mapping[str, str]
    row_length: int
    num_examples: int
    num_bytes: int
    vocab_size: int
    sources: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        """Check what follows from no dataclass."""
        for name in ("sources", "shares"):  # JSON has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.schema != SCHEMA:
            raise UserError(f"The schema is {self.schema!r}, not {SCHEMA!r}.")
        if not self.sha256 or not all(_NAME.fullmatch(name) for name in self.sha256):
            raise UserError("It names no columns.")
        if len(self.shares) not in (0, len(self.sources)) or not all(share >= 0 for share in self.shares):
            raise UserError("Its data sets and their shares do not fit.")
        if self.row_length < 1:
            raise UserError(f"row_length is {self.row_length}.")


class SampleStore:
    """Rows of examples; made by `write_samples`, opened again with `SampleStore.open`.

    Attributes:
        path: The folder.
        columns: By name, (row, ...) each, int32 or float32. Supervised fine-tuning has "inputs", "targets" (-100: not
            predicted) and "examples" (`NO_EXAMPLE`: padding), (row, position); another method has what its objective
            reads.
        fingerprint: Hexadecimal name of the rows.
        row_length: Tokens in a row.
        num_bytes: UTF-8 bytes of the text.
        vocab_size: Ids are below this.
        sources: Names of the data sets, where rows come from several: the column "sources", (row,), has their numbers.
        shares: How often each is drawn, in proportion to the others; none: all rows are drawn alike.
    """

    def __init__(self, path: Path, record: SampleRecord, columns: Columns) -> None:
        self.path, self.record, self.columns = path, record, columns
        self.fingerprint, self.num_bytes = record.fingerprint, record.num_bytes
        self.vocab_size, self.row_length = record.vocab_size, record.row_length
        self.sources, self.shares = record.sources, record.shares

    @classmethod
    def open(cls, path: str | Path) -> SampleStore:
        """Open the store in a folder.

        Raises:
            DataError: There is none, or it is damaged.
        """
        path = Path(path)
        try:
            record = SampleRecord.from_dict(read_json(path / RECORD, _MAX_RECORD))
            columns = {name: np.load(_file(path, name), allow_pickle=False) for name in record.sha256}
        except (OSError, ValueError, TypeError, AttributeError, EOFError, UserError) as error:
            raise DataError(f"The examples cannot be read: {error}", where=path) from error
        counts = {len(column) if column.ndim else 0 for column in columns.values()}
        if len(counts) != 1 or 0 in counts or not all(map(_is_storable, columns.values())):
            raise DataError("The columns of the examples have other shapes than they should.", where=path)
        return cls(path, record, columns)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, with padding."""
        return self.num_rows * self.row_length

    def __len__(self) -> int:
        """Return how many examples there are."""
        return self.record.num_examples

    def verify(self) -> None:
        """Compare the checksums.

        Raises:
            DataError: The rows are not those that were written.
        """
        for name, sha256 in self.record.sha256.items():
            if sha256_file(_file(self.path, name)) != sha256:
                raise DataError("The rows of examples are damaged.", where=_file(self.path, name))

    def take(self, rows: NDArray[np.intp] | list[int]) -> dict[str, NDArray[Any]]:
        """Return the columns of some rows: (chosen row, ...) each, int64 or float32."""
        return {
            name: column[rows].astype(np.int64 if column.dtype == np.int32 else np.float32)
            for name, column in self.columns.items()
        }

    def with_sources(self, names: Sequence[str]) -> SampleStore:
        """Return these rows with the numbers of other names in their column "sources"; theirs are among these.

        Raises:
            DataError: They are not, or a row has a number that none of the store's data sets has.
        """
        if not self.sources:
            return self
        numbers = self.columns.get("sources")
        if numbers is None or not set(self.sources) <= set(names) or not 0 <= numbers.min() <= numbers.max() < len(
            self.sources
        ):  # fmt: skip
            raise DataError(
                "The rows of examples name data sets that the run does not know.", where=self.path
            )
        places = np.array([names.index(name) for name in self.sources], np.int32)
        shares = dict(zip(self.sources, self.shares, strict=False))
        record = self.record.replace(
            sources=tuple(names), shares=tuple(shares.get(name, 0.0) for name in names) if shares else ()
        )
        return SampleStore(self.path, record, {**self.columns, "sources": places[numbers]})

    def windows(self, starts: NDArray[np.int64], length: int) -> dict[str, NDArray[Any]]:
        """Return the rows that begin at these tokens of all rows, as `take` does.

        Raises:
            DataError: A row is not `length` tokens long.
        """
        if length != self.row_length:
            raise DataError(f"Rows have {self.row_length} tokens, not {length}.", where=self.path)
        return self.take(starts // length)


class RowSource:
    """Draws the rows of a store, each once an epoch, in a fresh seeded order each time.

    Of a mixture with shares, each data set gets its share of every 1,024 draws, in a seeded order, and has epochs of
    its own. The row at a position depends on the seed and the position alone.

    Args:
        store: The rows.
        seed: Names the order.
    """

    def __init__(self, store: SampleStore, *, seed: int = 0) -> None:
        self.store, self.seed = store, seed
        self.length = self.stride = store.row_length
        self._order = functools.lru_cache(maxsize=64)(self._make_order)
        if store.shares:
            self._rows_of = functools.cache(self._find_rows)
            self._cycle = functools.lru_cache(maxsize=2)(self._make_cycle)
            self._quota = self._make_quota()

    @property
    def windows_per_epoch(self) -> int:
        """Number of rows."""
        return self.store.num_rows

    def draw(self, position: int, count: int) -> dict[str, NDArray[Any]]:
        """Return the columns of the rows drawn at `position`, `position + 1`, ...: (count, ...) each."""
        return self.store.take([self._row(place) for place in range(position, position + count)])

    def _row(self, place: int) -> int:
        if not self.store.shares:
            return self._nth(None, place)
        cycle, within = divmod(place, _CYCLE)
        drawn = self._cycle(cycle)
        source = int(drawn[within])
        return self._nth(source, cycle * int(self._quota[source]) + int((drawn[:within] == source).sum()))

    def _nth(self, source: int | None, number: int) -> int:
        """Return the row that a data set gives when `number` of its rows were drawn before; None: of all rows."""
        size = self.windows_per_epoch if source is None else len(self._rows_of(source))
        epoch, place = divmod(number, size)
        return int(self._order(source, epoch)[place])

    def _make_order(self, source: int | None, epoch: int) -> NDArray[np.int64]:
        if source is None:
            rng = np.random.default_rng(derive(self.seed, "order of rows", epoch))
            return rng.permutation(self.windows_per_epoch)
        rng = np.random.default_rng(derive(self.seed, "order of rows", source, epoch))
        order: NDArray[np.int64] = rng.permutation(self._rows_of(source))
        return order

    def _find_rows(self, source: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.store.columns["sources"] == source)

    def _make_cycle(self, number: int) -> NDArray[np.int64]:
        """Return the data set of each draw of a cycle."""
        sources = np.repeat(np.arange(len(self._quota)), self._quota)
        drawn: NDArray[np.int64] = np.random.default_rng(derive(self.seed, "mixture", number)).permutation(
            sources
        )
        return drawn

    def _make_quota(self) -> NDArray[np.int64]:
        """Return how many draws of a cycle each data set gets: its share of them, rounded, but at least one."""
        shares = np.array(self.store.shares)
        exact = shares / shares.sum() * (_CYCLE - np.count_nonzero(shares))
        quota = np.floor(exact).astype(np.int64) + (shares > 0)
        most_lacking = np.argsort(np.floor(exact) - exact, kind="stable")
        quota[most_lacking[: _CYCLE - int(quota.sum())]] += 1
        made: NDArray[np.int64] = quota
        return made


def write_samples(
    columns: Columns,
    *,
    row_length: int,
    num_examples: int,
    num_bytes: int,
    vocab_size: int,
    sources: tuple[str, ...] = (),
    shares: tuple[float, ...] = (),
    folder: Path | None = None,
) -> SampleStore:
    """Write rows into the cache, or find them there.

    Args:
        columns: By name, (row, ...) each, int32 or float32.
        row_length: How many tokens of a row a network reads.
        num_examples: How many examples they hold.
        num_bytes: UTF-8 bytes of these.
        vocab_size: Ids are below this.
        sources: Names of the data sets, whose numbers the column "sources" holds.
        shares: How often each is drawn, in proportion; none: all rows alike.
        folder: Instead of the cache.

    Raises:
        CacheError: The folder cannot be written.
    """
    assert all(map(_is_storable, columns.values())) and all(map(_NAME.fullmatch, columns))
    assert len({len(column) for column in columns.values()}) == 1
    about = (SCHEMA, row_length, num_examples, num_bytes, vocab_size, sources, shares)
    digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
    for name, column in columns.items():
        digest.update(repr((name, column.shape, column.dtype.name)).encode())
        digest.update(np.ascontiguousarray(column).tobytes())
    fingerprint = digest.hexdigest()
    parent = (cache_folder() if folder is None else folder) / "samples"
    path = parent / fingerprint
    make_folder(parent)
    with FileLock(parent / f"{fingerprint}.lock"):
        try:
            store = SampleStore.open(path)
            store.verify()
            return store
        except (DataError, OSError):
            remove_abandoned(parent)
        try:
            if path.exists():
                shutil.rmtree(path)
            with atomic_directory(path) as aside:
                for name, column in columns.items():
                    np.save(_file(aside, name), column, allow_pickle=False)
                record = SampleRecord(
                    fingerprint=fingerprint,
                    sha256={name: sha256_file(_file(aside, name)) for name in columns},
                    row_length=row_length, num_examples=num_examples, num_bytes=num_bytes, vocab_size=vocab_size,
                    sources=sources, shares=shares,
                )  # fmt: skip
                write_json(aside / RECORD, dataclasses.asdict(record))
        except OSError as error:
            raise unwritable(parent, error) from error
    return SampleStore.open(path)


def _file(folder: Path, column: str) -> Path:
    return folder / f"{column}.npy"


def _is_storable(column: NDArray[Any]) -> bool:
    return column.dtype in (np.int32, np.float32) and column.ndim > 0 and column.size > 0
