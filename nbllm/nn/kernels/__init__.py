"""Compiled CPU kernels of the transformer's parts: a plain torch path exists for each, and serves where these cannot.

A kernel is compiled by Numba and run by torch's own OpenMP threads (`team`), so that no second set of threads
contends for the cores. Work is split by rows or heads and sums are added in a fixed order: the same numbers of
threads give the same bits.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor, nn

# Below so many numbers a pass is shorter than what it costs to call a team, and Numba need not be loaded.
FEWEST = 1 << 16
# Work by rows is divided into blocks of so many. Gradients that are sums over rows are summed in a block by the
# kernel, and over blocks by torch: the result does not depend on the number of threads.
ROWS = 64


@functools.cache
def compiled(name: str) -> ModuleType | None:
    """Return the module `name` of this package, compiled; None where this machine or installation cannot.

    The first call in a process loads Numba, and on a new machine compiles for some seconds.
    """
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except Exception:  # whatever it is, torch's own operations do the same work
        return None


def serves(name: str, *operands: Tensor | None, numbers: int) -> bool:
    """Return whether the kernels `name` are for these operands: such as `readable` says, no autocast, many numbers.

    Args:
        name: A module of this package.
        operands: All that the kernel reads; None is left out.
        numbers: How many numbers pass through it.
    """
    if numbers < FEWEST or torch.is_autocast_enabled("cpu"):
        return False
    return readable(*operands) and compiled(name) is not None


def readable(*operands: Tensor | None) -> bool:
    """Return whether a kernel may read and write the memory of `operands`: float32 numbers of the CPU's.

    A subclass (a distributed or a fake tensor) may have no memory of its own or mean something else by it; and
    what is traced, to be compiled or exported, is to be seen in torch's operations.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return all(x is None or is_memory(x, torch.float32) for x in operands)


def is_memory(x: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor is just numbers of this kind in the CPU's memory."""
    plain = type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and not x.is_neg()
    return plain and x.device.type == "cpu" and x.dtype == dtype


def run(name: str, kernel: str, shares: int, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel of the module `name`, which `serves` or is compiled here, on torch's threads; see `team.run`."""
    kernels, team = compiled(name), compiled("team")
    assert kernels is not None and team is not None
    team.run(getattr(kernels, kernel), shares, *arguments)


def num_blocks(rows: int) -> int:
    """Return into how many blocks of `ROWS` rows a kernel's work is divided."""
    return -(-rows // ROWS)
