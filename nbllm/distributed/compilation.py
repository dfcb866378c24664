"""torch.compile for a network: its blocks, or all between token ids and hidden states."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from nbllm.models.block import Block
from nbllm.models.network import Network
from nbllm.models.rwkv import RWKVBlock

# What compiling took, forward and backward, on two cores of a server of 2026: for a kind of block, and for each block
# of a network that is compiled whole.
SECONDS_OF_KIND = 10.0
SECONDS_IN_WHOLE = 4.0


def compile_network(network: Network, choice: str) -> str | None:
    """Let torch.compile compile a network where gradients are wanted, in place; module and parameter names stay.

    Compiling happens at the first step; whatever is computed without gradients is not compiled. Results equal the
    others up to rounding: on the CPU, compiled code takes the place of this package's own kernels. Where no compiler
    is, the network stays as it is.

    Args:
        network: The network, or this rank's part of it.
        choice: "none"; "blocks", every block by itself, of which those of one kind share their code; "whole", all
            blocks and what is around them together.

    Returns:
        What a person should know beforehand: about how long compiling takes, or why nothing is compiled; None for
        "none".
    """
    if choice == "none":
        return None
    problem = compiler_problem(network.device.type)
    if problem is not None:
        return f"The model is trained without being compiled: {problem}"
    made: Any = network  # whose methods are replaced on the instance
    blocks: list[Any] = [module for module in network.modules() if isinstance(module, (Block, RWKVBlock))]
    if choice == "blocks":
        for block in blocks:
            block.forward = _with_gradients(block.forward)
    else:
        made.hidden = _with_gradients(made.hidden)
    kinds = len({_kind_of(block) for block in blocks})
    seconds = kinds * SECONDS_OF_KIND if choice == "blocks" else len(blocks) * SECONDS_IN_WHOLE
    return f"torch.compile compiles at the first step, which takes about {max(seconds, SECONDS_OF_KIND):.0f} s longer."


def compiler_problem(device: str) -> str | None:
    """Return why torch.compile has no compiler for a device, "cpu" or "cuda"; None: it has one."""
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed."
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler, such as g++."
    return None


def _with_gradients(plain: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(_compiled, plain, torch.compile(plain))


def _compiled(plain: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **given: Any) -> Any:
    return (compiled if torch.is_grad_enabled() else plain)(*args, **given)


def _kind_of(block: torch.nn.Module) -> tuple[Any, ...]:
    """Return what blocks have in common that share their compiled code: classes and shapes."""
    return tuple((name, type(module).__name__) for name, module in block.named_modules())
