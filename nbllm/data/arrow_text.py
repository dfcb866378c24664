"""A column of text as the kernels read it: the bytes, offsets and validity that Arrow keeps, not copied."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.core.errors import UserError

BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
CONTIGUOUS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


class Texts(NamedTuple):
    """Documents as UTF-8 bytes between offsets.

    Document `i` is `data[offsets[i]:offsets[i + 1]]`. The first offset need not be 0, for a slice of a column. All
    three arrays are read-only, so that a kernel is compiled for one kind of array. A document that is null has
    `valid[i]` False and no text.

    Attributes:
        data: uint8 (bytes,).
        offsets: int64 (documents + 1,), not decreasing.
        valid: bool (documents,).
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    valid: NDArray[np.bool_]

    @classmethod
    def of(cls, column: pa.Array | pa.ChunkedArray) -> Texts:
        """Return the documents of an Arrow column of strings.

        The bytes are Arrow's own buffer, which the result keeps alive; only a column of several chunks, or one whose
        strings do not lie one behind the other (dictionary, view), is first copied into one.

        Raises:
            UserError: the column does not hold strings.
        """
        array = _one_array(column)
        wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        _, offset_buffer, data_buffer = array.buffers()
        data = np.frombuffer(data_buffer or b"", np.uint8)
        if offset_buffer is None or offset_buffer.size == 0:  # Arrow allows an empty column to leave it out
            offsets = np.zeros(1, np.int64)
        else:
            stored = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)
            offsets = stored[array.offset : array.offset + len(array) + 1].astype(np.int64, copy=False)
        valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)
        texts = cls(data.view(), offsets.view(), valid.view())
        for part in (texts.data, texts.offsets, texts.valid):
            part.flags.writeable = False
        return texts

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        """Return the bytes of document `index`, which may count from the end; empty for a null."""
        documents = self.valid.size
        position = index + documents if index < 0 else index
        if not 0 <= position < documents:
            raise IndexError(f"document {index} of {documents}")
        if not self.valid[position]:
            return b""
        return self.data[self.offsets[position] : self.offsets[position + 1]].tobytes()

    @property
    def num_documents(self) -> int:
        """Number of documents, nulls among them."""
        return int(self.valid.size)


def _one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return `column` as one array of strings whose bytes lie one behind the other."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    binary = any(is_kind(kind) for is_kind in BINARY)
    if not binary and not any(is_kind(kind) for is_kind in STRINGS):
        raise UserError(
            f"The text column holds {column.type}, not strings.", hint="Name a column of strings, or cast it."
        )
    if isinstance(column, pa.ChunkedArray) and column.num_chunks == 1:
        column = column.chunk(0)
    if isinstance(column, pa.Array) and any(is_kind(column.type) for is_kind in CONTIGUOUS):
        return column
    column = column.cast(pa.large_binary() if binary else pa.large_string())  # 32 bits end at 2 GiB
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
