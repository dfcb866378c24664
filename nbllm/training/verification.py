"""`nb.verify`: a few steps under a plan beside the same steps in one process, before a long run is paid for."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.core.html import Raw, escape, fragment, table
from nbllm.core.machine import memory_limit
from nbllm.core.quantities import counted, number, size
from nbllm.core.text_table import text_table
from nbllm.distributed.explain import short
from nbllm.distributed.launch import Launch
from nbllm.distributed.plan import Plan
from nbllm.lm import LM
from nbllm.models.config import ModelConfig
from nbllm.models.network import build
from nbllm.opening import load
from nbllm.runs.run import Run
from nbllm.training.start import train

DOCUMENTS = 200  # of a data set, which are enough for a few steps
LENGTH, BATCH = 128, 2
PROCESS_BYTES = 0.4e9  # of an interpreter with torch, before there is a model
TOLERANCE = 1e-4
_QUIET = {"checkpoint_interval": 0, "sample_interval": 0, "validation_interval": 0}


@dataclasses.dataclass(frozen=True)
class Compared:
    """One quantity, in one process and under the plan.

    Attributes:
        what: Which: "loss", "gradient norm" or "weights".
        step: After how many steps.
        one_process: Its value in one process; of weights, how far they have moved.
        planned: Under the plan; of weights None.
        difference: Relative to one process; of weights, their distance in parts of how far they have moved.
    """

    what: str
    step: int
    one_process: float
    planned: float | None
    difference: float


@dataclasses.dataclass(frozen=True, repr=False)
class Verification:
    """Whether a plan computes what one process does.

    Attributes:
        plan: The plan, sized.
        rows: What was compared.
        tolerance: The largest difference that passes.
        scaled: What was made smaller than asked for; "": nothing.
    """

    plan: Plan
    rows: list[Compared]
    tolerance: float
    scaled: str = ""

    @property
    def passed(self) -> bool:
        """Whether every difference is within the tolerance."""
        return all(row.difference <= self.tolerance for row in self.rows)

    @property
    def largest(self) -> float:
        """The largest difference."""
        return max(row.difference for row in self.rows)

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"Verification({short(self.plan)}, passed={self.passed})"

    def __str__(self) -> str:
        rows = [tuple(map(str, self._cells(row))) for row in self.rows]
        return f"{self._said()}\n\n{text_table([_HEADER, *rows])}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the table where IPython shows text."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        kind = "good" if self.passed else "bad"
        rows = [
            (*self._cells(row)[:-1], Raw(f'<span class="{"good" if ok else "bad"}">{escape(mark)}</span>'))
            for row in self.rows
            for ok, mark in ((row.difference <= self.tolerance, self._cells(row)[-1]),)
        ]
        return fragment(
            f'<p class="{kind}">{escape(self._said())}</p>{table(rows, _HEADER, row_headers=True)}'
        )

    def _said(self) -> str:
        verdict = (
            "computes what one process does" if self.passed else "does NOT compute what one process does"
        )
        said = (
            f"{short(self.plan)} {verdict}: the largest relative difference is {number(self.largest, 2)}, and "
            f"{self.tolerance:g} passes."
        )
        return f"{said} {self.scaled}".strip()

    def _cells(self, row: Compared) -> tuple[str, str, str, str, str, str]:
        planned = "-" if row.planned is None else f"{row.planned:.7g}"
        mark = "ok" if row.difference <= self.tolerance else "differs"
        return row.what, str(row.step), f"{row.one_process:.7g}", planned, number(row.difference, 2), mark


_HEADER = ("quantity", "step", "one process", "under the plan", "difference", "")


def verify(
    plan: Plan,
    lm: LM,
    text: Any,
    *,
    steps: int = 3,
    processes: int | None = None,
    scale: float | None = None,
    tolerance: float = TOLERANCE,
    **config: Any,
) -> Verification:
    """Take a few steps under a plan, on processes of this machine, and the same ones in one; compare them.

    Both read the same sequences, in temporary folders; the model itself stays as it is. Compared are the loss and the
    norm of the gradient of every step, and the weights at the end: their distance relative to how far they have moved.

    Args:
        plan: The plan.
        lm: The model.
        text: As `nb.train` takes it; of a data set the first documents are read.
        steps: How many steps.
        processes: How many; None: as many as the plan needs at least, and two data ranks where it has no other axis.
        scale: Which share of the layers is computed with, such as 0.25, with new weights; None: all of them, or as many
            as fit in the memory that is free, which is said then.
        tolerance: The largest relative difference that passes.
        config: As `nb.train` takes it: batch_size (2), sequence_length (128), accumulation, precision ("float32"), ...
            All are those of one data rank.

    Raises:
        UserError: The plan cannot work, or not even a single layer fits in the memory.
        RunError: One of the two runs has failed; the reason is that of the rank which failed first.

    Example:
        >>> nb.verify(nb.Plan(tensor=2), lm, text)  # doctest: +SKIP
    """
    ranks = processes or plan.ranks or max(2, plan.model_ranks)
    sized = plan.sized(ranks)
    assert sized.data is not None
    settings = {
        "batch_size": BATCH, "sequence_length": min(LENGTH, lm.model.context_length), "accumulation": sized.pipeline,
        "precision": plan.precision or "float32", "steps": steps, **_QUIET, **config,
    }  # fmt: skip
    small, scaled = _small_enough(sized, lm, settings, scale)
    documents = text.select(range(min(len(text), DOCUMENTS))) if isinstance(text, Dataset) else text
    alone = {**settings, "accumulation": settings["accumulation"] * sized.data}
    began = {name: each.detach().float().clone() for name, each in small.model.named_parameters()}
    with tempfile.TemporaryDirectory(prefix="nbllm-verify-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        with _finished(
            train(small.copy(), documents, folder=folder, name="one-process", where="thread", **alone)
        ) as one:
            expected, weights = _histories(one), _weights(one)
        launch = Launch(processes=ranks, restarts=0)
        with _finished(
            train(small.copy(), documents, folder=folder, name="planned", where=launch, plan=plan, **settings)
        ) as run:
            found, planned = _histories(run), _weights(run)
    rows = [
        Compared(what, step, one_value, value, _relative(value, one_value))
        for what in expected
        for step, (one_value, value) in enumerate(zip(expected[what], found[what], strict=True), 1)
    ]
    moved = _distance(weights, began)
    apart = _distance(planned, weights)
    rows.append(
        Compared("weights", steps, moved, None, apart / moved if moved else math.inf if apart else 0.0)
    )
    return Verification(sized, rows, tolerance, scaled)


@contextlib.contextmanager
def _finished(run: Run) -> Iterator[Run]:
    """Wait for a run; whatever happens, it does not go on afterwards."""
    try:
        yield run.wait()
    finally:
        if run.is_live:
            run.stop()


def _histories(run: Run) -> dict[str, list[float]]:
    return {
        words: [float(value) for value in run.history(metric)[1]]
        for metric, words in (("loss", "loss"), ("grad_norm", "gradient norm"))
    }


def _weights(run: Run) -> dict[str, Tensor]:
    """Return the weights that a run ended with, in float32."""
    return {name: each.detach().float() for name, each in load(run).model.named_parameters()}


def _relative(value: float, expected: float) -> float:
    difference = abs(value - expected)
    return difference / abs(expected) if expected else difference


def _distance(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Return the Euclidean distance of two sets of weights."""
    squares = [(weights[name] - others[name]).double().square().sum() for name in weights]
    return float(torch.stack(squares).sum().sqrt())


def _small_enough(plan: Plan, lm: LM, settings: Mapping[str, Any], scale: float | None) -> tuple[LM, str]:
    """Return the model, or one like it with fewer layers, and what was done in words."""
    if scale is not None and not 0 < scale <= 1:
        raise UserError(f"scale is {scale!r}; it must be above 0 and at most 1.", where="nb.verify")
    config = lm.config
    layers = config.num_layers if scale is None else max(plan.pipeline, round(scale * config.num_layers))
    free = min(psutil.virtual_memory().available, memory_limit())
    while (needed := _needed(plan, _with_layers(config, layers), settings)) > free and scale is None:
        if layers <= plan.pipeline:
            raise UserError(
                f"Even with {counted(layers, 'layers')} this takes {size(needed)} here, and {size(free)} are free.",
                where="nb.verify",
                hint="Verify the plan with a narrower model of the same kind.",
            )
        layers = max(plan.pipeline, layers // 2)
    if layers == config.num_layers:
        return lm, ""
    said = (
        f"Verified with {layers} of {counted(config.num_layers, 'layers')} and new weights"
        f"{'' if scale is not None else ': the whole model does not fit in the memory that is free here'}."
    )
    return LM(build(_with_layers(config, layers)), lm.tokenizer), said


def _needed(plan: Plan, config: ModelConfig, settings: Mapping[str, Any]) -> float:
    """Return about how much memory the comparison takes at most: all ranks, and what was computed before."""
    assert plan.ranks is not None
    names = ("batch_size", "sequence_length", "accumulation", "precision", "optimizer")
    work = {name: settings[name] for name in names if name in settings}
    rank = plan.explain(config, plan.ranks, device="cpu", **work).peak
    model = 4.0 * config.costs().parameters
    return plan.ranks * (max(rank, 2 * model) + PROCESS_BYTES) + 3 * model


def _with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    changes = {"num_layers": layers}
    if config.num_decoder_layers:
        changes["num_decoder_layers"] = max(1, round(config.num_decoder_layers * layers / config.num_layers))
    if config.num_layer_groups:
        changes["num_layer_groups"] = min(config.num_layer_groups, layers)
    return config.replace(**changes)
