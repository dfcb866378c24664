"""Steps in their places in a pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nbllm.data.pipeline.step import Step


@dataclasses.dataclass(frozen=True)
class Placed:
    """A step and its place in a pipeline.

    Attributes:
        step: The step.
        key: What it is called in the ledger, the funnel and the manifest: its title, with "#2" for a second one.
    """

    step: Step
    key: str

    def column(self, signal: str) -> str:
        """Return the column that a signal of the step is stored in."""
        return signal + self.key[len(self.step.title) :]


def placed(steps: Sequence[Step]) -> list[Placed]:
    """Return the steps with keys that tell them apart."""
    seen: dict[str, int] = {}
    out = []
    for step in steps:
        seen[step.title] = count = seen.get(step.title, 0) + 1
        out.append(Placed(step, step.title if count == 1 else f"{step.title}#{count}"))
    return out
