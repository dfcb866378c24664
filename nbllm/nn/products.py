"""In which number format matrix products run fastest here."""

from __future__ import annotations

import torch
from torch import Tensor

from nbllm.core.device import has_bfloat16_unit


def product_dtype(operand: Tensor) -> torch.dtype:
    """Return the format in which to multiply matrices given as `operand` is.

    A bfloat16 product adds up in float32 on every machine, so multiplying the same numbers in float32 gives
    the same result but for the order of summation. Where the CPU has no matrix unit for bfloat16 that is
    about twice as fast (167 against 320 GFLOP/s on two cores with AVX-512 and avx512_bf16), conversion aside.
    The answer depends on the machine alone, never on a measurement, so that a run can be replayed bit by bit.
    """
    if operand.dtype == torch.bfloat16 and operand.device.type == "cpu" and not has_bfloat16_unit():
        return torch.float32
    return operand.dtype
