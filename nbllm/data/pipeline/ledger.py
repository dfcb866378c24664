"""The ledger: one row for every document, line or span that was removed, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nbllm.data.arrow_text import Texts
from nbllm.data.kernels.editing import copy_spans, shortened_stops
from nbllm.data.pipeline.edited import string_column
from nbllm.data.pipeline.placed import Placed
from nbllm.data.pipeline.step import Edits

MOST_BYTES = 2000  # quoted of what was removed

LEDGER = pa.schema(
    [
        ("id", pa.int64()),
        ("step", pa.string()),
        ("rule", pa.string()),
        ("kind", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("partner", pa.int64()),
        ("jaccard", pa.float64()),
        ("text", pa.string()),
    ]
)


def document_rows(
    place: Placed, texts: Texts, ids: NDArray[np.int64], found: Edits, broken: NDArray[np.bool_],
    values: NDArray[np.float64],
) -> pa.Table:  # fmt: skip
    """Return the rows of dropped documents: one for each rule that a document breaks, the first with its text.

    Args:
        place: The step.
        texts: What it saw.
        ids: int64 (documents,).
        found: What it returned.
        broken: bool (rules, documents).
        values: float64 (rules, documents), what was measured.
    """
    document, rule = np.nonzero(broken.T)
    first = np.ones(len(document), bool)
    first[1:] = document[1:] != document[:-1]
    edit = np.full(broken.shape, -1)  # the edit that says why, where one does
    edit[found.rule[::-1], found.document[::-1]] = np.arange(len(found.rule))[::-1]
    edit = edit[rule, document]
    start, stop = np.zeros(len(document), np.int64), np.diff(texts.offsets)[document]
    said = edit >= 0
    pointed = said.copy()
    pointed[said] = found.stop[edit[said]] > found.start[edit[said]]
    start[pointed], stop[pointed] = found.start[edit[pointed]], found.stop[edit[pointed]]
    return _rows(
        place, ids[document], rule, start, stop, values[rule, document],
        _of_edits(found.partner, edit, -1), _of_edits(found.jaccard, edit, np.nan),
        _quoted(texts, document, start, stop, first | pointed, found, edit),
    )  # fmt: skip


def edit_rows(
    place: Placed, texts: Texts, ids: NDArray[np.int64], found: Edits, edit: NDArray[np.intp]
) -> pa.Table:
    """Return the rows of removed lines and spans.

    Args:
        place: The step.
        texts: What it saw.
        ids: int64 (documents,).
        found: What it returned.
        edit: The edits that were applied, of those.
    """
    document, start, stop = found.document[edit], found.start[edit], found.stop[edit]
    return _rows(
        place, ids[document], found.rule[edit], start, stop, found.value[edit],
        _of_edits(found.partner, edit, -1), _of_edits(found.jaccard, edit, np.nan),
        _quoted(texts, document, start, stop, np.ones(len(edit), bool), found, edit),
    )  # fmt: skip


def _of_edits(values: NDArray[Any] | None, edit: NDArray[np.intp], gap: float) -> NDArray[Any] | None:
    """Return the values of some edits; a gap where there is no edit (-1)."""
    if values is None or not len(values):
        return None
    return np.where(edit >= 0, np.asarray(values)[edit], gap)


def _rows(  # noqa: PLR0913 - the columns
    place: Placed, ids: NDArray[np.int64], rule: NDArray[Any], start: NDArray[np.int64],
    stop: NDArray[np.int64], value: NDArray[np.float64], partner: NDArray[Any] | None,
    jaccard: NDArray[Any] | None, text: pa.Array,
) -> pa.Table:  # fmt: skip
    rules = place.step.rules
    count = len(ids)
    nothing = np.full(count, np.nan)

    def measured(values: NDArray[Any]) -> pa.Array:
        return pa.array(values, pa.float64(), mask=np.isnan(values))

    partner = np.full(count, -1) if partner is None else partner
    limits = np.array([limit.threshold for limit in rules], float)
    columns = [
        pa.array(ids, pa.int64()),
        pa.repeat(pa.scalar(place.key), count),
        pa.array([limit.name for limit in rules], pa.string()).take(pa.array(rule)),
        pa.array([limit.kind for limit in rules], pa.string()).take(pa.array(rule)),
        pa.array(start, pa.int64()),
        pa.array(stop, pa.int64()),
        measured(np.asarray(value, float)),
        measured(limits[rule]),
        pa.array(partner, pa.int64(), mask=partner < 0),
        measured(nothing if jaccard is None else jaccard),
        text,
    ]
    return pa.Table.from_arrays(columns, schema=LEDGER)


def _quoted(
    texts: Texts, document: NDArray[Any], start: NDArray[np.int64], stop: NDArray[np.int64],
    wanted: NDArray[np.bool_], found: Edits, edit: NDArray[np.intp],
) -> pa.Array:  # fmt: skip
    """Return what the ledger quotes of each span; null where it is not wanted."""
    shown: list[str | None] = [None] * len(edit)
    if found.shown is not None:
        shown = [found.shown[number] if number >= 0 else None for number in edit]
    own = np.array([text is None for text in shown], bool)
    begin = texts.offsets[document] + start
    end = np.where(wanted & own, texts.offsets[document] + stop, begin)
    end = shortened_stops(texts.data, begin, end, MOST_BYTES)
    data = np.empty(int((end - begin).sum()), np.uint8)
    offsets = np.empty(len(begin) + 1, np.int64)
    copy_spans(texts.data, begin, end, data, offsets)
    column = string_column(data, offsets, wanted & own)
    return column if own.all() else pc.coalesce(column, pa.array(shown, pa.string()))
