"""Several runs side by side, as plain JSON and points; the front end escapes it."""

from __future__ import annotations

import math
from typing import Any

from nbllm.core.html import is_numeric
from nbllm.core.quantities import column
from nbllm.core.terminal import visible
from nbllm.runs.compare import MISSING, Comparison, value_text
from nbllm.runs.events import is_number
from nbllm.runs.run import Run
from nbllm.widgets.points import Column, columns, thinned

MOST_POINTS = 4096  # of a series of a run
MOST_SETTINGS = 400  # a record may hold anything
MOST_SAMPLE = 4000  # characters
DRAWN = {"steps": ("step", "loss", "tokens", "seconds"), "evaluations": ("step", "loss", "bits_per_byte")}

Points = dict[str, dict[str, Column]]


def described(runs: list[Run]) -> dict[str, Any]:
    """Return results, settings and newest samples of runs, all texts in the order of the runs."""
    compared = Comparison(tuple(runs), tuple(run.name for run in runs))
    settings = compared.settings()
    different = compared.differences()
    first = sorted(settings, key=lambda name: name not in different)[:MOST_SETTINGS]
    return {
        "runs": [run.name for run in runs],
        "loss_label": f"training loss{compared.loss_unit}",
        "results": [_result(label, values) for label, *values in compared.results()],
        "settings": [
            {
                "name": visible(name),
                "values": [visible(value_text(value)) for value in settings[name]],
                "differs": name in different,
            }
            for name in settings
            if name in first
        ],
        "num_settings": len(settings),
        "samples": [_newest_sample(run) for run in runs],
    }


def points_of(run: Run) -> Points:
    """Return the points that are drawn of a run: by series, the columns by name."""
    with run.guard:
        timeline = run.timeline
        tables = {"steps": columns(timeline.steps), "evaluations": columns(timeline.evaluations)}
    return {
        series: thinned({name: table[name] for name in DRAWN[series] if name in table}, MOST_POINTS)
        for series, table in tables.items()
    }


def _result(label: str, values: list[Any]) -> dict[str, Any]:
    numbers = [value for value in values if is_number(value) and math.isfinite(value)]
    texts = (
        column(values, MISSING) if is_numeric(values) else [visible(value_text(value)) for value in values]
    )
    is_loss = "loss" in label or "bits/byte" in label
    return {
        "label": label,
        "values": texts,
        "best": values.index(min(numbers)) if is_loss and len(set(numbers)) > 1 else None,
    }


def _newest_sample(run: Run) -> dict[str, Any] | None:
    samples = run.timeline.samples
    if not samples:
        return None
    event = samples[-1]
    prompt, text = (visible(event.get(part) or "")[:MOST_SAMPLE] for part in ("prompt", "text"))
    return {"step": event["step"], "prompt": prompt, "text": text}
