"""How the CPU computes is said by the tests, so that they try the same on every machine."""

import pytest

from nbllm.nn.compute.decisions import PLAIN, use_choices
from nbllm.nn.kernels import FUSED_DTYPES

ALL_KERNELS = PLAIN.replace(fused_kernels=FUSED_DTYPES)


@pytest.fixture(autouse=True)
def all_kernels():
    """Compiled kernels wherever they serve, and each matrix multiplied in its own dtype by torch."""
    with use_choices(ALL_KERNELS):
        yield


@pytest.fixture(params=["native", "in float32", "in float32 by oneDNN"])
def any_matmul(request, all_kernels):
    """Every way to multiply matrices of bfloat16."""
    from_rows = {"native": (None, None), "in float32": (1, None), "in float32 by oneDNN": (1, 1)}[
        request.param
    ]
    converted, onednn = from_rows
    with use_choices(ALL_KERNELS.replace(float32_matmuls_from=converted, onednn_matmuls_from=onednn)):
        yield
