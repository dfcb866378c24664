"""ZeRO: data ranks share out the optimizer's state, gradients and parameters instead of each holding all of them.

| zero | each rank holds, of n | exchanged in a step, in sizes of the gradients |
|---|---|---|
| 1 | all parameters and gradients, 1/n of the optimizer's state | 2 to sum gradients, 1 to gather parameters |
| 2 | all parameters from the forward pass to the backward, 1/n of gradients and state | 2 |
| 3 | the parameters of a block while it computes, 1/n of all else | 3 |

Source: Rajbhandari et al. 2019, arXiv:1910.02054, sections 5 and 7.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard

from nbllm.core.errors import UserError
from nbllm.distributed.data_parallel import BUCKET_BYTES, DataParallel, in_buckets
from nbllm.distributed.layout import OneProcess
from nbllm.distributed.loss_module import Batch, Loss
from nbllm.distributed.master_weights import MasterWeights
from nbllm.distributed.mesh import DATA, Mesh
from nbllm.distributed.plan import Plan, RunFacts
from nbllm.distributed.ranks import Ranks
from nbllm.distributed.sharded_tensors import local_part, sum_of_squares, whole_tensor
from nbllm.models.network import Network

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from nbllm.models.config import ModelConfig


def check(plan: Plan, model: ModelConfig, run: RunFacts) -> None:
    """Check that what is shared out can be."""
    if plan.zero == 1 and plan.tensor > 1:
        raise UserError(
            "zero=1 shares out the state of whole parameters; with tensor parallelism each rank has parts of them.",
            where="plan",
            hint="Use zero=2 or zero=3 with tensor, or leave zero out: tensor divides the state as well.",
        )


class ShardedMasters(MasterWeights):
    """Masters of which each rank holds the rows of its own; the network's parameters and gradients are whole.

    In float32 a master's rows are those of the parameter itself, in its memory.

    Args:
        network: What is trained; its parameters become `dtype`.
        dtype: What it computes in.
        mesh: The ranks, in one dimension.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, mesh: DeviceMesh) -> None:
        self._rank, self._size = mesh.get_local_rank(), mesh.size()
        rows = {name: self._rows(parameter, self._rank) for name, parameter in network.named_parameters()}
        self.are_copies = dtype != torch.float32
        if self.are_copies:
            rows = {name: part.to(torch.float32, copy=True) for name, part in rows.items()}
            network.to(dtype)
        self.working = dict(network.named_parameters())
        self.parameters = {
            name: nn.Parameter(self._sharded(rows[name], parameter, mesh))
            for name, parameter in self.working.items()
        }
        self._mesh = mesh
        self._gradients: dict[str, Tensor] = {}  # whole, in float32
        self._buckets = in_buckets(self.working, BUCKET_BYTES)

    def gradient(self, name: str) -> Tensor | None:
        """Return the whole gradient."""
        return self._gradients.get(name) if self.are_copies else self.working[name].grad

    def set_gradient(self, name: str, gradient: Tensor | None) -> None:
        """Replace the whole gradient."""
        if not self.are_copies:
            self.working[name].grad = gradient
        elif gradient is None:
            self._gradients.pop(name, None)
        else:
            self._gradients[name] = gradient

    def divide_gradients(self) -> None:
        """Let the masters have their rows of the gradients, in the memory of these."""
        for name, master in self.parameters.items():
            gradient = self.gradient(name)
            if gradient is not None:
                part = self._rows(gradient, self._rank)
                master.grad = self._sharded(part, self.working[name], self._mesh)

    @torch.no_grad()
    def publish(self) -> None:
        """Gather the rows of all ranks into the network's parameters."""
        for names in self._buckets:
            parameters = [self.working[name].detach() for name in names]
            own = [local_part(self.parameters[name]) for name in names]
            # Ranks at the end may have fewer rows, or none.
            sizes = [self._rows(parameter, 0).numel() for parameter in parameters]
            sent = parameters[0].new_empty(sum(sizes))
            for place, part in zip(sent.split(sizes), own, strict=True):
                place[: part.numel()].copy_(part.flatten())
            gathered = [torch.empty_like(sent) for _ in range(self._size)]
            dist.all_gather(gathered, sent, group=self._mesh.get_group())
            for rank, of_rank in enumerate(gathered):
                if rank == self._rank and not self.are_copies:
                    continue
                for parameter, part in zip(parameters, of_rank.split(sizes), strict=True):
                    rows = self._rows(parameter, rank)
                    rows.copy_(part[: rows.numel()].view_as(rows))

    def drop_gradients(self) -> None:
        """Drop all gradients."""
        super().drop_gradients()
        self._gradients.clear()

    def _rows(self, whole: Tensor, rank: int) -> Tensor:
        """Return a rank's rows of a whole tensor, as `Shard(0)` has them, in its memory."""
        each = -(-len(whole) // self._size)
        return whole.detach()[rank * each : (rank + 1) * each]

    @staticmethod
    def _sharded(part: Tensor, whole: Tensor, mesh: DeviceMesh) -> DTensor:
        return DTensor.from_local(
            part, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
        )


class OptimizerSharded(DataParallel):
    """ZeRO-1: data parallel, where each data rank updates its rows of every parameter.

    Args:
        network: The network.
        plan: The plan, sized.
        ranks: All ranks.
        mesh: Their mesh.
        dtype: What the network computes in.
    """

    def make_masters(self) -> MasterWeights:
        """Return rows of the weights in float32."""
        shard = self.mesh.submesh("shard")
        assert shard is not None
        return ShardedMasters(self.network, self.dtype, shard)

    def _end_passes(self) -> None:
        super()._end_passes()
        cast("ShardedMasters", self.masters).divide_gradients()

    @contextlib.contextmanager
    def own_network(self, *, in_float32: bool) -> Iterator[Network | None]:
        """Give rank 0 its own network, in float32 with the rows of all ranks."""
        held: dict[str, Tensor] = {}
        if in_float32 and self.masters.are_copies:
            for name, master in self.masters.parameters.items():
                whole = whole_tensor(master)
                if self.ranks.rank == 0:
                    held[name], self.masters.working[name].data = self.masters.working[name].data, whole
        try:
            yield cast("Any", self.network) if self.ranks.rank == 0 else None
        finally:
            for name, working in held.items():
                self.masters.working[name].data = working


class FullySharded(OneProcess):
    """ZeRO-2 and ZeRO-3: `fully_shard` of every block, and of the rest with the loss, in which a tied head is.

    Parameters are float32 parts; they are gathered, rounded to what the network computes in, where a block needs them:
    for ZeRO-2 from the forward pass to the backward, for ZeRO-3 in each anew. Gradients are summed in float32 over the
    ranks that each part has, after every pass: whole ones would take the memory that is to be saved.

    Args:
        network: The network, in float32; with tensor parallelism this rank's part of it.
        plan: The plan, sized.
        ranks: All ranks.
        mesh: Their mesh.
        dtype: What the network computes in.

    Source: Zhao et al. 2023, arXiv:2304.11277.
    """

    def __init__(
        self, network: nn.Module, plan: Plan, ranks: Ranks, *, mesh: Mesh, dtype: torch.dtype
    ) -> None:
        super().__init__(network, plan, ranks, dtype=torch.float32)
        self._computes_in = dtype
        self.mesh = mesh
        self.data_rank, self.data_size = mesh.rank(*DATA), mesh.size(*DATA)
        self._sums = mesh.group(*DATA, "context")
        self._parts = mesh.group("context")  # of which each has summands of the gradients
        self._sharded: list[FSDPModule] = []
        over = mesh.submesh("replicate", "shard")
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        offload = OffloadPolicy()
        if plan.offload == "cpu":
            offload = CPUOffloadPolicy(pin_memory=next(network.parameters()).is_cuda)
        for module in [*blocks_of(network), self.loss_module]:
            fully_shard(
                module,
                mesh=over,
                mp_policy=policy,
                offload_policy=offload,
                reshard_after_forward=plan.zero == 3,
            )
            sharded = cast("FSDPModule", module)
            sharded.set_gradient_divide_factor(1.0)  # summed: the loss is divided by what counts on all ranks
            sharded.set_force_sum_reduction_for_comms(True)
            self._sharded.append(sharded)
        assert all(isinstance(each, DTensor) for each in self.parameters().values())

    def make_masters(self) -> MasterWeights:
        """Return the float32 parts themselves: what is gathered of them is rounded, and nothing is held twice."""
        return MasterWeights(self.network, torch.float32)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self._computes_in

    def _begin_pass(self, *, is_last: bool) -> None:
        root = self._sharded[-1]
        root.set_requires_all_reduce(is_last)  # over the replicas, where there are any
        root.set_reshard_after_backward(is_last or self.plan.zero == 3)

    def _end_passes(self) -> None:
        if self._parts is not None:
            for parameter in self.parameters().values():
                if parameter.grad is not None:
                    dist.all_reduce(local_part(parameter.grad), group=self._parts)

    def evaluate(self, batch: Batch, loss: Loss) -> tuple[float, float]:
        """Return the summed loss of a batch, and how much counts in it."""
        found = super().evaluate(batch, loss)
        for module in self._sharded:  # else the next pass would compute with what was gathered for this one
            module.reshard()
        return found

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the data ranks."""
        for tensor in tensors:
            dist.all_reduce(tensor, group=self._sums)

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """Return the norm over all elements, of all ranks."""
        total = sum_of_squares(gradients, self.ranks.size)
        dist.all_reduce(total)
        return float(total.sqrt())

    @contextlib.contextmanager
    def own_network(self, *, in_float32: bool) -> Iterator[Network | None]:
        """Give rank 0 the network with all parameters gathered; the others take part in gathering alone."""
        dtype = torch.float32 if in_float32 else self.dtype
        whole: dict[str, Tensor] = {}
        for name, parameter in self.parameters().items():
            gathered = whole_tensor(parameter)
            if self.ranks.rank == 0:
                whole[name] = gathered.to(dtype)
        if self.ranks.rank > 0:
            yield None
            return
        with _held_by(self.network, whole):
            yield cast("Any", self.network)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network, of all its stacks."""
    return [
        block
        for name, stack in network.named_modules()
        if isinstance(stack, nn.ModuleList) and name.rpartition(".")[2] == "blocks"
        for block in stack
    ]


@contextlib.contextmanager
def _held_by(network: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a sharded network hold plain parameters for a while, and be called without gathering any."""
    owners = {name: network.get_submodule(name.rpartition(".")[0]) for name in parameters}
    held = {name: owner._parameters[name.rpartition(".")[2]] for name, owner in owners.items()}
    called = [module for module in network.modules() if isinstance(module, FSDPModule)]
    hooks = [(module, *_without_gathering(module)) for module in cast("list[nn.Module]", called)]
    try:
        for name, owner in owners.items():
            owner._parameters[name.rpartition(".")[2]] = nn.Parameter(parameters[name], requires_grad=False)
        yield
    finally:
        for name, owner in owners.items():
            owner._parameters[name.rpartition(".")[2]] = held[name]
        for module, before, after in hooks:
            module._forward_pre_hooks, module._forward_hooks = before, after


def _without_gathering(module: nn.Module) -> tuple[Any, Any]:
    """Take torch's hooks that gather parameters off a module; return all its hooks as they were."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    state = cast("FSDPModule", module)._get_fsdp_state()
    own = {state._pre_forward_hook_handle.id, state._post_forward_hook_handle.id}
    module._forward_pre_hooks = type(before)((key, hook) for key, hook in before.items() if key not in own)
    module._forward_hooks = type(after)((key, hook) for key, hook in after.items() if key not in own)
    return before, after
