"""A preparation as Python: its steps with the settings that differ from the usual ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nbllm.data.pipeline.step import STEPS, Step


def code_of(steps: Sequence[Mapping[str, Any]], thresholds: Mapping[str, float]) -> str:
    """Return Python that prepares text by these steps.

    Args:
        steps: As a manifest describes them.
        thresholds: New ones by "step: rule". One that no setting of its step stands for becomes a comment.
    """
    calls = []
    for step in steps:
        moved = {
            rule["name"]: thresholds[f"{step['key']}: {rule['name']}"]
            for rule in step["rules"]
            if f"{step['key']}: {rule['name']}" in thresholds
        }
        calls.append(f"    {_call(step['settings'], moved)}\n")
    return f"import nbllm as nb\n\nsteps = [\n{''.join(calls)}]\nclean = nb.data.prepare(text, steps)"


def step_of(settings: Mapping[str, Any]) -> Step | None:
    """Return the step that its description makes; `None` where it needs what no record holds, such as a model."""
    name = str(settings["step"])
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in settings.items()
        if key != "step"
    }
    if name not in STEPS:
        return None
    try:
        return STEPS[name](**given)
    except (TypeError, ValueError):
        return None


def with_threshold(step: Step, rule: str, threshold: float) -> Step | None:
    """Return a step with another threshold for one of its rules; `None` where no setting of it is that threshold."""
    own = {each.name: each.threshold for each in step.rules}
    for change, whole in _changes(step):
        for other in (own[rule] + 1, own[rule] / 2):
            changed = _changed(step, change, int(other) if whole else other)
            limits = {} if changed is None else {each.name: each.threshold for each in changed.rules}
            if limits.get(rule, own[rule]) != own[rule]:
                exact = whole and float(threshold).is_integer()
                return _changed(step, change, int(threshold) if exact else threshold)
    return None


def _changes(step: Step) -> Iterator[tuple[tuple[str, int | None], bool]]:
    """Yield the numbers among the settings, each with its place in a tuple, and whether it is a whole number."""
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        for at, each in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            if isinstance(each, (int, float)) and not isinstance(each, bool) and math.isfinite(each):
                yield (field.name, at), isinstance(each, int)


def _changed(step: Step, change: tuple[str, int | None], value: float) -> Step | None:
    name, at = change
    new: Any = value
    if at is not None:
        old = getattr(step, name)
        new = (*old[:at], value, *old[at + 1 :])
    try:
        return dataclasses.replace(step, **{name: new})
    except (TypeError, ValueError):
        return None


def _call(settings: Mapping[str, Any], moved: Mapping[str, float]) -> str:
    step, left = step_of(settings), dict(moved)
    for rule, threshold in moved.items():
        changed = None if step is None else with_threshold(step, rule, threshold)
        if changed is not None:
            step = changed
            left.pop(rule)
    if step is None:
        given = {key: value for key, value in settings.items() if key != "step"}
    else:
        given = {
            field.name: getattr(step, field.name)
            for field in dataclasses.fields(step)
            if field.init and getattr(step, field.name) != field.default
        }
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    said = "".join(f"; {rule}: {threshold:.6g}" for rule, threshold in left.items())
    return f'nb.data.STEPS["{settings["step"]}"]({arguments}),{said.replace(";", "  #", 1)}'
