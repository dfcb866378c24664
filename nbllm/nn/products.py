"""In which number format matrix products run fastest here."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def product_dtype(operand: Tensor) -> torch.dtype:
    """Return the format in which to multiply matrices given as `operand` is.

    A bfloat16 product adds up in float32 on every machine, so multiplying the same numbers in float32 gives
    the same result but for the order of summation. Where the CPU has no matrix unit for bfloat16 that is
    about twice as fast (167 against 320 GFLOP/s on two cores with AVX-512 and avx512_bf16), conversion aside.
    The answer depends on the machine alone, never on a measurement, so that a run can be replayed bit by bit.
    """
    if operand.dtype == torch.bfloat16 and operand.device.type == "cpu" and not has_bfloat16_products():
        return torch.float32
    return operand.dtype


@functools.cache
def has_bfloat16_products() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices faster than float32 ones (Intel AMX, Arm BF16)."""
    if torch.cpu._is_amx_tile_supported():
        return True
    try:
        with open("/proc/cpuinfo") as file:
            features = next((line for line in file if line.startswith("Features")), "")
    except OSError:
        return False
    return " bf16" in features and torch.backends.mkldnn.is_available()
