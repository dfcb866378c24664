"""Tokens on disk: what is asked for is read, so a text may be larger than the memory."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.config import PlainConfig
from nbllm.core.errors import DataError, UserError
from nbllm.core.io import expand_user, read_json
from nbllm.core.quantities import counted
from nbllm.data.token_file import TokenFile, TokenShards, damaged

SCHEMA = "nbllm-tokens/2"
RECORD, OFFSETS = "store.json", "offsets.bin"
MAX_RECORD = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreRecord(PlainConfig):
    """What `store.json` says of the arrays beside it.

    Attributes:
        shard_tokens: How many tokens each file of them has, but for the last.
        sha256: Of each file, by name.
    """

    dtype: str
    shard_tokens: int
    num_tokens: int
    num_documents: int
    num_bytes: int
    eos_id: int
    vocab_size: int
    fingerprint: str
    sha256: dict[str, str]
    start_id: int | None = None  # begins each document, where that is not what ended the one before
    num_conversations: int = 0  # documents that a chat template rendered
    schema: str = SCHEMA


class TokenStore:
    """The tokens of all documents, one after the other, each document followed by the token that ends it.

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
        dtype = np.dtype(record.dtype).newbyteorder("<").str
        starts = range(0, record.num_tokens, record.shard_tokens)
        names = [shard_name(number) for number in range(len(starts))]
        self._tokens = TokenShards(
            [
                TokenFile(
                    path / name,
                    dtype=dtype,
                    count=min(record.shard_tokens, record.num_tokens - start),
                    sha256=record.sha256[name],
                )
                for name, start in zip(names, starts, strict=True)
            ]
        )
        self._offsets = TokenFile(
            path / OFFSETS, dtype="<i8", count=record.num_documents + 1, sha256=record.sha256[OFFSETS]
        )

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Open a store; sizes are checked, content is not (see `verify`).

        Raises:
            DataError: There is no store in `path`, it is of another version, or a file has the wrong size.
        """
        path = expand_user(path)
        return cls(path, _read_record(path))

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises:
            DataError: A file's content is not what was written.
        """
        self._tokens.verify()
        self._offsets.verify()

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return the tokens from `start` up to `stop`, or to the end: (token).

        Raises:
            DataError: The files were changed since they were opened.
        """
        return self._checked(self._tokens.read(start, self.num_tokens if stop is None else stop))

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Return `length` tokens from each start on, where the first token follows the last: (window, length).

        Args:
            starts: (window) indices of tokens.
            length: At most `num_tokens`.

        Raises:
            DataError: The files were changed since they were opened.
        """
        return self._checked(self._tokens.windows(starts, length))

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(document + 1) int64: where each document begins among the tokens; the last entry is the end."""
        offsets = self._offsets.read(0, len(self) + 1).astype(np.int64)
        if offsets[0] != 0 or offsets[-1] != self.num_tokens or (np.diff(offsets) < 1).any():
            raise damaged(self.path / OFFSETS, f"{OFFSETS} does not divide the tokens into documents")
        return offsets

    def _checked(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        if tokens.max(initial=0) >= self.vocab_size:  # compiled code would read beyond the embedding
            raise damaged(
                self.path, f"it holds the token {tokens.max()} of a vocabulary of {self.vocab_size}"
            )
        return tokens.astype(np.int64)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, the end tokens included."""
        return self.record.num_tokens

    def document(self, index: int) -> NDArray[np.int64]:
        """Return document `index` (from 0, or from the end when negative) without its start and end token: (token).

        Raises:
            IndexError: There is no such document.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no document {index} among {len(self)}.")
        index %= len(self)
        tokens = self.read(int(self.offsets[index]), int(self.offsets[index + 1]) - 1)
        return tokens[1:] if len(tokens) and tokens[0] == self.record.start_id else tokens

    def __len__(self) -> int:
        return self.record.num_documents

    def __repr__(self) -> str:
        return (
            f"TokenStore({self.num_tokens:,} tokens of {counted(len(self), 'documents')}, {self.record.dtype}, "
            f"{self.num_bytes / max(self.num_tokens, 1):.2f} bytes a token, {str(self.path)!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore.open, (self.path,)


def shard_name(number: int) -> str:
    """Return the name of a file of tokens, counted from 0."""
    return f"tokens-{number:05d}.bin"


def _read_record(path: Path) -> StoreRecord:
    file = path / RECORD
    if not file.is_file():
        raise DataError("There is no token store here.", where=path, hint="Make one with nbllm.data.pack.")
    try:
        values = read_json(file, MAX_RECORD)
        if values.get("schema") != SCHEMA:
            raise DataError(
                f"The token store is of version {values.get('schema')!r}, not {SCHEMA!r}.",
                where=file,
                hint="Pack the text again.",
            )
        record = StoreRecord.from_dict(values)
        shards = -(-record.num_tokens // record.shard_tokens) if record.shard_tokens > 0 else 0
        if not 0 < shards <= len(record.sha256):
            raise ValueError("it names fewer files than it has tokens for")
        sums = [record.sha256.get(name) for name in (OFFSETS, *map(shard_name, range(shards)))]
    except DataError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        reason = error.what if isinstance(error, UserError) else error
        raise damaged(file, f"its record cannot be read ({reason})") from error
    counts = (record.num_tokens, record.num_documents, record.vocab_size)
    if (
        record.dtype not in ("uint16", "uint32")
        or min(counts) < 1
        or not all(isinstance(s, str) for s in sums)
    ):
        raise damaged(file, "its record makes no sense")
    return record
