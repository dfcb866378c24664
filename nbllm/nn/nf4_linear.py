"""A linear layer whose weights are held in 4 bits (NF4) and are multiplied as ordinary numbers."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nbllm.core.errors import UserError
from nbllm.nn.hooks import keep_methods
from nbllm.nn.linear import Linear, linear
from nbllm.nn.nf4 import Quantized, dequantize, quantize

BUFFERS = ("codes", "scales", "group_scales")


@keep_methods
class NF4Linear(nn.Module):
    """x weight^T + bias, where the weight is held in NF4; it gets no gradient, x does.

    Each pass, forward and backward, makes the weights of one layer at a time out of their 4 bits.

    Attributes:
        in_features: Width of x.
        out_features: Width of the result.
        block_size: Weights that share a scale.
    """

    in_features: int
    out_features: int
    block_size: int
    codes: Tensor
    scales: Tensor
    group_scales: Tensor
    like: Tensor  # empty; of the dtype that the weights would have
    bias: nn.Parameter | None

    @property
    def weight(self) -> Float[Tensor, "output input"]:
        """The weights, made anew at each look."""
        held = Quantized(self.codes, self.scales, self.group_scales)
        shape = (self.out_features, self.in_features)
        return dequantize(held, shape, block_size=self.block_size, dtype=self.like.dtype)

    @property
    def num_weights(self) -> int:
        """How many weights it has."""
        return self.in_features * self.out_features

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        return sum(getattr(self, name).nbytes for name in BUFFERS)

    def forward(self, x: Float[Tensor, "... input"]) -> Float[Tensor, "... output"]:
        """Return x weight^T + bias."""
        out: Tensor = _Multiply.apply(x, self)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def extra_repr(self) -> str:
        """Return what is printed of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, 4 bits (NF4)"


class _Multiply(torch.autograd.Function):
    """Keeps nothing but the layer between both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return linear(grad, ctx.layer.weight.to(grad.dtype).t()), None


def hold_in_nf4(layer: nn.Module, *, block_size: int, double: bool) -> None:
    """Hold a linear layer's weights in NF4 from now on; it stays the same object.

    Raises:
        UserError: A weight is not finite, or the block size is odd.
    """
    if type(block_size) is not int or block_size < 2 or block_size % 2:
        raise UserError(f"block_size must be an even number above 0, not {block_size!r}.")
    weight = layer.get_parameter("weight")
    if not weight.is_meta and not weight.isfinite().all():
        raise UserError("A weight is not finite, and cannot be quantized.")
    held = quantize(weight, block_size=block_size, double=double)
    put_nf4(layer, [held.codes, held.scales, held.group_scales], block_size)


def put_nf4(layer: nn.Module, tensors: list[Tensor], block_size: int) -> None:
    """Let a linear layer hold these codes and scales instead of its weights."""
    layer.register_buffer("like", layer.get_parameter("weight").detach().new_empty(0), persistent=False)
    del layer._parameters["weight"]
    for name, tensor in zip(BUFFERS, tensors, strict=True):
        layer.register_buffer(name, tensor)
    plain: Any = layer
    plain.__class__ = NF4Linear
    plain.block_size = block_size


def release_from_nf4(layer: nn.Module) -> None:
    """Let a layer hold its weights as ordinary numbers again, with the values that they have in 4 bits."""
    assert isinstance(layer, NF4Linear)
    weight, bias = layer.weight, layer._parameters.pop("bias")
    for name in (*BUFFERS, "like"):
        del layer._buffers[name]
    del layer.block_size
    plain: nn.Module = layer
    plain.__class__ = Linear
    plain.register_parameter("weight", nn.Parameter(weight))
    plain.register_parameter("bias", bias)
