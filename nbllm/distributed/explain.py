"""What a plan means for a model before anything is started: memory, communication, the bubble, and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from nbllm.core.errors import UserError
from nbllm.core.html import Raw, escape, fragment, table
from nbllm.core.quantities import counted, number, size
from nbllm.core.text_table import text_table
from nbllm.distributed.communication import Traffic, traffic
from nbllm.distributed.memory import MOMENTS, Memory, Workload, rank_memory, textbook_activation_bytes
from nbllm.distributed.picture import picture
from nbllm.distributed.placement import Unit, stages_of
from nbllm.distributed.plan import Plan
from nbllm.distributed.step_time import Hardware, StepTime, bandwidth, bubble_of, flops_of_rank, step_time
from nbllm.models.config import ModelConfig
from nbllm.models.presets import make_config

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclasses.dataclass(frozen=True, repr=False)
class PlanReport:
    """What a plan means for a model.

    Attributes:
        plan: The plan, sized.
        config: The model's shape.
        work: What is trained at a time.
        hardware: What is assumed of the machines.
        stages: The units that each rank of the pipeline computes.
    """

    plan: Plan
    config: ModelConfig
    work: Workload
    hardware: Hardware
    stages: Sequence[Sequence[Unit]]

    @cached_property
    def memory(self) -> list[Memory]:
        """What a rank of each stage holds: of the ranks of a stage, the one with the largest parts."""
        return [
            rank_memory(stage, self.plan, self.work, stage=place, config=self.config)
            for place, stage in enumerate(self.stages)
        ]

    @property
    def largest(self) -> Memory:
        """What the rank holds that needs most."""
        return max(self.memory, key=lambda each: each.peak)

    @property
    def peak(self) -> float:
        """The memory of that rank, in bytes; what libraries and the allocator take is not included."""
        return self.largest.peak

    @cached_property
    def traffic(self) -> list[list[Traffic]]:
        """What a rank of each stage sends in a step."""
        return [traffic(stage, self.plan, self.work, self.config) for stage in self.stages]

    @property
    def bubble(self) -> float:
        """The share of a step in which a rank of the pipeline waits for others."""
        return bubble_of(self.plan, self.work)

    @property
    def flops(self) -> float:
        """Operations of a step that the rank computes which computes most."""
        return max(flops_of_rank(stage, self.plan, self.work) for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Of a step, on all ranks together."""
        assert self.plan.data is not None
        return self.work.batch_size * self.work.sequence_length * self.work.accumulation * self.plan.data

    @cached_property
    def time(self) -> StepTime:
        """An estimate of a step's time."""
        return step_time(self.stages, self.traffic, self.plan, self.work, self.hardware)

    def picture(self) -> Raw:
        """Return an SVG of what each rank holds of each block, between steps and while the block computes."""
        return picture(self.plan, self.stages, self.work)

    def __repr__(self) -> str:
        return f"PlanReport({self._title()})"

    def __str__(self) -> str:
        parts = [self._title(), self._batch()]
        for heading, header, rows in self._tables():
            parts.append(f"{heading}\n{text_table(_texts([header, *rows]))}")
        return "\n\n".join([*parts, *self._notes()])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the tables where IPython shows text."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return fragment(self.body())

    def body(self) -> str:
        """Return tables and picture as HTML, without the theme."""
        tables = "".join(
            table(rows, header, caption=heading, row_headers=True) for heading, header, rows in self._tables()
        )
        notes = "".join(f'<p class="muted">{escape(note)}</p>' for note in self._notes())
        title = f"<p><strong>{escape(self._title())}</strong></p><p>{escape(self._batch())}</p>"
        return f"{title}{tables}{self.picture()}{notes}"

    def _title(self) -> str:
        ranks = self.plan.ranks
        assert ranks is not None
        elements = sum(unit.elements() for unit in whole_units(self.stages))
        return (
            f"{short(self.plan)} on {counted(ranks, 'ranks')}: {self.config.family}, {elements:,} parameters, in "
            f"{self.work.precision}, {self.work.optimizer}"
        )

    def _batch(self) -> str:
        work, plan = self.work, self.plan
        return (
            f"A step takes {self.tokens:,} tokens: {counted(plan.data or 1, 'data ranks')} x "
            f"{_passes(work.accumulation)} x {counted(work.batch_size, 'sequences')} x {work.sequence_length:,} "
            f"tokens. The rank that needs most memory holds {size(self.peak)}."
        )

    def _tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[object, ...]]]]:
        found = [self._memory_table()]
        if len(self.stages) > 1:
            found.append(self._stage_table())
        if any(self.traffic):
            found.append(self._traffic_table())
        return [*found, self._time_table()]

    def _memory_table(self) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
        largest = self.largest
        unit, scale = _unit_for(largest.peak)
        rows: list[tuple[object, ...]] = [
            (name, *(_scaled(value, scale) for value in values)) for name, values in largest.parts.items()
        ]
        rows.append(("total", *(_scaled(largest.at(moment), scale) for moment in MOMENTS)))
        of_stage = f", stage {largest.stage} of the pipeline" if len(self.stages) > 1 else ""
        return f"Memory of a rank{of_stage}", ("part", *(f"{moment} ({unit})" for moment in MOMENTS)), rows

    def _stage_table(self) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
        unit, scale = _unit_for(self.peak)
        rows: list[tuple[object, ...]] = []
        for memory, stage in zip(self.memory, self.stages, strict=True):
            held = memory.parts.get("activations", (0.0, 0.0, 0.0))[1]
            computed = flops_of_rank(stage, self.plan, self.work) / 1e12
            blocks = sum(each.is_block for each in stage)
            rows.append(
                (memory.stage, blocks, _scaled(memory.peak, scale), _scaled(held, scale), _rounded(computed))
            )
        header = ("stage", "blocks", f"peak ({unit})", f"of these activations ({unit})", "TFLOPs a step")
        return "Stages of the pipeline", header, rows

    def _traffic_table(self) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
        most = max(self.traffic, key=lambda each: sum(kind.num_bytes for kind in each))
        unit, scale = _unit_for(max(each.num_bytes for each in most))
        rows: list[tuple[object, ...]] = [
            (
                each.axis,
                each.what,
                _scaled(each.num_bytes, scale),
                _rounded(1e3 * each.num_bytes / bandwidth(each.axis, self.plan, self.hardware)),
                "yes" if each.overlaps else "no",
            )
            for each in most
        ]
        header = ("axis", "what is sent", f"a rank and step ({unit})", "takes (ms)", "while computing")
        return "Communication", header, rows

    def _time_table(self) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
        time = self.time
        names = ("computing", "waiting in the pipeline", "sending that nothing hides")
        values = (time.computing, time.waiting, time.sending)
        rows: list[tuple[object, ...]] = [
            (name, _rounded(1e3 * value), _rounded(100 * value / time.total))
            for name, value in zip(names, values, strict=True)
            if value
        ]
        rows.append(("a step", _rounded(1e3 * time.total), 100.0))
        return f"Estimated time at {self.hardware}", ("part", "ms", "share (%)"), rows

    def _notes(self) -> list[str]:
        notes = [f"A rank computes {number(self.flops / 1e12, 3)} TFLOPs in a step."]
        if self.bubble:
            notes[0] += (
                f" The pipeline's bubble is {100 * self.bubble:.1f}% of the time: {self.plan.pipeline} stages, "
                f"{_passes(self.work.accumulation)} in a step; more of these make it smaller."
            )
        if self.largest.offloaded:
            where = "in the CPU's memory" if self.plan.offload == "cpu" else "on disk"
            notes.append(
                f"A rank keeps {size(self.largest.offloaded)} {where}: parameters, gradients and the optimizer's "
                "state. The time that this takes is not estimated."
            )
        if self.config.network == "decoder":
            layer = textbook_activation_bytes(self.config, self.work.batch_size, self.work.sequence_length)
            notes.append(
                f"For comparison: with dropout and all attention weights kept in 16 bits, a layer's activations take "
                f"{size(layer)}, {size(layer * self.config.num_layers)} in all layers, on one device (Korthikanti et "
                "al. 2022)."
            )
        notes.append(
            "Not counted: what libraries and the allocator hold. Memory: Rajbhandari et al. 2019; traffic: as rings "
            "send it; bubble: Narayanan et al. 2021."
        )
        return notes


def explain(
    plan: Plan,
    lm: Any,
    *,
    devices: int | None = None,
    hardware: Hardware | None = None,
    **work: Any,
) -> PlanReport:
    """Return what a plan means for a model; see `Plan.explain`."""
    config = config_of(lm)
    ranks = devices if devices is not None else plan.ranks if plan.ranks is not None else plan.model_ranks
    sized = plan.sized(ranks)
    device = work.get("device", "cuda")
    given = {
        "batch_size": 1,
        "sequence_length": min(1024, config.max_positions),
        "precision": plan.precision or ("float32" if device == "cpu" else "bfloat16"),
        **work,
    }
    known = {field.name for field in dataclasses.fields(Workload)}
    for name in given:
        if name not in known:
            raise UserError(f"explain has no argument {name!r}.", where="Plan.explain")
    facts = Workload(**given)
    if facts.sequence_length > config.max_positions:
        raise UserError(
            f"sequence_length is {facts.sequence_length}; the model has {config.max_positions} positions.",
            where="Plan.explain",
        )
    sized.check(config, facts)
    stages = stages_of(
        config, sized, facts.batch_size, facts.sequence_length, keeps_weights=facts.device == "cpu"
    )
    return PlanReport(sized, config, facts, hardware or Hardware(), stages)


def config_of(lm: Any) -> ModelConfig:
    """Return the shape of a model: of an `LM`, a network, a `ModelConfig`, or a preset's name.

    Raises:
        UserError: It is none of these.
    """
    if isinstance(lm, str):
        return make_config(lm)
    if isinstance(lm, ModelConfig):
        return lm
    found = getattr(getattr(lm, "model", lm), "config", None)
    if not isinstance(found, ModelConfig):
        raise UserError(
            f"A plan is explained for a model or its configuration, not for {type(lm).__name__}.",
            hint='Give an LM, a ModelConfig, or a preset\'s name, such as "gpt2".',
        )
    return found


def short(plan: Plan) -> str:
    """Return a plan with the settings that differ from the default alone: "Plan(data=2, zero=3)"."""
    default = Plan()
    changed = [
        f"{field.name}={getattr(plan, field.name)!r}"
        for field in dataclasses.fields(plan)
        if getattr(plan, field.name) != getattr(default, field.name)
    ]
    return f"Plan({', '.join(changed)})"


def whole_units(stages: Sequence[Sequence[Unit]]) -> list[Unit]:
    """Return the units of all stages, each parameter once."""
    seen: set[str] = set()
    found = []
    for unit in (unit for stage in stages for unit in stage):
        own = tuple(each for each in unit.parameters if each.name not in seen)
        seen.update(each.name for each in own)
        found.append(dataclasses.replace(unit, parameters=own))
    return found


def _passes(number: int) -> str:
    return f"{number:,} forward pass{'' if number == 1 else 'es'}"


def _unit_for(value: float) -> tuple[str, float]:
    """Return the largest unit of which `value` has one."""
    return next((pair for pair in _UNITS if value >= pair[1]), ("B", 1.0))


def _scaled(value: float, scale: float) -> float | None:
    return _rounded(value / scale) if value else None


def _rounded(value: float) -> float:
    """Return two decimals, or one significant digit of what has none there."""
    return round(value, 2) if abs(value) >= 0.005 else float(f"{value:.1g}")


def _texts(rows: Sequence[Sequence[object]]) -> list[tuple[str, ...]]:
    """Return cells as text, the numbers of a column aligned right."""
    shown = [[_text(cell) for cell in row] for row in rows]
    for place in range(1, len(shown[0])):
        if all(isinstance(row[place], (int, float)) or row[place] is None for row in rows[1:]):
            width = max(len(row[place]) for row in shown)
            for row in shown:
                row[place] = row[place].rjust(width)
    return [tuple(row) for row in shown]


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return number(cell) if isinstance(cell, (int, float)) else str(cell)
