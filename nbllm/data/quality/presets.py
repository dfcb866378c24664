"""The published sets of rules by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nbllm.core.errors import UserError, nearest
from nbllm.data.pipeline.step import Step
from nbllm.data.quality.c4 import C4
from nbllm.data.quality.fineweb import FineWeb
from nbllm.data.quality.gopher import Gopher, GopherRepetition
from nbllm.data.quality.refinedweb import RefinedWebLines

PRESETS: Mapping[str, tuple[Step, ...]] = {
    "gopher": (Gopher(), GopherRepetition()),
    "gopher-code": (Gopher(published="code"), GopherRepetition(published="code")),
    "c4": (C4(),),
    "c4-code": (C4(published="code"),),
    # What FineWeb was made with, not its own three rules alone.
    "fineweb": (GopherRepetition(), Gopher(), C4(end_punctuation=False), FineWeb()),
    "fineweb-code": (
        GopherRepetition(published="code"),
        Gopher(published="code"),
        C4(published="code", end_punctuation=False),
        FineWeb(published="code"),
    ),
    "refinedweb": (GopherRepetition(), Gopher(), RefinedWebLines()),
}


def quality(*presets: str, **settings: Any) -> list[Step]:
    """Return the steps of published rules for quality, for a `Pipeline`.

    Where a paper and its published code differ, the plain name is the paper's, and the name with `-code` the code's. A
    step that several presets share stands once.

    Args:
        presets: Names of `PRESETS`; Gopher's where none is given.
        settings: Fields of the steps, such as `min_words=20`; a field is set in every step that has it.

    Raises:
        UserError: a preset or a setting has no such name.
    """
    steps: list[Step] = []
    for preset in presets or ("gopher",):
        if preset not in PRESETS:
            raise UserError(f"There are no rules named {preset!r}.", hint=nearest(preset, PRESETS))
        steps += PRESETS[preset]
    fields = {field.name for step in steps for field in dataclasses.fields(step)}
    for name in settings:
        if name not in fields:
            raise UserError(
                f"No step of {', '.join(presets)} has a setting {name!r}.", hint=nearest(name, fields)
            )
    changed = [
        dataclasses.replace(step, **{name: settings[name] for name in settings if hasattr(step, name)})
        for step in steps
    ]
    return list(dict.fromkeys(changed))
