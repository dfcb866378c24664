"""Data parallel: every rank has the whole model, or the same part of it, and its own sequences."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nbllm.core.errors import UserError
from nbllm.distributed.layout import OneProcess
from nbllm.distributed.master_weights import MasterWeights
from nbllm.distributed.mesh import DATA, Mesh
from nbllm.distributed.plan import Plan, RunFacts
from nbllm.distributed.ranks import Ranks
from nbllm.distributed.sharded_tensors import local_part, norm_of, sum_of_squares, summed
from nbllm.objectives import OBJECTIVES

if TYPE_CHECKING:
    from nbllm.models.config import ModelConfig

BUCKET_BYTES = 25 << 20  # of gradients that are summed at once, as in DDP


def check(plan: Plan, model: ModelConfig, run: RunFacts) -> None:
    """Check that what is trained can be: an objective with steps of its own needs one process."""
    if plan.ranks != 1 and OBJECTIVES[run.objective].stepper is not None:
        raise UserError(
            f"{run.objective} trains on answers that it samples itself, by one process only.",
            where="plan",
            hint="Train it without Launch, or on recorded preferences (method 'dpo') by several processes.",
        )


class DataParallel(OneProcess):
    """Gradients are summed over the data ranks while the backward pass goes on.

    The same as DistributedDataParallel, whose buckets these are, with what that does not do: it sums instead of
    averaging, in float32 also where the network computes in another dtype, takes parameters of which this rank holds a
    part, and lets them be frozen and unfrozen between steps. Whether a parameter got a gradient at all is summed along,
    so that ranks may use different ones.

    Args:
        network: The network, or this rank's part of it.
        plan: The plan, sized.
        ranks: All ranks.
        mesh: Their mesh.
        dtype: What the network computes in.

    Source: Li et al. 2020, arXiv:2006.15704, section 3.2.
    """

    def __init__(
        self, network: nn.Module, plan: Plan, ranks: Ranks, *, mesh: Mesh, dtype: torch.dtype
    ) -> None:
        super().__init__(network, plan, ranks, dtype=dtype)
        self.mesh = mesh
        self.data_rank, self.data_size = mesh.rank(*DATA), mesh.size(*DATA)
        # Ranks of the context axis have parts of the same sequences: their gradients are summands as well.
        self._group = mesh.group(*DATA, "context")
        self.reducer = None if self._group is None else GradientReducer(self.masters, self._group)

    def _begin_pass(self, *, is_last: bool) -> None:
        if self.reducer is not None:
            self.reducer.begin(is_last=is_last)

    def _end_pass(self) -> None:
        if self.reducer is None:
            super()._end_pass()

    def _end_passes(self) -> None:
        if self.reducer is not None:
            self.reducer.finish()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the data ranks."""
        if self._group is not None:
            for tensor in tensors:
                dist.all_reduce(tensor, group=self._group)

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """Return the norm over all elements; of parts, over all ranks."""
        if not any(isinstance(each, DTensor) for each in gradients):
            return float(norm_of(gradients))  # equal bits everywhere
        total = sum_of_squares(gradients, self.ranks.size)
        dist.all_reduce(total)
        return float(total.sqrt())


class GradientReducer:
    """Sums gradients over ranks, bucket by bucket, as soon as a bucket is complete.

    Args:
        masters: What is trained. Its masters' gradients are summed.
        group: The ranks.
        bucket_bytes: How much is summed at once.
    """

    def __init__(
        self, masters: MasterWeights, group: dist.ProcessGroup, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._masters = masters
        self._group = group
        # Gradients come about in the reverse order of the parameters.
        self._buckets = in_buckets(dict(reversed(masters.working.items())), bucket_bytes)
        self._bucket_of = {name: number for number, names in enumerate(self._buckets) for name in names}
        self._is_last = False
        self._missing: list[set[str]] = []
        self._sent: list[tuple[list[str], Tensor, dist.Work]] = []
        for name, parameter in masters.working.items():
            trained = parameter.requires_grad
            parameter.requires_grad_(True)  # it may be trained later
            parameter.register_post_accumulate_grad_hook(functools.partial(self._arrived, name))
            parameter.requires_grad_(trained)

    def begin(self, *, is_last: bool) -> None:
        """Begin a pass; gradients are sent in the last one of a step, when all others are in them."""
        self._is_last = is_last
        working = self._masters.working
        self._missing = [{name for name in names if working[name].requires_grad} for names in self._buckets]
        assert not self._sent

    def _arrived(self, name: str, parameter: Tensor) -> None:
        self._masters.take_gradients([name])
        if not self._is_last:
            return
        self._missing[self._bucket_of[name]].discard(name)
        # In the same order on every rank, whatever came about first.
        while (number := len(self._sent)) < len(self._buckets) and not self._missing[number]:
            self._send(number)

    def finish(self) -> None:
        """Wait until all is summed."""
        for number in range(len(self._sent), len(self._buckets)):
            self._send(number)
        for names, flat, work in self._sent:
            work.wait()
            used = flat[len(flat) - len(names) :].tolist()
            for name, count in zip(names, used, strict=True):
                if not count:  # by no rank: as in one process
                    self._masters.set_gradient(name, None)
        self._sent.clear()
        self._is_last = False

    def _send(self, number: int) -> None:
        """Begin to sum a bucket; from now on its gradients lie in one memory, each as a part of it."""
        masters, working = self._masters, self._masters.working
        names = [name for name in self._buckets[number] if working[name].requires_grad]
        # A gradient of a tensor-parallel part may still be a sum to be taken: that is done first.
        gradients = [None if (g := masters.gradient(name)) is None else summed(g) for name in names]
        held = [local_part(working[name]) for name in names]
        parts = [
            (
                torch.zeros_like(like, dtype=torch.float32) if gradient is None else local_part(gradient)
            ).flatten()
            for like, gradient in zip(held, gradients, strict=True)
        ]
        used = torch.tensor([float(gradient is not None) for gradient in gradients])
        flat = torch.cat([*parts, used.to(parts[0].device)]) if parts else used
        for name, part, like in zip(names, flat.split([*map(len, parts), len(used)]), held, strict=False):
            masters.set_gradient(name, _like(working[name], part.view_as(like)))
        self._sent.append((names, flat, dist.all_reduce(flat, group=self._group, async_op=True)))


def _like(parameter: Tensor, local: Tensor) -> Tensor:
    """Return what this rank holds of a gradient as the gradient of `parameter`."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def in_buckets(parameters: Mapping[str, nn.Parameter], most: int) -> list[list[str]]:
    """Return names in order, so many together that they have at most so many bytes in float32, or one that has more."""
    buckets: list[list[str]] = []
    filled = most
    for name, parameter in parameters.items():
        num_bytes = 4 * local_part(parameter).numel()
        if filled + num_bytes > most:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled += num_bytes
    return buckets
