"""`decoding` for a model whose weights are bfloat16; compiled apart from the other, since few need both."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllm.nn.kernels.compilation import kernel
from nbllm.nn.kernels.decoding import decode


@kernel
def step(data: Any) -> None:
    """Argument: the address of a row of `decoding.PASS`."""
    decode(data, np.uint16(0))
