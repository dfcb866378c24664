"""The schedules of a pipeline: in which order each rank computes the micro-batches of its stages."""

from __future__ import annotations

import dataclasses
import types
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    ScheduleInterleavedZeroBubble,
)

from nbllm.core.errors import UserError, nearest
from nbllm.distributed.bubble import bubble_share, zero_bubble_share

# A backward pass is whole, or in two parts, of which the gradients of the weights can wait.
KINDS = ("forward", "backward", "input gradient", "weight gradient")


@dataclasses.dataclass(frozen=True)
class ScheduleKind:
    """A schedule.

    Attributes:
        label: What it is called, for people.
        schedule: torch's class of it.
        chunks: Stages on each rank.
        in_rounds: Whether the micro-batches go in equal rounds of at least as many as there are ranks.
        splits_backward: Whether the gradients of weights are computed later than those of inputs.
        fewest: Whether there must be as many micro-batches as ranks.
    """

    label: str
    schedule: type[PipelineScheduleSingle] | type[PipelineScheduleMulti]
    chunks: int = 1
    in_rounds: bool = False
    splits_backward: bool = False
    fewest: bool = False

    def bubble(self, ranks: int, micro_batches: int) -> float:
        """Return the share of time that a rank is idle where all stages cost the same; see `bubble`."""
        if self.splits_backward:
            return zero_bubble_share(ranks, micro_batches)
        return bubble_share(ranks, micro_batches, chunks=self.chunks)


SCHEDULES = {
    "gpipe": ScheduleKind("GPipe", ScheduleGPipe),
    "1f1b": ScheduleKind("1F1B", Schedule1F1B, fewest=True),
    "interleaved": ScheduleKind("interleaved 1F1B", ScheduleInterleaved1F1B, chunks=2, in_rounds=True),
    "zero_bubble": ScheduleKind(
        "zero bubble (ZB-H1)", ScheduleInterleavedZeroBubble, in_rounds=True, splits_backward=True
    ),
}


def schedule_kind(name: str) -> ScheduleKind:
    """Return the schedule of a name.

    Raises:
        UserError: There is none.
    """
    if name not in SCHEDULES:
        raise UserError(
            f"There is no pipeline schedule {name!r}.", where="Plan", hint=nearest(name, SCHEDULES)
        )
    return SCHEDULES[name]


def check_micro_batches(name: str, ranks: int, micro_batches: int) -> None:
    """Raise `UserError` where a schedule cannot take so many micro-batches in a step.

    Args:
        name: Of the schedule.
        ranks: Of the pipeline.
        micro_batches: Of a step, which is `accumulation`.
    """
    kind = schedule_kind(name)
    if kind.fewest and micro_batches < ranks:
        raise UserError(
            f"{kind.label} over {ranks} ranks needs at least {ranks} micro-batches in a step; accumulation is "
            f"{micro_batches}.",
            where="Plan",
            hint=f'Use accumulation={ranks} or more, or schedule="gpipe".',
        )
    rounds = max(1, micro_batches // ranks)
    if kind.in_rounds and micro_batches % rounds:
        raise UserError(
            f"{kind.label} over {ranks} ranks takes micro-batches in equal rounds of at least {ranks}; accumulation "
            f"is {micro_batches}.",
            where="Plan",
            hint=f"Use accumulation={ranks * rounds} or {ranks * (rounds + 1)}.",
        )


def make_schedule(
    name: str, stages: Sequence[PipelineStage], micro_batches: int
) -> PipelineScheduleSingle | PipelineScheduleMulti:
    """Return torch's schedule of a name for the stages of this rank, whose last one returns its part of the loss.

    Gradients are not scaled: what the last stage returns is divided already by all that counts in the step.
    """
    kind = schedule_kind(name)
    if issubclass(kind.schedule, PipelineScheduleSingle):
        (stage,) = stages
        return kind.schedule(stage, micro_batches, loss_fn=_returned, scale_grads=False)
    return kind.schedule(list(stages), micro_batches, loss_fn=_returned, scale_grads=False)


def orders(name: str, ranks: int, micro_batches: int) -> list[list[tuple[int, str, int]]]:
    """Return in which order each rank computes: stage, kind (see `KINDS`) and micro-batch.

    Args:
        name: Of the schedule.
        ranks: Of the pipeline.
        micro_batches: Of a step.

    Raises:
        UserError: There is no such schedule, or it cannot take so many micro-batches.
    """
    check_micro_batches(name, ranks, micro_batches)
    count = ranks * schedule_kind(name).chunks
    # Of a stage torch reads no more than this to find the order of all ranks.
    sketches: Any = [
        types.SimpleNamespace(num_stages=count, group_size=ranks, group_rank=0, submod=nn.Module())
        for _ in range(count // ranks)
    ]
    order = make_schedule(name, sketches, micro_batches).pipeline_order
    assert order is not None
    kinds = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
    found: list[list[tuple[int, str, int]]] = []
    for rank in range(ranks):
        # A stage takes micro-batches in their order; torch (2.13) numbers those of 1F1B's forward passes from 1.
        taken = Counter[tuple[int, str]]()
        found.append([])
        for action in order[rank]:
            if action is not None and action.computation_type.value in kinds:
                what = action.stage_index, kinds[action.computation_type.value]
                found[-1].append((*what, taken[what]))
                taken[what] += 1
    return found


def _returned(loss: Tensor, number: Tensor) -> Tensor:
    """Return the loss as the last stage has computed it."""
    return loss
