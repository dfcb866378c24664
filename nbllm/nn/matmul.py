"""The dtype and the library in which matrices are multiplied fastest here, and matmuls by them."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from nbllm.nn.compute.decisions import current_choices
from nbllm.nn.compute.profile import onednn_matmul

# Elements of the largest matrix that oneDNN is given: it copies operands into a layout of its own and returns new
# memory, which for a large vocabulary's logits would be hundreds of megabytes. Binder has 2 GB.
MOST_FOR_ONEDNN = 1 << 23
# oneDNN keeps the code that it generates for each shape, some 0.3 MB: for 1,024 shapes by default, and answers, prompts
# and batches of varying length soon have so many. A training step of one length needs some twenty.
_ONEDNN_CODES = 64
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_ONEDNN_CODES))  # read when oneDNN is first used


def matmul_dtype(operand: Tensor, rows: int) -> torch.dtype:
    """Return the dtype in which to multiply `operand`, which has so many rows, by another matrix like it.

    A matmul of bfloat16 matrices adds up in float32 on every machine, so multiplying the same elements in float32
    gives the same result but for the order of summation. Where that is faster, conversions included, it is done:
    as the choices of the run say, else as those that follow from this machine's profile.
    """
    if operand.dtype != torch.bfloat16 or not _is_computed(operand):
        return operand.dtype
    fewest = current_choices().float32_matmuls_from
    return operand.dtype if fewest is None or rows < fewest else torch.float32


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return left right, of two matrices of one dtype.

    In float32 on the CPU, torch hands matmuls to BLAS. oneDNN, which comes with torch too, is about twice as fast on
    some processors; it is used where the choices say so, but not where autograd is to follow.
    """
    return onednn_matmul(left, right) if _is_for_onednn(left, right) else torch.mm(left, right)


def matmul_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Set `out` to left right, in its own dtype."""
    if out.dtype == left.dtype and not _is_for_onednn(left, right):
        torch.mm(left, right, out=out)
    else:
        out.copy_(matmul(left, right))


def add_matmul(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left right to `out`, in its own dtype."""
    if out.dtype == left.dtype and not _is_for_onednn(left, right):
        out.addmm_(left, right)
    else:
        out += matmul(left, right)


def _is_for_onednn(left: Tensor, right: Tensor) -> bool:
    if left.dtype != torch.float32 or not (_is_computed(left) and _is_computed(right)):
        return False
    if torch.is_grad_enabled() and (left.requires_grad or right.requires_grad):
        return False  # autograd does not know what oneDNN does; here it is asked for gradients of gradients
    if max(left.numel(), right.numel(), len(left) * right.shape[1]) > MOST_FOR_ONEDNN:
        return False
    fewest = current_choices().onednn_matmuls_from
    return fewest is not None and len(left) >= fewest and min(*left.shape, *right.shape) > 0


def _is_computed(operand: Tensor) -> bool:
    """Whether `operand` is a plain tensor of the CPU's, and not traced, fake or of another kind."""
    plain = type(operand) in (Tensor, nn.Parameter) and operand.device.type == "cpu"
    return plain and not torch.compiler.is_compiling()
