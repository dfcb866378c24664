"""Attention on the CPU by blocks of queries: plain batched matmuls over just the keys a block may see."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbllm.nn.attention_backends import eager, sdpa
from nbllm.nn.attention_backends.registry import BACKENDS
from nbllm.nn.masks import Mask
from nbllm.nn.matmul import matmul_dtype

# Queries in one block. Fewer waste less above the diagonal, more make better matmuls; and the scores of one
# sequence's block, in all its heads, should stay in a core's cache.
_ROWS = 128
_ROWS_OF_LONG = 64
_LONG = 768
# Scores computed at a time: 8 MB of float32.
_SCORES = 1 << 21
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


class _Part(NamedTuple):
    """Some sequences of the batch, in the dtype of their matmuls: (sequence * head, position, head_dim).

    All is contiguous, and so are the results of matmuls: only then does torch give a batch of matmuls to the
    library as a whole. Copying to and from the places where they belong costs little.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float

    def queries(self, block: _Block, heads: Tensor) -> Tensor:
        """A block of `heads`: one row of matmuls a key/value head, the queries of all that share it."""
        if len(heads) == len(self.key):
            return heads[:, block.first : block.last]
        shared = heads.view(len(self.key), -1, *heads.shape[1:])
        return shared[:, :, block.first : block.last].flatten(1, 2)

    def weights(self, block: _Block, future: Tensor | None, out: Tensor | None = None) -> Tensor:
        """(sequence * kv_head, head * query, key): the weight that each query gives each key; rows sum to one."""
        rows = block.last - block.first
        query = self.queries(block, self.query)
        scores = query.new_empty(*query.shape[:2], block.keys) if out is None else out
        _matmul(scores, query, self.key[:, : block.keys].transpose(1, 2), scale=self.scale)
        if future is not None:
            scores.view(-1, rows, block.keys)[:, :, block.keys - rows :] += future
        if self.mask is not None:
            mask = self.mask[:, :, block.first : block.last, : block.keys]
            by_head = scores.view(mask.shape)
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
        batch, num_heads, num_queries, head_dim = query.shape
        blocks = _blocks(num_queries, key.shape[2], causal)
        dtype = matmul_dtype(query, query.shape[2])
        if dtype == query.dtype:  # these copies then serve the backward pass; the projection is let go
            query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        futures = [_future(block, query.new_empty(0, dtype=dtype)) if causal else None for block in blocks]
        kept = _workspace_for_weights(query, key, blocks) if any(ctx.needs_input_grad) else []
        # Laid out (batch, position, head, head_dim), as the output projection reads it.
        out = query.new_empty(batch, num_queries, num_heads, head_dim).transpose(1, 2)
        for sequences in _parts(query, blocks):
            part = _part((query, key, value), mask, sequences, scale, dtype)
            for place, block in enumerate(blocks):
                keep = kept[place][sequences].flatten(0, 1) if kept else None
                direct = keep if keep is not None and keep.dtype == dtype else None
                weights = part.weights(block, futures[place], direct)
                if keep is not None and direct is None:
                    keep.copy_(weights)
                place_of_out = out[sequences, :, block.first : block.last]
                place_of_out.copy_(torch.bmm(weights, part.value[:, : block.keys]).view(place_of_out.shape))
        ctx.save_for_backward(query, key, value, mask, *kept)
        ctx.blocks, ctx.futures, ctx.scale, ctx.dtype = blocks, futures, scale, dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *kept = ctx.saved_tensors
        grads = empty_gradients(query, key)
        with torch.autocast(query.device.type, enabled=False):
            for sequences in _parts(query, ctx.blocks):
                part = _part((query, key, value), mask, sequences, ctx.scale, ctx.dtype)
                own = [weights[sequences].flatten(0, 1) for weights in kept]
                grad_out = _heads(grad[sequences], ctx.dtype)
                _backward_of_part(ctx, part, own, grad_out, [by[sequences] for by in grads])
        return (*grads, None, None, None)


def _parts(query: Tensor, blocks: list[_Block]) -> list[slice]:
    """Cut the batch so that the scores of a block are few enough to stay near, and enough for all threads."""
    widest = max((block.last - block.first) * block.keys for block in blocks)
    size = max(1, _SCORES // (query.shape[1] * widest))
    return [slice(first, first + size) for first in range(0, len(query), size)]


def _heads(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(sequence, head, position, head_dim) -> (sequence * head, position, head_dim), contiguous."""
    return x.to(dtype, memory_format=torch.contiguous_format).flatten(0, 1)


def _part(
    heads: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    sequences: slice,
    scale: float,
    dtype: torch.dtype,
) -> _Part:
    query, key, value = heads
    own = None if mask is None else mask[sequences]
    return _Part(
        _heads(query[sequences], dtype),
        _heads(key[sequences], dtype),
        _heads(value[sequences], dtype),
        own,
        scale,
    )


def _workspace_for_weights(query: Tensor, key: Tensor, blocks: list[_Block]) -> list[Tensor]:
    """Return a tensor a block, (batch, kv_head, head * query, key), or none where they would be too large."""
    batch, num_heads, num_kv_heads = query.shape[0], query.shape[1], key.shape[1]
    if not _num_kept(blocks, query.shape[2], query.shape[3]):
        return []
    groups = num_heads // num_kv_heads
    return [
        query.new_empty(batch, num_kv_heads, groups * (block.last - block.first), block.keys)
        for block in blocks
    ]


def num_kept_weights(num_queries: int, num_keys: int, head_dim: int, *, causal: bool) -> int:
    """Return how many attention weights of a head are kept for the backward pass."""
    return _num_kept(_blocks(num_queries, num_keys, causal), num_queries, head_dim)


def _num_kept(blocks: list[_Block], num_queries: int, head_dim: int) -> int:
    elements = sum((block.last - block.first) * block.keys for block in blocks)
    return elements if elements <= _KEEP_WITHIN * num_queries * head_dim else 0


def empty_gradients(query: Tensor, key: Tensor) -> list[Tensor]:
    """Return empty gradients of query, key and value, to be filled.

    They are views of one buffer (batch, position, head, head_dim) when there are as many queries as keys; the
    backward pass of `split_heads` then has nothing to copy.
    """
    heads = [query.shape[1], key.shape[1], key.shape[1]]
    if query.shape[2] == key.shape[2]:
        together = query.new_empty(query.shape[0], query.shape[2], sum(heads), query.shape[3])
        return [part.transpose(1, 2) for part in together.split(heads, dim=2)]
    return [torch.empty_like(query), torch.empty_like(key), torch.empty_like(key)]


def _backward_of_part(ctx: Any, part: _Part, kept: list[Tensor], grad: Tensor, out: list[Tensor]) -> None:
    """Fill `out`, the gradients of query, key and value of a part, given that of its output."""
    query, key, value, _, scale = part
    grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
    # From the last block on, which sees all keys and so writes every row; those before it add.
    for place in reversed(range(len(ctx.blocks))):
        block: _Block = ctx.blocks[place]
        add = place < len(ctx.blocks) - 1
        keys = slice(0, block.keys)
        weights = kept[place].to(query.dtype) if kept else part.weights(block, ctx.futures[place])
        grad_out = part.queries(block, grad)
        _matmul(grad_value[:, keys], weights.transpose(1, 2), grad_out, add=add)
        grad_weights = torch.bmm(grad_out, value[:, keys].transpose(1, 2))
        grad_scores = torch.ops.aten._softmax_backward_data.out(
            grad_weights, weights, -1, weights.dtype, grad_input=grad_weights
        )
        grad_query = torch.empty_like(grad_out)
        _matmul(grad_query, grad_scores, key[:, keys], scale=scale)
        place_of_query = out[0][:, :, block.first : block.last]
        place_of_query.copy_(grad_query.view(place_of_query.shape))
        _matmul(
            grad_key[:, keys], grad_scores.transpose(1, 2), part.queries(block, query), scale=scale, add=add
        )
    out[1].copy_(grad_key.view(out[1].shape))
    out[2].copy_(grad_value.view(out[2].shape))


def _matmul(out: Tensor, left: Tensor, right: Tensor, *, scale: float = 1.0, add: bool = False) -> None:
    """Set `out` to scale * left right, or add that to it."""
    if add:
        out.add_(torch.bmm(left, right), alpha=scale)
    else:
        torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)
