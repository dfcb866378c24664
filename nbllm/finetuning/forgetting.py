"""What a run has forgotten: the loss on each held-out data set before and after."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import RunError
from nbllm.distributed.layout import OneProcess
from nbllm.runs.locating import locate
from nbllm.runs.run import Run
from nbllm.runs.store import read_record
from nbllm.training.config import TrainConfig
from nbllm.training.metrics import sources_of
from nbllm.training.objective import make_objective
from nbllm.training.validation import Validation

if TYPE_CHECKING:
    from nbllm.lm import LM


@dataclasses.dataclass(frozen=True)
class Forgetting:
    """Losses before and after a run.

    Attributes:
        run: The run's name.
        before: Mean loss by the name of the held-out data set, in nats a token; "" of all together.
        after: The same for the run's newest weights.
    """

    run: str
    before: dict[str, float]
    after: dict[str, float]

    def change(self, name: str = "") -> float:
        """Return by how much the loss on a data set rose, in nats a token; below 0 it fell."""
        return self.after[name] - self.before[name]

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (
                name or "all held-out text",
                f"{self.before[name]:.3f}",
                f"{self.after[name]:.3f}",
                f"{self.change(name):+.3f} ({math.expm1(self.change(name)):+.1%} perplexity)",
            )
            for name in self.before
        ]

    def __repr__(self) -> str:
        table = [("held-out", "before", "after", "change"), *self._rows()]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        )

    def _repr_html_(self) -> str:
        from nbllm.core.html import escape, fragment

        cells = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows()
        )
        head = "<tr><th>held-out</th><th>loss before</th><th>loss after</th><th>change</th></tr>"
        return fragment(f"<table><thead>{head}</thead><tbody>{cells}</tbody></table>")


def forgetting(run: Run | str | Path) -> Forgetting:
    """Measure a run's first and newest weights on its held-out data, and compare them by data set.

    Args:
        run: A run that was given `validation`, best a mapping of names to data sets: its name, folder or handle.

    Raises:
        RunError: It has no held-out data, or no checkpoint after the first one.
    """
    from nbllm.opening import load

    path = run.path if isinstance(run, Run) else locate(run)
    record = read_record(path)
    if record["data"]["validation"] is None:
        raise RunError(
            "The run has no held-out data to measure on.",
            where=path,
            hint="nb.finetune(..., validation={...})",
        )
    losses = [_losses(load(Run(path), at_step=step), record) for step in (0, None)]
    return Forgetting(path.name, *losses)


def _losses(lm: LM, record: dict[str, Any]) -> dict[str, float]:
    config = TrainConfig.from_dict(record["config"])
    begins = lm.decoder_tokens
    objective = make_objective(
        config, lm.tokenizer, start=None if begins is None else begins.decoder_start_token_id
    )
    objective.sources = sources_of(record["data"])
    validation = Validation.of(record["data"]["validation"], objective, config)
    assert validation is not None
    measured = validation.measure(OneProcess(lm.model), str(lm.model.device))
    by_source = {name: measured[f"loss/{name}"] for name in objective.sources if f"loss/{name}" in measured}
    return {**by_source, "": measured["loss"]} if len(by_source) != 1 else by_source
