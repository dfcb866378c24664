"""When each rank of a pipeline computed what: measured, and drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.core.html import Raw, escape, fragment, table
from nbllm.core.text_table import text_table
from nbllm.distributed.pipeline_schedule import KINDS, orders, schedule_kind
from nbllm.distributed.plan import Plan
from nbllm.runs.run import Run

_ROUNDS = 8  # of messages by which clocks are compared


@dataclasses.dataclass(frozen=True)
class Interval:
    """A time in which a rank was computing.

    Attributes:
        rank: Of the pipeline.
        stage: Which it computed.
        kind: One of `pipeline_schedule.KINDS`.
        micro_batch: Which of the step.
        start: In seconds after the step began.
        end: Likewise.
    """

    rank: int
    stage: int
    kind: str
    micro_batch: int
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class PipelineTimings:
    """The step of a pipeline as it was measured; shown in a notebook as a picture.

    Attributes:
        schedule: The name of its schedule.
        ranks: Of the pipeline.
        micro_batches: Of the step.
        intervals: What each rank was computing; between them it waited, for another rank or for a message.
    """

    schedule: str
    ranks: int
    micro_batches: int
    intervals: Sequence[Interval]

    @property
    def seconds(self) -> float:
        """From the first beginning to the last end."""
        return max(each.end for each in self.intervals) - min(each.start for each in self.intervals)

    def busy(self, rank: int, kind: str | None = None) -> float:
        """Return for how many seconds a rank computed, or computed one kind."""
        return sum(
            each.end - each.start
            for each in self.intervals
            if each.rank == rank and kind in (None, each.kind)
        )

    @property
    def idle_share(self) -> float:
        """The share of all ranks' time in which nothing was computed: the bubble, as measured."""
        return 1 - sum(map(self.busy, range(self.ranks))) / (self.ranks * self.seconds)

    @property
    def expected_idle_share(self) -> float:
        """The bubble by the schedule's formula, where all stages cost the same and nothing else takes time."""
        return schedule_kind(self.schedule).bubble(self.ranks, self.micro_batches)

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON can hold."""
        return {**vars(self), "intervals": [dataclasses.astuple(each) for each in self.intervals]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PipelineTimings:
        """Return the timings that `to_dict` has made values of."""
        return cls(**{**values, "intervals": [Interval(*each) for each in values["intervals"]]})

    def _rows(self) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for rank in range(self.ranks):
            stages = sorted({each.stage for each in self.intervals if each.rank == rank})
            spent = [1000 * self.busy(rank, kind) for kind in self._kinds]
            idle = 100 * (1 - self.busy(rank) / self.seconds)
            rows.append((rank, ", ".join(map(str, stages)), *spent, idle))
        return rows

    @property
    def _kinds(self) -> list[str]:
        return [kind for kind in KINDS if any(each.kind == kind for each in self.intervals)]

    @property
    def _header(self) -> tuple[str, ...]:
        return ("rank", "stages", *(f"{kind} (ms)" for kind in self._kinds), "idle (%)")

    @property
    def _title(self) -> str:
        return (
            f"{schedule_kind(self.schedule).label}, {self.ranks} ranks, {self.micro_batches} micro-batches: "
            f"{1000 * self.seconds:.1f} ms, idle {100 * self.idle_share:.1f}% "
            f"(by the formula {100 * self.expected_idle_share:.1f}%)"
        )

    def __str__(self) -> str:
        rows = [
            self._header,
            *(tuple(f"{x:.1f}" if isinstance(x, float) else str(x) for x in row) for row in self._rows()),
        ]
        return f"{self._title}\n\n{text_table(rows)}"

    def _repr_html_(self) -> str:
        picture = f'<div class="nbllm-scroll">{self.svg()}</div>'
        return fragment(
            f"<p><strong>{escape(self._title)}</strong></p>{picture}{table(self._rows(), self._header)}"
        )

    def svg(self, *, width: int = 860) -> Raw:
        """Return the picture: a row for each rank, time from left to right.

        Args:
            width: In pixels; the drawing shrinks with its container.
        """
        return draw(self, width)


def pipeline_timeline(of: Run | Plan, *, micro_batches: int | None = None) -> PipelineTimings:
    """Return a step of a pipeline, to be looked at: as a run has last measured it, or as a plan would have it.

    Args:
        of: A run, which measures its second step and then one of every 100; or a plan.
        micro_batches: Of a step, which is `accumulation`, for a plan; None: two for each rank.

    Raises:
        UserError: The run has measured none, or the plan has no pipeline or cannot take so many micro-batches.
    """
    if isinstance(of, Plan):
        if of.pipeline == 1:
            raise UserError("The plan has no pipeline.", where="plan", hint="Give pipeline=2 or more.")
        return planned(of.schedule, of.pipeline, 2 * of.pipeline if micro_batches is None else micro_batches)
    measured = of.events("pipeline")
    if not measured:
        raise UserError(
            "This run has measured no step of a pipeline.",
            where=of.path,
            hint="Train with plan=nb.Plan(pipeline=2) and where=nb.Launch(processes=2), for two steps at least.",
        )
    known = {field.name for field in dataclasses.fields(PipelineTimings)}
    return PipelineTimings.from_dict({name: value for name, value in measured[-1].items() if name in known})


_UNITS = {"forward": 1.0, "backward": 2.0, "input gradient": 1.0, "weight gradient": 1.0}


def planned(
    schedule: str, ranks: int, micro_batches: int, *, costs: Sequence[float] | None = None
) -> PipelineTimings:
    """Return how a step would go if nothing but computing took time; nothing is computed.

    Args:
        schedule: The name of the schedule.
        ranks: Of the pipeline.
        micro_batches: Of the step.
        costs: Of each stage's forward pass, in seconds; a backward pass takes twice as long, and each of its parts as
            long. None: all stages of a rank take a second together.

    Raises:
        UserError: There is no such schedule, or it cannot take so many micro-batches.
    """
    chunks = schedule_kind(schedule).chunks
    each = [1 / chunks] * (ranks * chunks) if costs is None else costs
    waiting = [list(reversed(order)) for order in orders(schedule, ranks, micro_batches)]
    free, done, intervals = [0.0] * ranks, dict[tuple[int, str, int], float](), list[Interval]()
    while any(waiting):
        before = len(done)
        for rank, order in enumerate(waiting):
            while order and (ready := _ready(order[-1], done, len(each))) is not None:
                stage, kind, number = order.pop()
                start = max(free[rank], ready)
                free[rank] = done[stage, _direction(kind), number] = start + _UNITS[kind] * each[stage]
                intervals.append(Interval(rank, stage, kind, number, start, free[rank]))
        assert len(done) > before, "ranks wait for each other"
    return PipelineTimings(schedule, ranks, micro_batches, intervals)


def _direction(kind: str) -> str:
    return {"backward": "back", "input gradient": "back"}.get(kind, kind)


def _ready(
    action: tuple[int, str, int], done: Mapping[tuple[int, str, int], float], stages: int
) -> float | None:
    """Return when what an action reads is there; None: it is not known yet."""
    stage, kind, number = action
    if kind == "forward":
        return done.get((stage - 1, kind, number)) if stage else 0.0
    if kind == "weight gradient":
        return done.get((stage, "back", number))
    before = (stage, "forward", number) if stage == stages - 1 else (stage + 1, "back", number)
    return done.get(before)


# Okabe and Ito's colours, which colour-blind people can tell apart, as the theme has them.
_COLOURS = {
    "forward": "var(--nbllm-series-1, #0072b2)",
    "backward": "var(--nbllm-series-2, #d55e00)",
    "input gradient": "var(--nbllm-series-2, #d55e00)",
    "weight gradient": "var(--nbllm-series-3, #007f5f)",
}
_LEFT, _TOP, _ROW, _BAR = 52, 26, 30, 22  # pixels
_NARROWEST = 13  # pixels of a bar with its micro-batch's number


def draw(timings: PipelineTimings, width: int) -> Raw:
    """Return an inline SVG of the timings; see `PipelineTimings.svg`."""
    first = min(each.start for each in timings.intervals)
    scale = (width - _LEFT - 6) / timings.seconds
    height = _TOP + _ROW * timings.ranks + 22
    parts = []
    for rank in range(timings.ranks):
        y = _TOP + _ROW * rank
        parts.append(f'<text x="0" y="{y + 15}" fill="currentColor">rank {rank}</text>')
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="{timings.seconds * scale:.1f}" height="{_BAR}" '
            'fill="currentColor" opacity=".07"/>'
        )
    parts += [_bar(each, first, scale) for each in timings.intervals]
    end = _TOP + _ROW * timings.ranks + 12
    parts.append(f'<text x="{_LEFT}" y="{end}" fill="currentColor">0 ms</text>')
    parts.append(
        f'<text x="{width - 6}" y="{end}" text-anchor="end" fill="currentColor">{1000 * timings.seconds:.1f} ms</text>'
    )
    x = _LEFT
    for kind in sorted(
        {each.kind for each in timings.intervals}, key=lambda kind: [*KINDS, kind].index(kind)
    ):
        parts.append(f'<rect x="{x}" y="4" width="12" height="12" fill="{_colour(kind)}"/>')
        parts.append(f'<text x="{x + 17}" y="14" fill="currentColor">{escape(kind)}</text>')
        x += 40 + 7 * len(kind)
    parts.append(f'<rect x="{x}" y="4" width="12" height="12" fill="currentColor" opacity=".07"/>')
    parts.append(f'<text x="{x + 17}" y="14" fill="currentColor">idle</text>')
    label = escape(f"What each of {timings.ranks} ranks computed over {1000 * timings.seconds:.1f} ms")
    return Raw(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{label}" font-family="system-ui, sans-serif" font-size="11.5" '
        f'style="max-width:100%;height:auto">{"".join(parts)}</svg>'
    )


def _colour(kind: str) -> str:
    return _COLOURS.get(kind, "currentColor")


def _bar(each: Interval, first: float, scale: float) -> str:
    """Return the bar of an interval: forward passes have the whole height, so that kinds differ in more than colour."""
    x, y = _LEFT + (each.start - first) * scale, _TOP + _ROW * each.rank
    wide = max((each.end - each.start) * scale, 0.5)
    short = 0 if each.kind == "forward" else 3
    colour, ground = _colour(each.kind), "var(--nbllm-ground, #ffffff)"
    tip = (
        f"{each.kind}, micro-batch {each.micro_batch}, stage {each.stage}: "
        f"{1000 * (each.start - first):.2f} to {1000 * (each.end - first):.2f} ms"
    )
    bar = (
        f'<rect x="{x:.1f}" y="{y + short}" width="{wide:.1f}" height="{_BAR - 2 * short}" fill="{colour}" '
        f'stroke="{ground}" stroke-width=".6"><title>{escape(tip)}</title></rect>'
    )
    if wide < _NARROWEST:
        return bar
    number = (
        f'<text x="{x + wide / 2:.1f}" y="{y + 15}" text-anchor="middle" font-size="10" '
        f'fill="{ground}" pointer-events="none">{each.micro_batch}</text>'
    )
    return bar + number


class Recorder:
    """Keeps when this rank computes what, of the last step.

    On a GPU the times are those of events on the stream, which nothing waits for.

    Attributes:
        device: On which is computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._kept: list[tuple[int, str, int, Any, Any]] = []
        self._began: tuple[float, Any] = (0.0, None)
        self.device = device

    def begin(self) -> None:
        """Forget the last step."""
        self._kept.clear()
        if self._on_gpu:
            torch.cuda.synchronize(self.device)
        self._began = time.perf_counter(), self._now()

    @contextmanager
    def interval(self, stage: int, kind: str, micro_batch: int) -> Iterator[None]:
        """Keep when the block begins and ends."""
        start = self._now()
        yield
        self._kept.append((stage, kind, micro_batch, start, self._now()))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, moment: Any) -> float:
        """Return a moment on this process's clock."""
        if not self._on_gpu:
            return float(moment)
        return self._began[0] + float(self._began[1].elapsed_time(moment)) / 1000

    def gathered(self, group: dist.ProcessGroup, schedule: str) -> PipelineTimings:
        """Return the intervals of all ranks of a group, on the clock of its first; all of them must call this."""
        if self._on_gpu:
            torch.cuda.synchronize(self.device)
        offset = _clock_offset(group, self.device)
        rows = [
            [stage, KINDS.index(kind), number, self._seconds(start) + offset, self._seconds(end) + offset]
            for stage, kind, number, start, end in self._kept
        ]
        own = torch.tensor(rows, dtype=torch.float64, device=self.device)
        of_all = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(of_all, own, group=group)  # every rank has equally many stages, and so intervals
        first = min(float(each[:, 3].min()) for each in of_all)
        intervals = [
            Interval(rank, int(stage), KINDS[int(kind)], int(number), start - first, end - first)
            for rank, each in enumerate(of_all)
            for stage, kind, number, start, end in each.tolist()
        ]
        micro_batches = 1 + max(each.micro_batch for each in intervals)
        return PipelineTimings(schedule, len(of_all), micro_batches, intervals)


def _clock_offset(group: dist.ProcessGroup, device: torch.device) -> float:
    """Return what this rank's clock is to be added to show what that of the group's first rank shows.

    Processes of one machine have the same clock. Of the others each in turn asks the first what time it is; of several
    answers that which came back soonest is taken, and is taken to have been given half way.

    Source: Cristian 1989, "Probabilistic clock synchronization", Distributed Computing 3.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    own = torch.tensor([_machine()], device=device)
    machines = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(machines, own, group=group)
    message = torch.zeros(1, dtype=torch.float64, device=device)
    found = (float("inf"), 0.0)
    for other in range(1, size):
        if rank not in (0, other) or torch.equal(machines[other], machines[0]):
            continue
        peer = dist.get_global_rank(group, other if rank == 0 else 0)
        for _ in range(_ROUNDS):
            if rank == 0:
                dist.recv(message, peer, group=group)
                message.fill_(time.perf_counter())
                dist.send(message, peer, group=group)
                continue
            asked = time.perf_counter()
            dist.send(message, peer, group=group)
            dist.recv(message, peer, group=group)
            answered = time.perf_counter()
            found = min(found, (answered - asked, _value(message) - (asked + answered) / 2))
    return found[1]


def _machine() -> int:
    """Return a number that this machine has since it was started, and no other."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = boot.read_text() if boot.exists() else socket.gethostname()
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")


def _value(message: Tensor) -> float:
    return float(message[0])
