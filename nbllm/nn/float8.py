"""Linear layers multiplied in 8-bit floating point, at twice bfloat16's rate where the device has it built in."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.nn.hooks import keep_methods
from nbllm.nn.linear import Linear

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2  # gradients need the range, the rest the digits
_MULTIPLE = 16  # of which the sizes of float8 matmuls are


@keep_methods
class Float8Linear(Linear):
    """`Linear` whose three matmuls, forward and backward, have operands of 8 bits, each scaled to its largest element.

    Parameters and what comes in and goes out stay as they are; sums are in float32.

    Source: Micikevicius et al. 2022, arXiv:2209.05433, section 3.
    """

    def forward(self, x: Float[Tensor, "... input"]) -> Float[Tensor, "... output"]:
        """Return x weight^T + bias."""
        rows = x.reshape(-1, x.shape[-1])
        # The gradient of the weight sums over rows, whose number must be a multiple as well.
        padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _MULTIPLE))
        out: Tensor = _Float8Linear.apply(padded, self.weight)
        out = out[: len(rows)].view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def multiply_in_float8(module: nn.Module) -> int:
    """Let the linear layers within a module multiply in float8, in place; return how many do.

    A layer whose sizes are not multiples of 16, or that was replaced or wrapped, stays as it is.
    """
    layers = [
        layer
        for layer in module.modules()
        if type(layer) is Linear and not any(size % _MULTIPLE for size in layer.weight.shape)
    ]
    for layer in layers:
        layer.__class__ = Float8Linear
    return len(layers)


def check_float8(device: str) -> None:
    """Check that matrices can be multiplied in float8 on a device, by doing so.

    Raises:
        UserError: They cannot.
    """
    try:
        x = torch.ones(_MULTIPLE, _MULTIPLE, device=device)
        _multiply(_scaled(x, FORWARD), _scaled(x, FORWARD), x.dtype)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"Matrices cannot be multiplied in float8 on {device!r}: {str(error).splitlines()[0]}",
            where="precision",
            hint='Use precision="bfloat16".',
        ) from None


_Scaled = tuple[Tensor, Tensor]


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        inputs, matrix = _scaled(x, FORWARD), _scaled(weight, FORWARD)
        ctx.save_for_backward(*inputs, *matrix)
        ctx.dtypes = x.dtype, weight.dtype
        return _multiply(inputs, _transposed(matrix), x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        wants_x, wants_weight = ctx.needs_input_grad
        scaled = _scaled(grad, BACKWARD)
        return (
            _multiply(scaled, (weight, weight_scale), of_x) if wants_x else None,
            _multiply(_transposed(scaled), (x, x_scale), of_weight) if wants_weight else None,
        )


def _scaled(x: Tensor, dtype: torch.dtype) -> _Scaled:
    """Return x in float8, and the float32 scalar by which it is multiplied to be x again."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=1e-12) / largest
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def _transposed(x: _Scaled) -> _Scaled:
    return x[0].t(), x[1]


def _multiply(left: _Scaled, right: _Scaled, dtype: torch.dtype) -> Tensor:
    """Return the product of two scaled matrices; the first is laid out by rows, the second by columns."""
    return torch._scaled_mm(
        left[0].contiguous(),
        right[0].t().contiguous().t(),
        scale_a=left[1],
        scale_b=right[1],
        out_dtype=dtype,
    )
