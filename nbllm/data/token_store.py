"""Tokens on disk, mapped into memory: never more than the pages in use, shared between processes."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError
from nbllm.core.io import sha256_file

SCHEMA = "nbllm-tokens/1"
RECORD, TOKENS, OFFSETS = "store.json", "tokens.bin", "offsets.bin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """What `store.json` says of the arrays beside it."""

    dtype: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    eos_id: int
    vocab_size: int
    fingerprint: str
    sha256: dict[str, str]
    num_conversations: int = 0  # documents that a chat template rendered
    schema: str = SCHEMA


class TokenStore:
    """The tokens of all documents, one behind the other, each document followed by the end-of-text token.

    Made by `pack`; opened again with `TokenStore.open`. Pickling passes the path, not the tokens.

    Attributes:
        path: The folder.
        num_bytes: UTF-8 bytes of the text that was encoded; of conversations, of their plain rendering.
        eos_id: The id that ends each document.
        vocab_size: Ids are below this.
        fingerprint: Hexadecimal name of text + tokenizer.
    """

    def __init__(self, path: Path, record: StoreRecord) -> None:
        self.path = path
        self.record = record
        self.num_bytes = record.num_bytes
        self.eos_id = record.eos_id
        self.vocab_size = record.vocab_size
        self.fingerprint = record.fingerprint

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Open a store; sizes are checked, content is not (see `verify`).

        Raises:
            DataError: There is no store in `path`, it is of another version, or a file has the wrong size.
        """
        path = Path(path)
        record = _read_record(path)
        itemsize = np.dtype(record.dtype).itemsize
        expected = {TOKENS: record.num_tokens * itemsize, OFFSETS: (record.num_documents + 1) * 8}
        for name, size in expected.items():
            file = path / name
            if not file.is_file() or file.stat().st_size != size:
                raise _damaged(file, f"{name} is missing or has not the {size:,} bytes it should have")
        return cls(path, record)

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises:
            DataError: A file's content is not what was written.
        """
        for name in (TOKENS, OFFSETS):
            if sha256_file(self.path / name) != self.record.sha256.get(name):
                raise _damaged(self.path / name, f"the checksum of {name} does not match")

    @functools.cached_property
    def tokens(self) -> np.memmap[Any, np.dtype[np.unsignedinteger]]:
        """(token) uint16, or uint32 when the vocabulary has more than 65,536 words; read-only."""
        return np.memmap(self.path / TOKENS, dtype=self.record.dtype, mode="r")

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(document + 1) int64: where in `tokens` each document begins; the last entry is the end."""
        return np.asarray(np.memmap(self.path / OFFSETS, dtype="<i8", mode="r"))

    @property
    def num_tokens(self) -> int:
        """Number of tokens, the end tokens included."""
        return self.record.num_tokens

    def document(self, index: int) -> NDArray[np.unsignedinteger]:
        """Return document `index` (from 0, or from the end when negative) without its end token: (token).

        Raises:
            IndexError: There is no such document.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no document {index} among {len(self)}.")
        index %= len(self)
        return np.asarray(self.tokens[self.offsets[index] : self.offsets[index + 1] - 1])

    def __len__(self) -> int:
        return self.record.num_documents

    def __repr__(self) -> str:
        return (
            f"TokenStore({self.num_tokens:,} tokens of {len(self):,} documents, {self.record.dtype}, "
            f"{self.num_bytes / max(self.num_tokens, 1):.2f} bytes a token, {str(self.path)!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore.open, (self.path,)


def _read_record(path: Path) -> StoreRecord:
    file = path / RECORD
    if not file.is_file():
        raise DataError("There is no token store here.", where=path, hint="Make one with nbllm.data.pack.")
    try:
        values = json.loads(file.read_text("utf-8"))
        if values.get("schema") != SCHEMA:
            raise DataError(
                f"The token store is of version {values.get('schema')!r}, not {SCHEMA!r}.",
                where=file,
                hint="Pack the text again.",
            )
        record = StoreRecord(**values)
        if record.dtype not in ("uint16", "uint32") or record.num_tokens < 1 or record.num_documents < 1:
            raise _damaged(file, "its record makes no sense")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise _damaged(file, f"its record cannot be read ({error})") from error
    return record


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(
        f"The token store is damaged: {reason}.",
        where=file,
        hint="Pack the text again: damage is then replaced.",
    )
