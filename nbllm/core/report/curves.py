"""Curves as lines of a report's charts."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllm.core.downsample import downsample
from nbllm.core.report.sections import Line

MOST_POINTS = 2400


def curve_line(name: str, steps: Any, values: Any) -> Line:
    """Return (point) steps and values as a line that draws the same with at most `MOST_POINTS` points."""
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    keep = downsample(values, MOST_POINTS, steps)
    return Line(
        name=name,
        x=tuple(int(step) for step in steps[keep]),
        y=tuple(float(f"{value:.6g}") for value in values[keep]),
    )
