"""Causal attention on the CPU with whole heads to a thread, by a compiled kernel."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbllm.nn.attention_backends import blocked
from nbllm.nn.attention_backends.registry import BACKENDS
from nbllm.nn.kernels import compiled, readable, run
from nbllm.nn.masks import Mask

# The backward pass needs the weights again. They are kept while they take at most so many times the memory of
# the queries; longer sequences compute them a second time.
_KEEP_WITHIN = 4


def serves(query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, causal: bool) -> bool:
    """Return whether the kernel computes this: float32 on the CPU, causal, as many queries as keys, no mask."""
    square = query.shape[2] == key.shape[2] > 1 and query.shape[3] == value.shape[3]
    ours = causal and mask is None and square and readable(query, key, value)
    return ours and compiled("attention") is not None


@BACKENDS.register("per_head")
def attend(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch kv_head key head_dim"],
    value: Float[Tensor, "batch kv_head key head_dim"],
    mask: Mask | None,
    causal: bool,
    scale: float,
) -> Float[Tensor, "batch head query head_dim"]:
    """Attend head by head; what the kernel does not compute goes to "blocked"."""
    if not serves(query, key, value, mask, causal) or query.numel() == 0:
        return blocked.attend(query, key, value, mask, causal, scale)
    out: Tensor = _PerHead.apply(query, key, value, scale)
    return out


class _PerHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        batch, num_heads, length, head_dim = query.shape
        # Laid out (batch, position, head, head_dim), as the output projection reads it.
        out = query.new_empty(batch, length, num_heads, head_dim).transpose(1, 2)
        elements = _elements_of_weights(length)
        keep = any(ctx.needs_input_grad) and elements <= _KEEP_WITHIN * length * head_dim
        kept = query.new_empty(batch * num_heads, elements) if keep else None
        _run("forward", query, key, value, scale, kept, (out,))
        ctx.save_for_backward(query, key, value, kept)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, kept = ctx.saved_tensors
        grads = blocked.empty_gradients(query, key)
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        _run("backward", query, key, value, ctx.scale, kept, (grad, *grads))
        return (*grads, None)


def _elements_of_weights(length: int) -> int:
    """Weights of a head below the diagonal, in whole blocks."""
    rows = _rows()
    return sum(
        (min(first + rows, length) - first) * min(first + rows, length) for first in range(0, length, rows)
    )


def _run(
    name: str, query: Tensor, key: Tensor, value: Tensor, scale: float, kept: Tensor | None, out: Any
) -> None:
    batch, num_heads, length, head_dim = query.shape
    num_kv_heads = key.shape[1]
    shares = min(torch.get_num_threads(), batch * num_kv_heads)
    scratch = query.new_empty(shares, 2 * _rows() * length)
    heads = [place for x in (query, key, value, *out) for place in (x.data_ptr(), *x.stride()[:3])]
    run(
        "attention", name, shares, batch, num_heads, num_kv_heads, length, head_dim, scale,
        0 if kept is None else kept.data_ptr(), 0 if kept is None else kept.shape[1],
        scratch.data_ptr(), scratch.shape[1], *heads,
    )  # fmt: skip


def _rows() -> int:
    """Rows of a block, as the kernel divides a head."""
    kernels = compiled("attention")
    assert kernels is not None
    return int(kernels.ROWS)
