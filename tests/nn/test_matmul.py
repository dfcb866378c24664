import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nbllm.nn.compute import decisions
from nbllm.nn.compute.decisions import compute_choices, use_choices
from nbllm.nn.matmul import add_matmul, matmul, matmul_dtype, matmul_into

from .compute.machines import MACHINES

HALF = torch.bfloat16


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("AMD, avx512_bf16, no AMX", 2048, HALF),
        ("AVX-512 without bfloat16", 2048, torch.float32),
        ("AVX-512 without bfloat16", 8, HALF),
    ],
)
def test_bfloat16_is_multiplied_in_what_the_machine_is_made_for(name, rows, expected):
    with use_choices(compute_choices(MACHINES[name])):
        assert matmul_dtype(torch.zeros(1, dtype=HALF), rows) == expected
        for dtype in (torch.float32, torch.float64, torch.float16):
            assert matmul_dtype(torch.zeros(1, dtype=dtype), rows) == dtype
        assert matmul_dtype(torch.zeros(1, dtype=HALF, device="meta"), rows) == HALF


def test_what_is_not_computed_here_needs_no_profile(monkeypatch):
    monkeypatch.setattr(decisions, "current_choices", lambda: pytest.fail("measured"))
    with FakeTensorMode():
        x = torch.zeros(300, 300, dtype=HALF)
        assert matmul_dtype(x, 300) == HALF and matmul(x.float(), x.float()).shape == (300, 300)
    meta = torch.zeros(300, 300, device="meta")
    assert matmul(meta, meta).shape == (300, 300)


@pytest.mark.usefixtures("any_matmul")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, HALF])
@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(1, 1, 1), (70, 33, 20), (64, 5, 0), (64, 0, 5), (0, 3, 4)]
)
def test_it_is_torchs_matmul(dtype, rows, inner, columns):
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(rows, inner, generator=draw), torch.randn(inner, columns, generator=draw)
    expected = left @ right
    left, right = left.to(dtype), right.to(dtype)
    wide = {"rtol": 2e-2, "atol": 0.3} if dtype == HALF else {"rtol": 1e-5, "atol": 1e-5}
    for one, other in ((left, right), (left.t().contiguous().t(), right), (left, right.t().contiguous().t())):
        torch.testing.assert_close(matmul(one, other).float(), expected, **wide)
        out = torch.full(expected.shape, torch.nan)
        matmul_into(out, one, other)
        torch.testing.assert_close(out, expected, **wide)
        add_matmul(out, one, other)
        torch.testing.assert_close(out, 2 * expected, **wide)


@pytest.mark.usefixtures("any_matmul")
def test_where_autograd_is_to_follow_it_does():
    left, right = torch.randn(70, 4, requires_grad=True), torch.randn(4, 70)
    assert matmul(left, right).requires_grad


# In a process of its own: oneDNN's settings are read once.
SHAPES = """
import torch
from nbllm.nn.matmul import matmul
from nbllm.nn.compute.profile import onednn_matmul

weight = torch.ones(16, 16)
for rows in [*range(1, 101), 1]:
    onednn_matmul(torch.ones(rows, 16), weight)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_onednn_keeps_the_code_of_the_latest_shapes_alone():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")}
    for added, made in (
        ({}, 101),
        ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, 100),
    ):  # a person's own is kept
        done = subprocess.run(
            [sys.executable, "-c", SHAPES],
            env={**environment, "ONEDNN_VERBOSE": "all", **added},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.count("create:cache_miss") == made
