"""Weights, gradients and the optimizer's state on disk: training of models that do not fit in memory."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.core.quantities import size
from nbllm.distributed.layout import OneProcess
from nbllm.distributed.loss_module import Batch, Loss
from nbllm.distributed.plan import Plan, RunFacts
from nbllm.distributed.ranks import Ranks
from nbllm.distributed.scratch import Scratch
from nbllm.objectives import OBJECTIVES

if TYPE_CHECKING:
    from nbllm.models.config import ModelConfig


def check(plan: Plan, model: ModelConfig, run: RunFacts) -> None:
    """Check that what is to be offloaded can be: by one process, or to the CPU by several that share it out."""
    if plan.offload == "cpu" and plan.ranks == 1:
        _check_streams(plan, run)
    elif plan.offload == "cpu" and not plan.is_sharded:
        raise UserError(
            f"offload='cpu' on {plan.ranks} processes keeps the parts of each in the CPU's memory; this plan shares "
            "out no parameters.",
            where="plan",
            hint="Set zero=3, or launch one process.",
        )
    if plan.offload == "disk" and plan.ranks != 1:
        raise UserError(
            f"offload='disk' is for one process, and the plan has {plan.ranks}.",
            where="plan",
            hint="Several processes share out what they hold with zero=3.",
        )


def _check_streams(plan: Plan, run: RunFacts) -> None:
    """Check that one process can keep the weights of blocks elsewhere: each block must be called as a module."""
    if plan.compile == "whole":
        raise UserError(
            "compile='whole' makes one program of all blocks; offload='cpu' fetches the weights of each by itself.",
            where="plan",
            hint="Use compile='blocks'.",
        )
    if OBJECTIVES[run.objective].stepper is not None:
        raise UserError(
            f"{run.objective} samples answers and scores them with copies of the network; offload='cpu' holds two of "
            "its blocks at a time on the device.",
            where="plan",
            hint="Leave offload out, or train on recorded preferences (method 'dpo').",
        )


def check_device(plan: Plan, device: str) -> None:
    """Check that something can be offloaded from a device.

    Raises:
        UserError: It cannot; the reason and what to change are named.
    """
    if plan.offload == "cpu" and device == "cpu":
        raise UserError(
            "offload='cpu' moves what a GPU does not need just now to the CPU's memory; this run is on the CPU.",
            where="plan",
            hint="Leave it out, or use offload='disk' for a model that does not fit in memory.",
        )
    if plan.offload == "disk" and device != "cpu":
        raise UserError(
            f"offload='disk' is for a model that is trained on the CPU; this run is on {device!r}.",
            where="plan",
            hint="Set device='cpu', or leave offload out.",
        )


def check_space(folder: Path, num_elements: int, precision: str, state_bytes: float) -> None:
    """Check that a disk has space for all that is offloaded to it.

    Args:
        folder: On the disk; it exists.
        num_elements: Elements of all parameters.
        precision: What the network computes in; "auto" may turn out as another dtype than float32.
        state_bytes: What the optimizer keeps, in bytes for each element.

    Raises:
        UserError: It has not; both figures are given.
    """
    weights = 4.0 if precision == "float32" else 6.0  # the masters, and what it computes with
    needed = round(num_elements * (weights + 4.0 + state_bytes))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"Offloading needs {size(needed)} on the disk, for weights, gradients and the optimizer's state; "
            f"{size(free)} are free.",
            where=folder,
            hint="Free space on this disk, or keep the run on another: nb.train(..., folder=...).",
        )


class DiskOffload(OneProcess):
    """One process whose weights, gradients and optimizer state lie in files.

    Nothing else differs from `OneProcess`: the operations are the same, on memory that the system reads from the files
    and writes back. While a block is computed, a thread lets the system read the next one; while the parameters of one
    are updated, those of the next with their gradients and state. The updates begin when all gradients are there, since
    their norm is needed for clipping: what goes on beside the backward pass is the reading and the writing back.

    Args:
        network: The network; its parameters should have been allocated in the scratch (`Scratch.allocating`).
        plan: The plan, sized.
        ranks: This one.
        dtype: What the network computes in.
        scratch: Where the files are.

    Source: Rajbhandari et al. 2021, arXiv:2104.07857 (ZeRO-Infinity), sections 5 and 6, in the system's own means.
    """

    def __init__(
        self, network: nn.Module, plan: Plan, ranks: Ranks, *, dtype: torch.dtype, scratch: Scratch
    ) -> None:
        super().__init__(network, plan, ranks, dtype=dtype)
        self.scratch = scratch
        self._gradients: dict[str, Tensor] = {}
        with scratch.allocating():
            masters = self.masters
        self._pieces, self._blocks = pieces_of(network)
        for number, names in enumerate(self._pieces):
            for name in names:
                masters.working[name].register_post_accumulate_grad_hook(self._keeper(name, number))

    def allocating(self) -> contextlib.AbstractContextManager[None]:
        """Within it, large tensors are made in the scratch."""
        return self.scratch.allocating()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer update the parameters piece by piece, while the next piece is read."""
        parameters = self.parameters()
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        for parameter in parameters.values():
            parameter.grad = None
        with self.scratch.allocating(zeros_only=True):
            for number, names in enumerate(self._pieces):
                self._prefetch_state(optimizer, number + 1)
                for name in names:
                    parameters[name].grad = gradients.get(name)
                optimizer.step()
                for name in names:
                    parameters[name].grad = None
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        self.publish()

    def _prefetch_state(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        for name in self._pieces[number] if number < len(self._pieces) else ():
            parameter = self.parameters()[name]
            state: Mapping[str, Any] = optimizer.state.get(parameter, {})
            values = [parameter.detach(), self._gradients.get(name), *state.values()]
            self.scratch.prefetch(each for each in values if isinstance(each, Tensor))

    def forward_backward(self, batches: Sequence[Batch], loss: Loss, divisor: float) -> tuple[float, float]:
        """Take the batches one after the other; each block's weights are read while the one before it is computed."""
        with contextlib.ExitStack() as hooks:
            for number, block in self._blocks.items():
                handle = block.register_forward_pre_hook(lambda *_, after=number + 1: self._prefetch(after))
                hooks.callback(handle.remove)  # elsewhere a hook would keep compiled kernels from the block
            return super().forward_backward(batches, loss, divisor)

    def _prefetch(self, number: int) -> None:
        """Let the weights of a piece be read."""
        if 0 <= number < len(self._pieces):
            self.scratch.prefetch(self.masters.working[name].detach() for name in self._pieces[number])

    def _keeper(self, name: str, number: int) -> Callable[[Tensor], None]:
        """Return what moves a parameter's gradient to disk as soon as it is computed."""
        is_last = name == self._pieces[number][-1]  # the backward pass comes to it first

        def keep(parameter: Tensor) -> None:
            if is_last:
                self._prefetch(number - 1)
            master, held = self.masters.parameters[name], self._gradients.get(name)
            gradient = parameter.grad
            assert gradient is not None
            if gradient is held:  # torch has added to it
                return
            if held is None:
                held = self._gradients[name] = self.scratch.empty(master.shape, master.dtype)
            if master.grad is None or master is parameter:
                held.copy_(gradient)
            else:
                held.add_(gradient)
            if master is not parameter:
                parameter.grad = None
            master.grad = held

        return keep


def pieces_of(network: nn.Module) -> tuple[list[list[str]], dict[int, nn.Module]]:
    """Return the names of the parameters in pieces, each block one and the rest by modules; and the blocks' modules.

    Returns:
        The pieces in the order of the network, and the module of each piece that is a block, by the piece's number.
    """
    blocks = {
        f"{path}.{number}": block
        for path, module in network.named_modules()
        if path.rpartition(".")[2] == "blocks" and isinstance(module, nn.ModuleList)
        for number, block in module.named_children()
    }
    pieces: dict[str, list[str]] = {}
    for name, _ in network.named_parameters():
        block = next((path for path in blocks if name.startswith(f"{path}.")), name)
        pieces.setdefault(block, []).append(name)
    numbers = {path: number for number, path in enumerate(pieces)}
    return list(pieces.values()), {numbers[path]: block for path, block in blocks.items() if path in numbers}
