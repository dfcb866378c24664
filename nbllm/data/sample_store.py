"""Examples to learn from on disk: rows of tokens, what is to be predicted at each, and to which example it belongs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from nbllm.core.cache import cache_folder, make_folder, remove_abandoned, unwritable
from nbllm.core.config import PlainConfig
from nbllm.core.errors import DataError, UserError
from nbllm.core.io import atomic_directory, read_json, sha256_file, write_json
from nbllm.core.seeding import derive

SCHEMA = "nbllm-samples/1"
RECORD, ROWS = "samples.json", "rows.npy"
INPUTS, TARGETS, EXAMPLES = range(3)  # the parts of a row
NO_EXAMPLE = -1  # of padding
_MAX_RECORD = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRecord(PlainConfig):
    """What the record says of the rows beside it."""

    fingerprint: str
    sha256: str
    num_examples: int
    num_bytes: int
    vocab_size: int
    schema: str = SCHEMA


class SampleStore:
    """Rows of one length; made by `write_samples`, opened again with `SampleStore.open`.

    Attributes:
        path: The folder.
        rows: (row, part, position), int32; the parts are `INPUTS`, `TARGETS` (-100: not predicted) and `EXAMPLES`
            (`NO_EXAMPLE`: padding).
        fingerprint: Hexadecimal name of the rows.
        num_bytes: UTF-8 bytes of the text.
        vocab_size: Ids are below this.
    """

    def __init__(self, path: Path, record: SampleRecord, rows: NDArray[np.int32]) -> None:
        self.path, self.record, self.rows = path, record, rows
        self.fingerprint, self.num_bytes = record.fingerprint, record.num_bytes
        self.vocab_size = record.vocab_size

    @classmethod
    def open(cls, path: str | Path) -> SampleStore:
        """Open the store in a folder.

        Raises:
            DataError: There is none, or it is damaged.
        """
        path = Path(path)
        try:
            record = SampleRecord.from_dict(read_json(path / RECORD, _MAX_RECORD))
            rows = np.load(path / ROWS, allow_pickle=False)
        except (OSError, ValueError, TypeError, AttributeError, EOFError, UserError) as error:
            raise DataError(f"The examples cannot be read: {error}", where=path) from error
        if rows.dtype != np.int32 or rows.ndim != 3 or rows.shape[1] != 3 or not rows.size:
            raise DataError("The rows of examples have another shape than they should.", where=path)
        return cls(path, record, rows)

    @property
    def row_length(self) -> int:
        """Tokens in a row."""
        return int(self.rows.shape[2])

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, with padding."""
        return len(self.rows) * self.row_length

    def __len__(self) -> int:
        """Return how many examples there are."""
        return self.record.num_examples

    def verify(self) -> None:
        """Compare the checksum.

        Raises:
            DataError: The rows are not those that were written.
        """
        if sha256_file(self.path / ROWS) != self.record.sha256:
            raise DataError("The rows of examples are damaged.", where=self.path / ROWS)

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Return the rows that begin at these tokens of all rows: (window, part, position).

        Raises:
            DataError: A row is not `length` tokens long.
        """
        if length != self.row_length:
            raise DataError(f"Rows have {self.row_length} tokens, not {length}.", where=self.path)
        return self.rows[starts // length].astype(np.int64)


class RowSource:
    """Draws the rows of a store, each once an epoch, in a fresh seeded order each time.

    The row at a position depends on the seed and the position alone.

    Args:
        store: The rows.
        seed: Names the order.
    """

    def __init__(self, store: SampleStore, *, seed: int = 0) -> None:
        self.store, self.seed = store, seed
        self.length = self.stride = store.row_length
        self._order = functools.lru_cache(maxsize=2)(self._make_order)

    @property
    def windows_per_epoch(self) -> int:
        """Number of rows."""
        return len(self.store.rows)

    def draw(self, position: int, count: int) -> NDArray[np.int64]:
        """Return the rows drawn at `position`, `position + 1`, ...: (count, part, position)."""
        places = range(position, position + count)
        chosen = [
            self._order(place // self.windows_per_epoch)[place % self.windows_per_epoch] for place in places
        ]
        return self.store.rows[chosen].astype(np.int64)

    def _make_order(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng(derive(self.seed, "order of rows", epoch))
        return rng.permutation(self.windows_per_epoch)


def write_samples(
    rows: NDArray[np.int32], *, num_examples: int, num_bytes: int, vocab_size: int, folder: Path | None = None
) -> SampleStore:
    """Write rows into the cache, or find them there.

    Raises:
        CacheError: The folder cannot be written.
    """
    digest = hashlib.blake2b(rows.tobytes(), digest_size=16)
    digest.update(repr((SCHEMA, rows.shape, num_examples, num_bytes, vocab_size)).encode())
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
                np.save(aside / ROWS, rows, allow_pickle=False)
                record = SampleRecord(
                    fingerprint=fingerprint, sha256=sha256_file(aside / ROWS), num_examples=num_examples,
                    num_bytes=num_bytes, vocab_size=vocab_size,
                )  # fmt: skip
                write_json(aside / RECORD, dataclasses.asdict(record))
        except OSError as error:
            raise unwritable(parent, error) from error
    return SampleStore.open(path)
