"""Compiled CPU kernels of the transformer's parts: a plain torch path exists for each, and serves where these cannot.

A kernel is compiled by Numba and run by torch's own OpenMP threads (`team`), so that no second set of threads
contends for the cores. Work is split by rows or heads, and sums are added in an order that does not depend on how
many threads there are: on one machine, a kernel gives the same bits for the same operands.
"""

from __future__ import annotations

import importlib
import threading
from types import ModuleType

import torch
from torch import Tensor, nn

from nbllm.nn.compute.decisions import current_choices

# All modules that are compiled. "team" runs the others.
NAMES = (
    "team", "activations", "normalization", "attention", "wkv", "decoding_float32", "decoding_bfloat16",
)  # fmt: skip
FUSED_DTYPES = ("float32", "bfloat16")  # which the kernels of activations and normalizations read and write
# Below so many elements a pass is shorter than what it costs to call a team, and Numba need not be loaded.
FEWEST = 1 << 16
# Work by rows is divided into blocks of so many. Gradients that are sums over rows are summed in a block by the
# kernel, and over blocks by torch: the result does not depend on the number of threads.
ROWS = 64


_modules: dict[str, ModuleType | Exception] = {}
_lock = threading.RLock()


def compiled(name: str) -> ModuleType | None:
    """Return the module `name` of this package, compiled; None where this machine or installation cannot.

    The first call in a process loads Numba, and on a new machine compiles for some seconds. `why_not_compiled`
    returns the reason for None.
    """
    if name not in _modules:
        with _lock:
            if name not in _modules:
                try:
                    _modules[name] = importlib.import_module(f"{__name__}.{name}")
                except Exception as error:  # whatever it is, torch's own operations do the same work
                    _modules[name] = error
    found = _modules[name]
    return found if isinstance(found, ModuleType) else None


def why_not_compiled() -> dict[str, str]:
    """Compile all kernels, and return for each module that could not be the error's type and text."""
    for name in NAMES:
        compiled(name)
    errors = {name: found for name in NAMES if isinstance(found := _modules[name], Exception)}
    return {name: f"{type(error).__name__}: {error}" for name, error in errors.items()}


def serves(name: str, *operands: Tensor | None, elements: int) -> bool:
    """Return whether the kernels `name` are for these operands.

    They are where the present choices have kernels for the operands' one dtype, for as many elements as are worth it;
    not under autocast, nor where `readable` says no.

    Args:
        name: A module of this package.
        operands: All that the kernel reads, the first of them not None; None is left out.
        elements: How many elements pass through it.
    """
    if elements < FEWEST or torch.is_autocast_enabled("cpu"):
        return False
    assert operands[0] is not None
    dtype = operands[0].dtype
    if _name(dtype) not in FUSED_DTYPES or not readable(*operands, dtype=dtype):
        return False
    return _name(dtype) in current_choices().fused_kernels and compiled(name) is not None


def readable(*operands: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether a kernel may read and write the memory of `operands`: of this dtype, in the CPU's memory.

    A subclass (a distributed or a fake tensor) may have no memory of its own or mean something else by it; and
    what is traced, to be compiled or exported, is to be seen in torch's operations.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return all(x is None or is_memory(x, dtype) for x in operands)


def is_memory(x: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor is nothing but elements of this dtype in the CPU's memory."""
    plain = type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and not x.is_neg()
    return plain and x.device.type == "cpu" and x.dtype == dtype


def run(name: str, kernel: str, shares: int, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel of the module `name`, which `serves` or is compiled here, on torch's threads; see `team.run`."""
    kernels, team = compiled(name), compiled("team")
    assert kernels is not None and team is not None
    team.run(getattr(kernels, kernel), shares, *arguments)


def run_for(
    dtype: torch.dtype, name: str, kernel: str, shares: int, *arguments: Tensor | int | float | None
) -> None:
    """Run the kernel for rows of a dtype, one of `FUSED_DTYPES`, as `run` does."""
    run(name, f"{kernel}_{_name(dtype)}", shares, *arguments)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def num_blocks(rows: int) -> int:
    """Return into how many blocks of `ROWS` rows a kernel's work is divided."""
    return -(-rows // ROWS)
