"""Run a kernel on the threads that torch itself computes with."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import torch
from torch import Tensor

from nbllm.nn.kernels.compilation import EXACT, SLOTS, part
from nbllm.nn.kernels.symbols import num_threads, run_parallel, thread_number

SHARES = 0  # the argument that tells a kernel into how many shares its work is split


def run(kernel: Any, shares: int, *arguments: Tensor | int | float | None) -> None:
    """Call `kernel` once on each of torch's threads, and wait for all.

    Args:
        kernel: Made by `compilation.kernel`.
        shares: Into how many the work is split; the kernel finds it as argument 0.
        arguments: From argument 1 on. Tensors are float32 or bfloat16, contiguous and on the CPU; None has no rows.
    """
    slots = [shares, 0, 0]
    for argument in arguments:
        slots += _slots(argument)
    table = (ctypes.c_int64 * len(slots))(*slots)
    run_parallel(kernel.address, ctypes.addressof(table), torch.get_num_threads(), 0)


def _slots(argument: Tensor | int | float | None) -> tuple[int, int, int]:
    if isinstance(argument, Tensor):
        kind = argument.dtype, argument.stride()
        assert argument.dtype in (torch.float32, torch.bfloat16) and argument.is_contiguous(), kind
        columns = argument.shape[-1] if argument.dim() else 1
        return argument.data_ptr(), argument.numel() // max(columns, 1), columns
    if isinstance(argument, float):
        return struct.unpack("q", struct.pack("d", argument))[0], 0, 0
    return argument or 0, 0, 0


@part(EXACT)
def own_shares(data: Any) -> range:
    """Return the indices of this thread's shares: all of them when it is alone."""
    return range(thread_number(), data[SLOTS * SHARES], num_threads())


@part(EXACT)
def bounds(share: int, shares: int, count: int) -> tuple[int, int]:
    """Return the first of `count` things that are in a share, and the first that is not any more."""
    return share * count // shares, (share + 1) * count // shares
