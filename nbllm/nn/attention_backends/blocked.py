"""Attention on the CPU by blocks of queries: plain batched products over just the keys a block may see."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.nn.attention_backends import eager, sdpa
from nbllm.nn.attention_backends.registry import BACKENDS
from nbllm.nn.masks import Mask
from nbllm.nn.products import product_dtype

# Queries in one block. Fewer waste less above the diagonal, more make better products; and the scores of one
# sequence's block, in all its heads, should stay in a core's cache.
_ROWS = 128
_ROWS_OF_LONG = 64
_LONG = 768
# The backward pass needs the weights again. They are kept while they take at most so many times the memory of
# the queries; longer sequences compute them a second time.
_KEEP_WITHIN = 4


@BACKENDS.register("blocked")
def attend(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch kv_head key head_dim"],
    value: Float[Tensor, "batch kv_head key head_dim"],
    mask: Mask | None,
    causal: bool,
    scale: float,
) -> Float[Tensor, "batch head query head_dim"]:
    """Attend sequence by sequence and block by block, with a backward pass of its own.

    A single query has no blocks and goes to the fused kernel; a mask that is itself trained goes to the
    reference.
    """
    if query.shape[2] == 1:
        return sdpa.attend(query, key, value, mask, causal, scale)
    if mask is not None:
        if mask.requires_grad:
            return eager.attend(query, key, value, mask, causal, scale)
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    with torch.autocast(query.device.type, enabled=False):
        out: Tensor = _Blocked.apply(query, key, value, mask, causal, scale)
    return out


class _Block(NamedTuple):
    """Queries `first` to `last`, which see the first `keys` keys."""

    first: int
    last: int
    keys: int


def _blocks(num_queries: int, num_keys: int, causal: bool) -> list[_Block]:
    rows = _ROWS if num_keys < _LONG else _ROWS_OF_LONG
    past = num_keys - num_queries
    return [
        _Block(first, last, past + last if causal else num_keys)
        for first in range(0, num_queries, rows)
        for last in (min(first + rows, num_queries),)
    ]


def _future(block: _Block, like: Tensor) -> Tensor:
    """What hides the future in the square at the block's end: 0 where a query may see a key, else -inf."""
    rows = block.last - block.first
    return torch.full((rows, rows), -torch.inf, dtype=like.dtype, device=like.device).triu(1)


def _grouped(heads: Tensor, num_kv_heads: int) -> Tensor:
    """(head, query, x) -> (kv_head, queries of all heads that share it, x); a view when none is shared."""
    if heads.shape[0] == num_kv_heads:
        return heads
    return heads.reshape(num_kv_heads, -1, heads.shape[-1])


def _product_into(out: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """Set out = scale * left right; `out` may have more, shared heads, or another format."""
    if out.shape[0] == left.shape[0] and out.dtype == left.dtype:
        torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)
    else:
        product = left @ right
        if scale != 1.0:
            product *= scale
        out.copy_(product.view(out.shape))


class _Sequence(NamedTuple):
    """One sequence of the batch, in the format of its products: (head or kv_head, position, head_dim)."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scale: float

    def weights(self, block: _Block, future: Tensor) -> Tensor:
        """(kv_head, head * query of the block, key): what each query gives each key; rows sum to one."""
        num_heads, rows = self.query.shape[0], block.last - block.first
        query = _grouped(self.query[:, block.first : block.last], len(self.key))
        scores = query.new_empty(*query.shape[:2], block.keys)
        _product_into(scores, query, self.key[:, : block.keys].transpose(1, 2), self.scale)
        by_head = scores.view(num_heads, rows, block.keys)
        if self.causal:
            by_head[:, :, block.keys - rows :] += future
        if self.mask is not None:
            mask = self.mask[:, block.first : block.last, : block.keys]
            if mask.dtype == torch.bool:
                by_head.masked_fill_(~mask, -torch.inf)
            else:
                by_head += mask
        return torch.softmax(scores, -1, out=scores)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Tensor:
        blocks = _blocks(query.shape[2], key.shape[2], causal)
        numbers = query.shape[0] * query.shape[1] * sum((b.last - b.first) * b.keys for b in blocks)
        keep = any(ctx.needs_input_grad) and numbers <= _KEEP_WITHIN * query.numel()
        dtype = product_dtype(query)
        # Laid out (batch, position, head, head_dim), as the output projection reads it.
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        futures = [_future(block, query.new_empty(0, dtype=dtype)) if causal else query for block in blocks]
        kept = []
        for i in range(len(query)):
            sequence = _sequence(query, key, value, mask, i, dtype, causal, scale)
            for block, future in zip(blocks, futures, strict=True):
                weights = sequence.weights(block, future)
                _product_into(out[i, :, block.first : block.last], weights, sequence.value[:, : block.keys])
                if keep:
                    kept.append(weights.to(query.dtype))
        ctx.save_for_backward(query, key, value, mask, *kept)
        ctx.blocks, ctx.futures, ctx.dtype, ctx.causal, ctx.scale = blocks, futures, dtype, causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *kept = ctx.saved_tensors
        grads = _empty_gradients(query, key)
        with torch.autocast(query.device.type, enabled=False):
            for i in range(len(query)):
                sequence = _sequence(query, key, value, mask, i, ctx.dtype, ctx.causal, ctx.scale)
                own = kept[i * len(ctx.blocks) : (i + 1) * len(ctx.blocks)]
                _backward_of_sequence(ctx, sequence, own, grad[i].to(ctx.dtype), [part[i] for part in grads])
        return (*grads, None, None, None)


def _sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    index: int,
    dtype: torch.dtype,
    causal: bool,
    scale: float,
) -> _Sequence:
    own = None if mask is None else mask[index]
    return _Sequence(query[index].to(dtype), key[index].to(dtype), value[index].to(dtype), own, causal, scale)


def _empty_gradients(query: Tensor, key: Tensor) -> list[Tensor]:
    """Return room for the gradients by query, key and value.

    They are views of one buffer (batch, position, head, head_dim) when there are as many queries as keys.
    """
    heads = [query.shape[1], key.shape[1], key.shape[1]]
    if query.shape[2] == key.shape[2]:
        room = query.new_empty(query.shape[0], query.shape[2], sum(heads), query.shape[3])
        return [part.transpose(1, 2) for part in room.split(heads, dim=2)]
    return [torch.empty_like(query), torch.empty_like(key), torch.empty_like(key)]


def _backward_of_sequence(
    ctx: Any, sequence: _Sequence, kept: list[Tensor], grad: Tensor, out: list[Tensor]
) -> None:
    """Fill `out`, one sequence's gradients by query, key and value, given that by its output."""
    query, key, value, num_kv_heads = sequence.query, sequence.key, sequence.value, len(sequence.key)
    same = out[0].dtype == ctx.dtype
    by_key, by_value = out[1:] if same else (torch.empty_like(key), torch.empty_like(value))
    # From the last block on, which sees all keys and so writes every row; those before it add.
    for place in reversed(range(len(ctx.blocks))):
        block: _Block = ctx.blocks[place]
        rows, keys = slice(block.first, block.last), slice(0, block.keys)
        weights = kept[place].to(ctx.dtype) if kept else sequence.weights(block, ctx.futures[place])
        by_out = _grouped(grad[:, rows], num_kv_heads)
        beta = 0.0 if place == len(ctx.blocks) - 1 else 1.0
        by_value[:, keys].baddbmm_(weights.transpose(1, 2), by_out, beta=beta)
        by_weights = torch.bmm(by_out, value[:, keys].transpose(1, 2))
        by_scores = torch.ops.aten._softmax_backward_data.out(
            by_weights, weights, -1, ctx.dtype, grad_input=by_weights
        )
        _product_into(out[0][:, rows], by_scores, key[:, keys], sequence.scale)
        grouped = _grouped(query[:, rows], num_kv_heads)
        by_key[:, keys].baddbmm_(by_scores.transpose(1, 2), grouped, beta=beta, alpha=sequence.scale)
    if not same:
        out[1].copy_(by_key)
        out[2].copy_(by_value)
