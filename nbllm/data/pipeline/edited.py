"""Apply an editor's edits to a column of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.kernels.editing import apply_edits, first_bad_edit
from nbllm.data.pipeline.step import Edits


class Edited(NamedTuple):
    """A column after its edits.

    Attributes:
        column: The texts.
        added: Bytes of all replacements.
    """

    column: pa.Array
    added: int


def edited(texts: Texts, edits: Edits, chosen: NDArray[np.bool_], step: str) -> Edited:
    """Return the texts with the chosen edits applied.

    Args:
        texts: The documents.
        edits: As a step returned them.
        chosen: bool (edits,).
        step: The name of the step, for the error.

    Raises:
        UserError: The edits are out of order or range, overlap, or cut a character.
    """
    document, start, stop = (
        np.ascontiguousarray(part[chosen], np.int64) for part in (edits.document, edits.start, edits.stop)
    )
    bad = first_bad_edit(texts.data, texts.offsets, document, start, stop)
    if bad >= 0:
        raise UserError(
            f"Step {step!r} returned an edit of bytes {start[bad]} to {stop[bad]} of document {document[bad]} that is"
            " out of order or range, overlaps another, or cuts a character.",
            hint="Edits are ordered by (document, start), do not overlap, and lie on the borders of characters.",
        )
    replacements = (
        [b""] * len(document)
        if edits.replacement is None
        else [edits.replacement[edit] for edit in np.flatnonzero(chosen).tolist()]
    )
    new_data, new_offsets = _joined(replacements)
    added = int(new_offsets[-1])
    num_bytes = int(texts.offsets[-1] - texts.offsets[0] - (stop - start).sum() + added)
    out = np.empty(num_bytes, np.uint8)
    out_offsets = np.empty(texts.num_documents + 1, np.int64)
    apply_edits(texts.data, texts.offsets, document, start, stop, new_data, new_offsets, out, out_offsets)
    return Edited(string_column(out, out_offsets, texts.valid), added)


def string_column(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], valid: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return a column of strings over these bytes, which are not copied.

    Args:
        data: uint8 (bytes,), UTF-8.
        offsets: int64 (texts + 1,).
        valid: bool (texts,); without it none is null.
    """
    nulls = None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    buffers = [nulls, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.StringArray.from_buffers(len(offsets) - 1, buffers[1], buffers[2], buffers[0])


def _joined(parts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.frombuffer(b"".join(parts), np.uint8), offsets
