"""Pipeline parallelism: the blocks of a network are divided over ranks, and micro-batches pass through them in turn.

torch's schedules decide the order (`pipeline_schedule`); a stage is cut out of the single-process network
(`pipeline_stages`). Every stage computes the loss of the same batch with its part of the network: the first stages
leave it where their blocks end, and the last one, which goes on from what it has received, comes to the end of it. So
an objective needs to know nothing of pipelines.

What travels is packed into one flat tensor with as many elements as the largest micro-batch of the step needs, so that
micro-batches may differ in shape.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage

from nbllm.core.errors import UserError
from nbllm.distributed.layout import Layout, OneProcess
from nbllm.distributed.loss_module import Batch, Loss, LossModule, LossOutput
from nbllm.distributed.mesh import Mesh
from nbllm.distributed.pipeline_schedule import check_micro_batches, make_schedule, schedule_kind
from nbllm.distributed.pipeline_stages import keep_stages, make_stages, names_of
from nbllm.distributed.pipeline_timings import PipelineTimings, Recorder
from nbllm.distributed.plan import Plan, RunFacts
from nbllm.distributed.sharded_tensors import local_part, sum_of_squares, whole_tensor
from nbllm.distributed.staged_network import (
    Stage,
    StageEnd,
    begin_stage,
    second_reading,
    shapes_read,
    shapes_sent,
)
from nbllm.distributed.weight_gradients import WeightGradients
from nbllm.models.network import Network, build_without_weights
from nbllm.objectives import OBJECTIVES
from nbllm.objectives.measures import current_measures

if TYPE_CHECKING:
    from nbllm.models.config import ModelConfig


def check(plan: Plan, model: ModelConfig, run: RunFacts) -> None:
    """Check that the network can be divided, and that the schedule can take the micro-batches of a step."""
    if plan.pipeline == 1:
        return
    _check_stages(model, plan.pipeline * schedule_kind(plan.schedule).chunks)
    check_micro_batches(plan.schedule, plan.pipeline, run.accumulation)
    if plan.zero >= 2 and plan.schedule in ("interleaved", "zero_bubble"):
        raise UserError(
            f"With zero={plan.zero} parameters are given away before the schedule {plan.schedule!r} is done with them.",
            where="plan",
            hint='Use schedule="1f1b", or zero=1.',
        )
    if not OBJECTIVES[run.objective].one_pass:
        raise second_reading(run.objective)


@lru_cache(maxsize=64)  # a search for plans asks again and again
def _check_stages(model: ModelConfig, count: int) -> None:
    make_stages(build_without_weights(model), count)


@dataclasses.dataclass
class _Step:
    """The micro-batches that a pipeline is computing.

    Attributes:
        batches: The micro-batches.
        loss: Computes the loss of one, its count, and what is added to the mean of it.
        divisor: What the sum of all losses is divided by.
        read: Of each micro-batch, the shapes that the stacks of the network read.
        total: Sum of the losses that this rank has computed.
        count: How much counts in them.
    """

    batches: Sequence[Batch]
    loss: Loss
    divisor: float
    read: list[list[tuple[int, int]]]
    total: float = 0.0
    count: float = 0.0


class StageModule(nn.Module):
    """One stage as a module: from what it receives of a micro-batch to what it sends, or to the loss.

    Args:
        loss_module: The divided network with its loss.
        stages: All stages of the pipeline.
        index: Which of them this is.
    """

    def __init__(self, loss_module: LossModule, stages: Sequence[Stage], index: int) -> None:
        super().__init__()
        self.loss_module = loss_module
        self.stage = stages[index]
        self.previous = stages[index - 1] if index else None
        self.step: _Step | None = None
        self.width = 0  # elements of what it sends, padded

    def forward(self, *received: Tensor, number: Tensor) -> Tensor:
        """Return what the next stage is sent, flat, or the stage's part of the step's mean loss.

        Args:
            received: What the stage before has sent; nothing for the first.
            number: (1,), which micro-batch it is.
        """
        assert self.step is not None
        step, index = self.step, int(number)
        network: Any = self.loss_module.network
        states: list[Tensor] = []
        if self.previous is not None:
            shapes = shapes_sent(self.previous, network, step.read[index])
            states = _unpacked(received[0], shapes)
        begin_stage(network, self.stage, states)
        found = self.loss_module(step.batches[index], step.loss)
        if not self.stage.is_last:
            return _packed(found, self.width)
        loss, count, added = found
        step.total += float(loss.detach())
        step.count += count
        mean: Tensor = (loss if added is None else loss + added * count) / step.divisor
        return mean


def _until_stage_end(
    forward: Callable[..., LossOutput], batch: Batch, loss: Loss
) -> LossOutput | tuple[Tensor, ...]:
    """Return the loss of a batch, or where a stage that is not the last ends, what it sends."""
    try:
        return forward(batch, loss)
    except StageEnd as end:
        return end.states


def _packed(states: Sequence[Tensor], width: int) -> Tensor:
    """Return tensors as one flat one of `width` elements; one that requires a gradient wherever gradients are kept."""
    flat = torch.cat([state.flatten() for state in states])
    padded = nn.functional.pad(flat, (0, width - len(flat)))
    if torch.is_grad_enabled() and not padded.requires_grad:  # all before it is frozen
        padded.requires_grad_()
    return padded


def _unpacked(flat: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    sizes = [batch * position * hidden for batch, position, hidden in shapes]
    parts = flat[: sum(sizes)].split(sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class _TimedStage(PipelineStage):
    """torch's stage, with a record of when it computes what.

    Attributes:
        after_backward: Called after each backward pass, and after each part of one.
        before_last: Called before the last backward pass of a step; None: nothing is.
    """

    recorder: Recorder
    after_backward: Callable[[], None]
    before_last: Callable[[], None] | None = None

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **named: Any) -> Any:
        with self.recorder.interval(self.stage_index, "forward", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **named)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        if last_backward and self.before_last is not None:
            self.before_last()
        kind = "backward" if full_backward else "input gradient"
        with self.recorder.interval(self.stage_index, kind, bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        self.after_backward()

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        with self.recorder.interval(self.stage_index, "weight gradient", bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        self.after_backward()


class Division:
    """A network cut, in place, to the stages of this rank of a pipeline.

    Args:
        network: The whole network, with equal weights on all ranks.
        plan: The plan, sized.
        mesh: Its mesh.

    Attributes:
        network: The part of it that this rank keeps.
        stages: All stages.
        own: Those of this rank.
        holders: For each parameter of the whole network, the ranks of the pipeline that keep it.
        shapes: Of each, whole.
        waiting: The gradients of weights that the schedule lets wait; None: it lets none.

    Raises:
        UserError: The network cannot be divided so.
    """

    def __init__(self, network: Network, plan: Plan, mesh: Mesh) -> None:
        kind = schedule_kind(plan.schedule)
        ranks = range(plan.pipeline)
        self.network = network
        self.stages = make_stages(network, plan.pipeline * kind.chunks)
        of_ranks = [self.stages[rank :: plan.pipeline] for rank in ranks]
        held = [set(names_of(network, stages)) for stages in of_ranks]
        self.shapes = {name: weight.shape for name, weight in network.named_parameters()}
        self.holders = {name: [rank for rank in ranks if name in held[rank]] for name in self.shapes}
        self.own = of_ranks[mesh.rank("pipeline")]
        keep_stages(network, self.own)
        self.waiting = WeightGradients(network) if kind.splits_backward else None


class PipelineParallel(Layout):
    """A network divided over the ranks of the pipeline axis, each with the blocks of its stages.

    All ranks of a pipeline are given the same micro-batches. Parameters that several of them hold get the sum of their
    gradients on each, are counted once in the norm, and so are equal on all of them after every step.

    Args:
        division: The network as it is divided.
        part: This rank's part of it as it lies over the ranks with the same stages.
        mesh: The mesh.
    """

    def __init__(self, division: Division, part: OneProcess, *, mesh: Mesh) -> None:
        super().__init__(division.network, part.plan, part.ranks)
        group = mesh.group("pipeline")
        assert group is not None, "a pipeline of one rank"
        self.division, self.part, self.group = division, part, group
        self.data_rank, self.data_size = part.data_rank, part.data_size
        self.rank, self.size = mesh.rank("pipeline"), self.plan.pipeline
        self.loss_module = part.loss_module
        # Within what hooks do around it: those of `fully_shard` must see every stage end.
        stage_end: Any = partial(_until_stage_end, self.loss_module.forward)
        self.loss_module.forward = stage_end  # type: ignore[method-assign]
        self.modules = [StageModule(self.loss_module, division.stages, stage.index) for stage in division.own]
        self._shared = _shared_groups(division.holders, self.rank, self.size)
        self._recorder = Recorder(division.network.device)
        self._widths: list[int] = []
        self._made: tuple[Any, ...] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.part.dtype

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return those of this rank's stages."""
        return self.part.parameters()

    @property
    def names(self) -> list[str]:
        """The names of all parameters of all stages."""
        return list(self.division.shapes)

    def freeze(self, names: Collection[str]) -> None:
        """Freeze just the parameters of these names."""
        self.part.freeze(names)

    def publish(self) -> None:
        """Let the network compute with what `parameters` now hold."""
        self.part.publish()

    def drop_gradients(self) -> None:
        """Drop all gradients."""
        self.part.drop_gradients()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the data ranks."""
        self.part.sum(tensors)

    def forward_backward(self, batches: Sequence[Batch], loss: Loss, divisor: float) -> tuple[float, float]:
        """Let the batches pass through the pipeline as its micro-batches, in the order of the schedule.

        Raises:
            UserError: The schedule cannot take so many micro-batches, or the objective cannot be computed in stages.
        """
        check_micro_batches(self.plan.schedule, self.size, len(batches))
        before = {name: parameter.grad for name, parameter in self.parameters().items()}
        self.drop_gradients()
        step = self._begin(batches, loss, divisor)
        self.part._begin_pass(is_last=False)
        numbers = torch.arange(len(batches))
        self._recorder.begin()
        try:
            self._schedule(len(batches)).step(number=numbers, target=numbers, return_outputs=False)
        except RuntimeError as error:  # torch puts its own around what a stage raises
            raise error.__cause__ or error from None
        self.part._end_passes()
        self._sum_shared()
        for name, parameter in self.parameters().items():
            earlier = before[name]
            if earlier is not None:
                parameter.grad = earlier if parameter.grad is None else parameter.grad.add_(earlier)
        self._send_measures()
        return self._from_last_stage(step)

    @torch.no_grad()
    def evaluate(self, batch: Batch, loss: Loss) -> tuple[float, float]:
        """Return the summed loss of a batch, and how much counts in it; the stages compute one after the other."""
        step = self._begin([batch], loss, 1.0)
        number = torch.zeros(1, dtype=torch.long)
        for module in self.modules:
            index = module.stage.index
            received = []
            if index:
                received = [
                    torch.empty(self._widths[index - 1], dtype=self.dtype, device=self._recorder.device)
                ]
                dist.recv(received[0], self._global((index - 1) % self.size), group=self.group)
            sent = module(*received, number=number)
            if not module.stage.is_last:
                dist.send(sent, self._global((index + 1) % self.size), group=self.group)
        for each in self.loss_module.modules():
            if isinstance(
                each, FSDPModule
            ):  # else the next pass would compute with what was gathered for this one
                each.reshard()
        self._send_measures()
        return self._from_last_stage(step)

    def _begin(self, batches: Sequence[Batch], loss: Loss, divisor: float) -> _Step:
        """Let the stages compute these batches; see how much each of them sends."""
        network: Any = self.network
        read = [shapes_read(network, partial(loss, network, batch)) for batch in batches]
        step = _Step(batches, loss, divisor, read)
        self._widths = [
            max(sum(map(_elements, shapes_sent(stage, network, shapes))) for shapes in read)
            for stage in self.division.stages[:-1]
        ]
        for module in self.modules:
            module.step = step
            module.width = 0 if module.stage.is_last else self._widths[module.stage.index]
        return step

    def _schedule(self, micro_batches: int) -> Any:
        """Return the schedule for so many micro-batches of this size; one is made where they have changed."""
        made = (micro_batches, tuple(self._widths))
        if self._made is None or self._made[0] != made:
            stages = [self._torch_stage(module) for module in self.modules]
            self._made = made, make_schedule(self.plan.schedule, stages, micro_batches)
        return self._made[1]

    def _torch_stage(self, module: StageModule) -> PipelineStage:
        """Return torch's stage, which need not find out the shapes of what travels."""
        index, waiting = module.stage.index, self.division.waiting

        def flat(width: int) -> Tensor:
            return torch.empty(width, dtype=self.dtype, device="meta", requires_grad=True)

        loss = torch.empty((), device="meta", requires_grad=True)
        stage = _TimedStage(
            module,
            index,
            len(self.division.stages),
            self._recorder.device,
            input_args=(flat(self._widths[index - 1]),) if index else (),
            output_args=(loss if module.stage.is_last else flat(module.width),),
            group=self.group,
            dw_builder=None if waiting is None else waiting.taken,
        )
        stage.recorder = self._recorder
        stage.after_backward = self.part.take_gradients
        if (
            module is self.modules[0] and waiting is None
        ):  # in every schedule the one that this rank ends with
            stage.before_last = partial(self.part._begin_pass, is_last=True)
        return stage

    def _sum_shared(self) -> None:
        """Sum the gradients of parameters over the ranks of the pipeline that hold them."""
        parameters, works = self.parameters(), []
        for names, group in self._shared:
            for name in names:
                parameter = parameters[name]
                if self.part.masters.working[name].requires_grad:
                    if parameter.grad is None:  # none of this rank's stages has used it
                        parameter.grad = torch.zeros_like(parameter)
                    works.append(dist.all_reduce(local_part(parameter.grad), group=group, async_op=True))
        for work in works:
            work.wait()

    def _from_last_stage(self, step: _Step) -> tuple[float, float]:
        """Return the sums that the last stage has, on all ranks of the pipeline."""
        sums = torch.tensor([step.total, step.count], dtype=torch.float64, device=self._recorder.device)
        dist.broadcast(sums, self._global(self.size - 1), group=self.group)
        return float(sums[0]), float(sums[1])

    def _send_measures(self) -> None:
        """Let all ranks of the pipeline have measured what the last stage has; see `objectives.measures`."""
        measures = current_measures()
        if measures is None:
            return
        device, last = self._recorder.device, self._global(self.size - 1)
        text = torch.frombuffer(bytearray(json.dumps(measures.sums).encode()), dtype=torch.uint8).to(device)
        length = torch.tensor([len(text)], device=device)
        dist.broadcast(length, last, group=self.group)
        if self.rank < self.size - 1:
            text = torch.empty(int(length), dtype=torch.uint8, device=device)
        dist.broadcast(text, last, group=self.group)
        found = json.loads(bytes(text.tolist()))
        measures.sums = {name: (total, count) for name, (total, count) in found.items()}

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self.group, rank)

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """Return the norm over all elements of all stages; what several ranks of the pipeline hold counts once."""
        names = {id(parameter.grad): name for name, parameter in self.parameters().items()}
        own = [each for each in gradients if self.division.holders[names[id(each)]][0] == self.rank]
        total = sum_of_squares(own, self.ranks.size // self.size)
        dist.all_reduce(total)
        return float(total.sqrt())

    def whole(self, name: str) -> Tensor | None:
        """Return a whole parameter in float32 on rank 0, sent by the first rank that holds it; None on the others."""
        owner = self.division.holders[name][0]
        parameter = self.parameters().get(name)
        found = whole_tensor(parameter) if parameter is not None and self.rank == owner else None
        if owner and self._global(0) == 0:
            if self.rank == owner and found is not None:
                dist.send(found.contiguous(), self._global(0), group=self.group)
            elif self.rank == 0:
                found = torch.empty(self.division.shapes[name], device=self._recorder.device)
                dist.recv(found, self._global(owner), group=self.group)
        return found if self.ranks.rank == 0 else None

    def timings(self) -> PipelineTimings:
        """Return when each rank of this pipeline computed what in the last step; all of them call this at once."""
        return self._recorder.gathered(self.group, self.plan.schedule)


def _shared_groups(
    holders: Mapping[str, list[int]], rank: int, size: int
) -> list[tuple[list[str], dist.ProcessGroup]]:
    """Return the parameters that this rank and others of a pipeline hold, each with the group of those that do.

    Args:
        holders: Of each parameter, the ranks of the pipeline that hold it.
        rank: This one in the pipeline.
        size: Of the pipeline.
    """
    # The pipeline is the outermost axis of a mesh. All ranks take part in making all groups, also those of others.
    pipelines = dist.get_world_size() // size
    groups = []
    for ranks in sorted({tuple(ranks) for ranks in holders.values() if len(ranks) > 1}):
        names = [name for name, all_ranks in holders.items() if tuple(all_ranks) == ranks]
        of_pipelines = [[each * pipelines + pipeline for each in ranks] for pipeline in range(pipelines)]
        group, _ = dist.new_subgroups_by_enumeration(of_pipelines)
        if rank in ranks:
            groups.append((names, group))
    return groups


def _elements(shape: tuple[int, int, int]) -> int:
    batch, position, hidden = shape
    return batch * position * hidden
