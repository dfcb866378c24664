"""Activation checkpointing: blocks keep their input, and are computed a second time in the backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from nbllm.core.errors import UserError
from nbllm.distributed.plan import CHECKPOINTINGS
from nbllm.models.block import Block
from nbllm.models.rwkv import RWKVBlock

_MATMULS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.mkldnn._linear_pointwise.default,
}
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def checkpoint_activations(network: nn.Module, choice: str | int) -> int:
    """Let blocks of a network keep less for the backward pass; losses and gradients stay the same, bit for bit.

    A block's `forward` is replaced on the instance, so that modules and parameters keep their names. Without gradients,
    such as when text is generated, a block is computed as before.

    Args:
        network: The network, or a part of one; it is changed in place.
        choice: "none"; "full", every block keeps its input alone; an int k, every k-th block does so, from the first
            of each stack on; "selective", every block also keeps the results of its matrix multiplications and of
            torch's fused attention, so that only what is cheap is computed again. The attention backends of the CPU
            ("blocked", "per_head", "eager") are computed again. Where a block is compiled, the compiler itself chooses
            what is computed again.

    Returns:
        How many blocks are computed twice, wholly or in part.

    Raises:
        UserError: There is no such choice.

    Source: Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198, section 5 ("selective").
    """
    is_interval = isinstance(choice, int) and not isinstance(choice, bool) and choice >= 1
    if not is_interval and choice not in CHECKPOINTINGS:
        raise UserError(
            f"activation_checkpointing is {choice!r}.",
            hint='Give "none", "full", "selective", or k for every k-th block.',
        )
    if choice == "none":
        return 0
    every = int(choice) if is_interval else 1
    options = {"context_fn": _keeping_matmuls} if choice == "selective" else {}
    chosen = [block for place, block in _blocks(network) if place % every == 0]
    for block in chosen:
        # A partial of a bound method is copied together with the module that it belongs to; a closure would not be.
        block.forward = functools.partial(_checkpointed, block.forward, options)
    return len(chosen)


def held_bytes(compute: Callable[[], Any]) -> int:
    """Return the memory, in bytes, that a computation allocates and that is still held at its end.

    Of a forward pass these are the activations that the backward pass needs, whatever keeps them: autograd, or the
    cache of selective checkpointing, which `saved_tensors_hooks` does not see. What was there before is not counted.

    Args:
        compute: The forward pass; what it returns is kept until all is counted.
    """
    with _Allocations() as allocations:
        kept = compute()
    held: int = sum(size for storage, size in allocations.sizes.values() if not storage.expired())
    del kept
    return held


def _blocks(network: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """Yield all blocks with the place of each in its stack."""
    for name, module in network.named_modules():
        if isinstance(module, (Block, RWKVBlock)):
            yield int(name.rpartition(".")[2]), module


def _checkpointed(forward: Callable[..., Tensor], options: Mapping[str, Any], *args: Any) -> Tensor:
    """Compute a block, and where gradients are wanted compute it once more in the backward pass.

    Args:
        forward: The block's own.
        options: For `torch.utils.checkpoint.checkpoint`.
        args: What the block takes.
    """
    if not torch.is_grad_enabled() or (options and torch.compiler.is_compiling()):
        return forward(*args)
    out: Tensor = checkpoint(forward, *args, use_reentrant=False, **options)
    return out


def _keeping_matmuls() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts in which a block is computed for the first and for the second time."""
    keeping, kept = create_selective_checkpoint_contexts(_policy)
    return _copying(keeping), kept


def _policy(_: Any, operation: Any, *args: Any, **given: Any) -> CheckpointPolicy:
    is_kept = operation in _MATMULS or operation in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def _copying(keeping: AbstractContextManager[Any]) -> Iterator[None]:
    with keeping, _Copies():
        yield


class _Copies(TorchDispatchMode):
    """On the CPU, hand out copies of the results of matmuls: our kernels go on in the same memory, unseen by torch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.clone() if func in _MATMULS and out.device.type == "cpu" else out


class _Allocations(TorchDispatchMode):
    """Note all memory that operations allocate, without keeping it.

    Attributes:
        sizes: The storage of each allocation and its bytes, by its address as an object.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {_address(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and _address(each) not in before:
                storage = each.untyped_storage()
                self.sizes[_address(each)] = StorageWeakRef(storage), storage.nbytes()
        return out


def _address(x: Tensor) -> int:
    address: int = x.untyped_storage()._cdata
    return address
