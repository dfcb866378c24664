"""An estimate of how long a step of a plan takes: computation, the bubble, and communication that is not hidden."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nbllm.core.config import PlainConfig, check_positive
from nbllm.distributed.communication import Traffic
from nbllm.distributed.memory import Workload
from nbllm.distributed.mesh import AXES, axis_sizes
from nbllm.distributed.pipeline_schedule import schedule_kind
from nbllm.distributed.placement import Unit
from nbllm.distributed.plan import Plan

_HIDDEN = 2 / 3  # of the time of computing, that of backward passes: what overlaps is hidden behind them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware(PlainConfig):
    """What is assumed of the machines; the default is a common one, not one that was measured.

    Args:
        teraflops: Floating-point operations a second that a device reaches in a model's matrix multiplications, 1e12.
        bandwidth: Bytes a second that a device sends to others of its machine, 1e9.
        network: Bytes a second that a device sends to other machines, 1e9.
        devices_per_machine: Devices in a machine.
    """

    teraflops: float = 150.0
    bandwidth: float = 200.0
    network: float = 25.0
    devices_per_machine: int = 8

    def __post_init__(self) -> None:
        check_positive(self, "teraflops", "bandwidth", "network", "devices_per_machine")

    def __str__(self) -> str:
        return (
            f"{self.teraflops:g} TFLOP/s a device, {self.bandwidth:g} GB/s between the {self.devices_per_machine} "
            f"devices of a machine, {self.network:g} GB/s between machines"
        )


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The parts of a step's time, in seconds.

    Attributes:
        computing: Forward and backward passes of the slowest stage, with what is computed a second time.
        waiting: The pipeline's bubble.
        sending: Communication that nothing hides.
    """

    computing: float
    waiting: float
    sending: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.computing + self.waiting + self.sending


def flops_of_rank(stage: Sequence[Unit], plan: Plan, work: Workload) -> float:
    """Return the operations of a step that a rank of a stage computes, with those that it computes a second time."""
    tokens = work.batch_size * work.sequence_length * work.accumulation / (plan.context * plan.tensor)
    blocks = [unit for unit in stage if unit.is_block]
    again = 0.0
    if plan.activation_checkpointing != "none":
        every = plan.activation_checkpointing if isinstance(plan.activation_checkpointing, int) else 1
        # Selective checkpointing keeps results of matrix multiplications; what it computes again takes no time here.
        chosen = [] if plan.activation_checkpointing == "selective" else blocks[::every]
        again = sum(unit.flops for unit in chosen)
    return (3 * sum(unit.flops for unit in stage) + again) * tokens


def step_time(
    stages: Sequence[Sequence[Unit]],
    sent: Sequence[Sequence[Traffic]],
    plan: Plan,
    work: Workload,
    hardware: Hardware,
) -> StepTime:
    """Estimate the time of a step.

    Args:
        stages: The units of each rank of the pipeline.
        sent: What a rank of each sends.
        plan: The plan, sized.
        work: What it trains.
        hardware: What is assumed of the machines.
    """
    computing = max(flops_of_rank(stage, plan, work) for stage in stages) / (hardware.teraflops * 1e12)
    bubble = bubble_of(plan, work)
    waiting = computing * bubble / (1 - bubble)
    times = []
    for of_stage in sent:
        seconds = {True: 0.0, False: 0.0}
        for each in of_stage:
            seconds[each.overlaps] += each.num_bytes / bandwidth(each.axis, plan, hardware)
        times.append(seconds[False] + max(0.0, seconds[True] - _HIDDEN * computing))
    return StepTime(computing, waiting, max(times, default=0.0))


def bubble_of(plan: Plan, work: Workload) -> float:
    """Return the share of a step in which a rank of the pipeline waits."""
    if plan.pipeline == 1:
        return 0.0
    return schedule_kind(plan.schedule).bubble(plan.pipeline, work.accumulation)


def bandwidth(axis: str, plan: Plan, hardware: Hardware) -> float:
    """Return the bytes a second that a rank sends along an axis: within a machine where all its ranks stand in one."""
    sizes = axis_sizes(plan)
    first = {"data": "replicate"}.get(axis, axis)
    spanned = 1
    for name in AXES[AXES.index(first) :]:
        spanned *= sizes[name]
    return (hardware.bandwidth if spanned <= hardware.devices_per_machine else hardware.network) * 1e9
