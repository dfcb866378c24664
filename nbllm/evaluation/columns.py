"""Rows as columns: a task's scorer makes the rows, metrics read the columns, statistics resample them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.report.values import Value, conform

Array = NDArray[np.float64]
# By name: (row) of float64, where `None` is not a number, or (row) of objects where a value is text or several.
Columns = Mapping[str, NDArray[Any]]
Row = Mapping[str, Value]


def to_columns(rows: Sequence[Row]) -> dict[str, tuple[Value, ...]]:
    """Return rows of the same names as one tuple of values for each name."""
    names = list(rows[0]) if rows else []
    for row in rows:
        assert set(row) == set(names), f"a row has the columns {sorted(row)}, the first has {sorted(names)}"
    return {name: tuple(conform(row[name], Value) for row in rows) for name in names}


def to_arrays(columns: Mapping[str, Sequence[Value]]) -> Columns:
    """Return the columns as arrays, as metrics read them."""
    return {name: _array(values) for name, values in columns.items()}


def _array(values: Sequence[Value]) -> NDArray[Any]:
    if all(value is None or isinstance(value, (int, float)) for value in values):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    out = np.empty(len(values), object)
    out[:] = values
    return out


def take(columns: Columns, indices: NDArray[np.intp]) -> Columns:
    """Return the columns of some rows, which may repeat."""
    return {name: values[indices] for name, values in columns.items()}
