"""Which plan trains a model fastest on devices of a given memory: all are tried on paper."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

from nbllm.core.errors import UserError
from nbllm.core.html import Raw, escape, fragment, table
from nbllm.core.quantities import duration, size
from nbllm.core.text_table import text_table
from nbllm.distributed.explain import PlanReport, config_of, explain, short
from nbllm.distributed.plan import Plan
from nbllm.distributed.step_time import Hardware
from nbllm.models.config import ModelConfig

_RESERVED = (
    0.1  # of a device's memory, for libraries, buffers of collectives, and what the allocator cannot use
)
_SHOWN = 8
_LONG = 8192  # tokens of a sequence from which on it is worth sharing it out
_MOST_GROWTH = 16  # times as many devices, that are tried where a model does not fit
_BYTES = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "GIB": 2.0**30, "MIB": 2.0**20}


@dataclasses.dataclass(frozen=True, repr=False)
class Suggestion:
    """The plan that is estimated to be fastest, and those behind it.

    Attributes:
        reports: Of the plans that fit, the fastest first.
        memory: Of a device, in bytes.
        tried: How many plans were looked at.
    """

    reports: list[PlanReport]
    memory: float
    tried: int

    @property
    def best(self) -> PlanReport:
        """What the chosen plan means."""
        return self.reports[0]

    @property
    def plan(self) -> Plan:
        """The chosen plan."""
        return self.best.plan

    @property
    def settings(self) -> dict[str, int]:
        """What to train with: `nb.train(lm, text, plan=suggestion.plan, **suggestion.settings)`."""
        work = self.best.work
        names = ("batch_size", "sequence_length", "accumulation")
        return {name: getattr(work, name) for name in names}

    def __repr__(self) -> str:
        return f"Suggestion({short(self.plan)}, {self.settings})"

    def __str__(self) -> str:
        rows = [tuple(map(str, row)) for row in (_HEADER, *self._rows())]
        return f"{self._said()}\n\n{text_table(rows)}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the table where IPython shows text."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        details = Raw(f"<details><summary>What the first one means</summary>{self.best.body()}</details>")
        return fragment(
            f"<p>{escape(self._said())}</p>{table(self._rows(), _HEADER, row_headers=True)}{details}"
        )

    def _said(self) -> str:
        best, left = self.best, self.memory - self.best.peak
        return (
            f"{short(best.plan)} is estimated to be the fastest of {self.tried:,} plans that were tried: "
            f"{duration(best.time.total)} for a step of {best.tokens:,} tokens. It leaves {size(left)} of each "
            f"device's {size(self.memory)}. Assumed: {best.hardware}."
        )

    def _rows(self) -> list[tuple[object, ...]]:
        return [
            (
                short(report.plan), report.work.batch_size, report.work.accumulation, size(report.peak),
                duration(report.time.total), f"{report.time.total / self.best.time.total:.2f}",
                _reason(report, self.best),
            )
            for report in self.reports
        ]  # fmt: skip


_HEADER = ("plan", "batch_size", "accumulation", "memory a rank", "a step", "times the best", "because")


def suggest_plan(
    lm: Any,
    *,
    devices: int,
    memory: str | float,
    sequences: int | None = None,
    sequence_length: int | None = None,
    optimizer: str = "adamw",
    precision: str = "bfloat16",
    hardware: Hardware | None = None,
) -> Suggestion:
    """Return the plan that trains a model fastest on some devices, by an estimate, with the runners-up.

    Args:
        lm: An `LM`, a `ModelConfig`, or a preset's name.
        devices: How many there are.
        memory: Of each, such as "24GB", or bytes. A tenth of it is left for libraries.
        sequences: In a step, on all devices together; None: 8 for each device.
        sequence_length: Tokens of each; None: as many as `Plan.explain` takes.
        optimizer: Its name.
        precision: What the model computes in.
        hardware: What is assumed of the machines.

    Raises:
        UserError: No plan fits; it is said which needs least, and what would fit.
    """
    config, limit = config_of(lm), memory_bytes(memory)
    if devices < 1:
        raise UserError("devices must be at least 1.", where="suggest_plan")
    work: dict[str, Any] = {"optimizer": optimizer, "precision": precision}
    if sequence_length is not None:
        work["sequence_length"] = sequence_length
    in_a_step = 8 * devices if sequences is None else sequences
    reports = list(_reports(config, devices, in_a_step, work, hardware or Hardware()))
    fitting = [report for report in reports if report.peak <= (1 - _RESERVED) * limit]
    if not fitting:
        raise _none_fits(config, reports, devices, limit, in_a_step, work)
    fitting.sort(key=lambda report: (report.time.total, _axes(report.plan)))
    best_of_plan: dict[Plan, PlanReport] = {}
    for report in fitting:
        best_of_plan.setdefault(report.plan, report)
    return Suggestion(list(best_of_plan.values())[:_SHOWN], limit, len({report.plan for report in reports}))


def memory_bytes(memory: str | float) -> float:
    """Return "24GB", "80 GiB" or a number of bytes as bytes.

    >>> memory_bytes("24GB"), memory_bytes("1.5 GiB")
    (24000000000.0, 1610612736.0)

    Raises:
        UserError: It is neither.
    """
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([TGM]i?B)\s*", memory, flags=re.IGNORECASE)
        if found and found[2].upper() in _BYTES:
            return float(found[1]) * _BYTES[found[2].upper()]
    elif not isinstance(memory, bool) and memory > 0:
        return float(memory)
    raise UserError(
        f"memory is {memory!r}.", where="suggest_plan", hint='Give "24GB", "80GiB" or a number of bytes.'
    )


def _reports(
    config: ModelConfig, devices: int, sequences: int, work: dict[str, Any], hardware: Hardware
) -> Iterator[PlanReport]:
    """Yield what every plan means that can work, with each size of batch that makes the step."""
    length = work.get("sequence_length", 0)
    for plan in _plans(devices, long=length >= _LONG):
        assert plan.data is not None
        for batch_size in (1, 2, 4, 8):
            accumulation, left = divmod(sequences, plan.data * batch_size)
            if left or not accumulation:
                continue
            batches = {"batch_size": batch_size, "accumulation": accumulation}
            try:
                yield explain(plan, config, devices=devices, hardware=hardware, **work, **batches)
            except UserError:  # this model, or this many micro-batches, cannot be divided so
                continue


def _plans(devices: int, *, long: bool) -> Iterator[Plan]:
    """Yield the plans to look at."""
    divisors = [number for number in range(1, devices + 1) if devices % number == 0]
    few = [number for number in divisors if number <= 8]
    for tensor, pipeline, context in itertools.product(few, divisors, few if long else [1]):
        data, left = divmod(devices, tensor * pipeline * context)
        if left or not data:
            continue
        for zero, checkpointing in itertools.product(
            range(4) if data > 1 and pipeline == 1 else (0, 1) if data > 1 else (0,),
            ("none", "selective", "full"),
        ):
            schedules = ("1f1b", "interleaved") if pipeline > 1 else ("1f1b",)
            for schedule in schedules:
                yield Plan(
                    data=data, zero=zero, tensor=tensor, sequence=tensor > 1, pipeline=pipeline, schedule=schedule,
                    context=context, activation_checkpointing=checkpointing,
                )  # fmt: skip


def _axes(plan: Plan) -> int:
    """Return how much a plan does beside data parallelism: of equally fast ones the simplest is taken."""
    return sum(each > 1 for each in (plan.tensor, plan.pipeline, plan.context)) + plan.zero


def _reason(report: PlanReport, best: PlanReport) -> str:
    """Return in words where a plan's time goes, in comparison to the best."""
    mine, others = report.time, best.time
    if report is best:
        parts = {
            "computing": mine.computing,
            "waiting in the pipeline": mine.waiting,
            "sending": mine.sending,
        }
        return ", ".join(f"{100 * part / mine.total:.0f}% {name}" for name, part in parts.items() if part)
    computes = "computes longer" if _again(report) <= _again(best) else "computes more a second time"
    more = {
        computes: mine.computing - others.computing,
        "waits longer in the pipeline": mine.waiting - others.waiting,
        "sends more": mine.sending - others.sending,
    }
    name, seconds = max(more.items(), key=lambda item: item[1])
    return f"{name} (+{duration(seconds)})" if seconds > 0 else "as fast, and less simple"


def _again(report: PlanReport) -> int:
    """Return how much a plan computes a second time: nothing, what is cheap, or all."""
    choice = report.plan.activation_checkpointing
    return {"none": 0, "selective": 1}.get(str(choice), 2)


def _none_fits(
    config: ModelConfig,
    reports: list[PlanReport],
    devices: int,
    limit: float,
    sequences: int,
    work: dict[str, Any],
) -> UserError:
    if not reports:
        return UserError(
            f"No plan divides this model, or a step of {sequences:,} sequences, over {devices} devices.",
            where="suggest_plan",
            hint="Give sequences= a multiple of the number of devices.",
        )
    least = min(reports, key=lambda report: report.peak)
    hint = "Shorter sequences, a smaller model or an optimizer with less state need less."
    for times in (2, 4, 8, _MOST_GROWTH):
        more = _reports(config, devices * times, sequences * times, work, Hardware())
        if any(report.peak <= (1 - _RESERVED) * limit for report in more):
            hint = f"It fits on {devices * times} such devices. {hint}"
            break
    return UserError(
        f"No plan for {devices} devices fits in {size(limit)} each, of which a tenth is left for libraries: what needs "
        f"least, {short(least.plan)} with {least.work.batch_size} x {least.work.sequence_length:,} tokens, needs "
        f"{size(least.peak)}.",
        where="suggest_plan",
        hint=hint,
    )
