"""A run's metrics as they are sent to a panel: columns of bytes, thinned without a visible change of the curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.downsample import downsample
from nbllm.runs.timeline import Points

MOST = 8192  # points that are sent at once
WIDE = frozenset({"step", "tokens", "seconds", "time"})  # columns for which float32 is too coarse
BY = "loss"

Column = NDArray[np.float64]


def columns(points: Points, begin: int = 0, end: int | None = None) -> dict[str, Column]:
    """Return the points from place `begin` up to `end` as arrays by name, `step` among them."""
    found = {"step": np.array(points.steps[begin:end], dtype=np.float64)}
    for name, values in points.columns.items():
        if name != "step":
            found[name] = np.array(values[begin:end], dtype=np.float64)
    return found


def thinned(table: Mapping[str, Column], most: int = MOST) -> dict[str, Column]:
    """Return fewer points of the columns, which draw the same loss curve."""
    by = table.get(BY, table["step"])
    places = downsample(by, most)
    return {name: values[places] for name, values in table.items()}


def packed(table: Mapping[str, Column]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the description of the columns, and a buffer for each."""
    described, buffers = [], []
    for name, values in table.items():
        dtype, code = ("float64", "<f8") if name in WIDE else ("float32", "<f4")
        described.append({"name": name, "dtype": dtype, "length": len(values)})
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is not drawn
            buffers.append(values.astype(code).tobytes())
    return described, buffers
