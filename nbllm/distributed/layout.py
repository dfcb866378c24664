"""How the loop sees a model, however it lies over the ranks; and the case of one process."""

from __future__ import annotations

import contextlib
import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from nbllm.distributed.loss_module import Batch, Loss, LossModule
from nbllm.distributed.master_weights import MasterWeights
from nbllm.distributed.plan import Plan
from nbllm.distributed.ranks import OneRank, Ranks
from nbllm.distributed.sharded_tensors import assign_part, norm_of, whole_tensor
from nbllm.models.network import Network
from nbllm.nn.joined import empty_parameters

if TYPE_CHECKING:
    from nbllm.distributed.pipeline_timings import PipelineTimings


class Layout(ABC):
    """A network on the ranks of a plan: what training asks of it.

    All ranks call the same methods in the same order, since most of them exchange something. Parameters have the names
    of the single-process network.

    Args:
        network: This rank's part of the network.
        plan: The plan, sized.
        ranks: All ranks.

    Attributes:
        data_rank: Which of the data ranks this is: each reads its own sequences. Ranks that hold parts of one replica
            have the same, and read the same.
        data_size: How many data ranks there are.
        undivided: The complete network, without weights, where this rank's has been changed into a part of it.
        note: What a person should know before the first step; None: nothing.
    """

    data_rank: int = 0
    data_size: int = 1
    undivided: nn.Module | None = None
    note: str | None = None

    def __init__(self, network: nn.Module, plan: Plan, ranks: Ranks) -> None:
        self.network = network
        self.plan = plan
        self.ranks = ranks
        self.loss_module = LossModule(network)

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the network computes in."""

    # -- what is trained -----------------------------------------------------------------------------------------

    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the float32 parameters that this rank updates, by name; plain ones, or its parts (DTensor).

        They are the same objects at every call, and hold the gradients after `forward_backward`.
        """

    @property
    def names(self) -> list[str]:
        """The names of all parameters of the model, those of other ranks too."""
        return list(self.parameters())

    @abstractmethod
    def freeze(self, names: Collection[str]) -> None:
        """Freeze just the parameters of these names: they get no gradient."""

    @abstractmethod
    def publish(self) -> None:
        """Let the network compute with what `parameters` now hold."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer of `parameters` update them, and the network compute with them."""
        optimizer.step()
        self.publish()

    def allocating(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, large tensors are made where the plan keeps them; by default, in memory."""
        return contextlib.nullcontext()

    @abstractmethod
    def drop_gradients(self) -> None:
        """Drop all gradients."""

    # -- computing -----------------------------------------------------------------------------------------------

    @abstractmethod
    def forward_backward(self, batches: Sequence[Batch], loss: Loss, divisor: float) -> tuple[float, float]:
        """Compute the loss of the batches of a step that this data rank has, and the gradient of that of all ranks.

        The gradients of (sum of the losses of all data ranks) / `divisor` are in the `.grad` of `parameters` then,
        added to what was there.

        Args:
            batches: At least one, as many on every data rank; on the network's device.
            loss: What computes the loss of a batch.
            divisor: What the summed loss is divided by.

        Returns:
            The loss summed over this data rank's batches, and how much counts in them; add them up with `sum`.
        """

    @torch.no_grad()
    def evaluate(self, batch: Batch, loss: Loss) -> tuple[float, float]:
        """Return the summed loss of a batch, and how much counts in it; add them up with `sum`."""
        summed, counted, _ = self.loss_module(batch, loss)
        return float(summed), counted

    @abstractmethod
    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, on the CPU, by its sum over the data ranks; all ranks get the same bits."""

    def timings(self) -> PipelineTimings | None:
        """Return when each rank of a pipeline computed what in the last step; None: there is no pipeline."""
        return None

    @abstractmethod
    def norm(self, gradients: Sequence[Tensor]) -> float:
        """Return the Euclidean norm of gradients of the whole model; each element counts once.

        Args:
            gradients: Those of this rank's `parameters`.
        """

    # -- whole parameters ----------------------------------------------------------------------------------------

    def assign(self, name: str, whole: Tensor) -> None:
        """Copy this rank's part of a whole parameter into it; `publish` makes the network compute with it."""
        parameter = self.parameters().get(name)
        if parameter is not None:
            assign_part(parameter, whole)

    def whole(self, name: str) -> Tensor | None:
        """Return a whole parameter in float32 on rank 0, `None` on the others; it may be the parameter's memory."""
        found = whole_tensor(self.parameters()[name])
        return found if self.ranks.rank == 0 else None

    def whole_network(self, *, in_float32: bool = False) -> contextlib.AbstractContextManager[Network | None]:
        """Give rank 0 the complete network as one process has it, and the others None.

        Of a network that each rank has only a part of, it is a copy.

        Args:
            in_float32: With the weights that the optimizer updates, instead of those it computes with.
        """
        assert self.undivided is not None
        return self._assembled(self.undivided, torch.float32 if in_float32 else self.dtype)

    @contextlib.contextmanager
    def _assembled(self, undivided: nn.Module, dtype: torch.dtype) -> Iterator[Network | None]:
        device = next(iter(self.parameters().values())).device
        network = copy_without_weights(undivided)
        parameters = empty_parameters(network, dtype=dtype, device=device) if self.ranks.rank == 0 else {}
        for name, _ in network.named_parameters():
            whole = self.whole(name)
            if whole is not None:
                parameters[name].detach().copy_(whole)
        if self.ranks.rank > 0:
            yield None
            return
        network.load_state_dict(parameters, assign=True, strict=False)
        yield cast("Network", network)


class OneProcess(Layout):
    """All of a network in one process.

    Args:
        network: The network.
        plan: The plan, sized; None: of one process.
        ranks: All ranks; None: this one.
        dtype: What the network computes in; it becomes that, unless it is only to be evaluated. None: its own.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: Plan | None = None,
        ranks: Ranks | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            network, Plan(data=1) if plan is None else plan, OneRank() if ranks is None else ranks
        )
        self._dtype = dtype

    @functools.cached_property
    def masters(self) -> MasterWeights:
        """The weights in float32."""
        return self.make_masters()

    def make_masters(self) -> MasterWeights:
        """Return the weights in float32, made now."""
        return MasterWeights(self.network, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype if self._dtype is None else self._dtype

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the network's own, or their masters."""
        return self.masters.parameters

    def freeze(self, names: Collection[str]) -> None:
        """Freeze just the parameters of these names."""
        self.masters.freeze(names)

    def publish(self) -> None:
        """Round the masters into the network's own."""
        self.masters.publish()

    def drop_gradients(self) -> None:
        """Drop all gradients."""
        self.masters.drop_gradients()

    def forward_backward(self, batches: Sequence[Batch], loss: Loss, divisor: float) -> tuple[float, float]:
        """Take the batches one after the other."""
        self.parameters()  # are made now at the latest: the network becomes what it computes in
        total, count = 0.0, 0.0
        for number, batch in enumerate(batches, 1):
            self._begin_pass(is_last=number == len(batches))
            summed, counted, added = self.loss_module(batch, loss)
            ((summed if added is None else summed + added * counted) / divisor).backward()
            self._end_pass()
            total += float(summed.detach())
            count += counted
        self._end_passes()
        return total, count

    def _begin_pass(self, *, is_last: bool) -> None:
        """Called before each forward pass of a step."""

    def take_gradients(self) -> None:
        """After a backward pass that was not taken by `forward_backward`: let `parameters` have its gradients."""
        self.masters.take_gradients()

    def _end_pass(self) -> None:
        """Called after each backward pass of a step."""
        self.take_gradients()

    def _end_passes(self) -> None:
        """Called after the last backward pass of a step."""

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """The sum over one rank is what there is."""

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """Return the Euclidean norm of all elements."""
        return float(norm_of(gradients))

    def whole_network(self, *, in_float32: bool = False) -> contextlib.AbstractContextManager[Network | None]:
        """Give rank 0 the complete network, which is its own where that has not been divided."""
        if self.undivided is not None:
            return super().whole_network(in_float32=in_float32)
        return self.own_network(in_float32=in_float32)

    @contextlib.contextmanager
    def own_network(self, *, in_float32: bool) -> Iterator[Network | None]:
        """Give rank 0 its own network with all weights, and the others None; see `whole_network`."""
        held = self.masters.swapped_in() if in_float32 else None
        try:
            yield cast("Any", self.network) if self.ranks.rank == 0 else None
        finally:
            if held is not None:
                self.masters.put_back(held)


def copy_without_weights(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose parameters are on the device "meta"; buffers are copied."""
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, memo)
