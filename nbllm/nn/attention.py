"""Self-attention with any number of key/value heads, positions, masks, cache and backend."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from nbllm.nn.attention_backends.dispatch import attend
from nbllm.nn.heads import split_heads
from nbllm.nn.hooks import keep_methods
from nbllm.nn.joined import JoinedLinears
from nbllm.nn.kv_cache import KVCache
from nbllm.nn.linear import Linear
from nbllm.nn.masks import Mask, with_bias
from nbllm.nn.normalization import make_norm
from nbllm.nn.positions import Places, Positions


class Source(NamedTuple):
    """What an encoder made of a text.

    Attributes:
        hidden: (batch, source, hidden), its last hidden states; None: the cache holds all keys and values of it.
        mask: Broadcastable to (batch, heads, query, source), as `attend` takes it; None: every token is visible.
    """

    hidden: Float[Tensor, "batch source hidden"] | None
    mask: Mask | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Heads, widths, biases and scale of an attention.

    Attributes:
        hidden_size: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key/value heads, each shared by num_heads / num_kv_heads query heads.
        head_dim: Width of a head.
        bias: Whether `query`, `key` and `value` have biases.
        output_bias: Whether `output` has one.
        scale: What the scores are multiplied by; None: 1 / sqrt(head_dim).
        softcap: Bounds the scores softly, to softcap * tanh(scores / softcap); 0: they are not bounded.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    bias: bool
    output_bias: bool
    scale: float | None = None
    softcap: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """What all layers of one forward pass share.

    Attributes:
        causal: Whether a query sees only keys up to its own position.
        mask: Broadcastable to (batch, heads, query, key), as `attend` takes it; None: every key is visible.
        scheme: How positions enter queries and keys; None: not in attention.
        positions: Of the queries.
        key_positions: Of all keys, those in the cache too.
        cache: Keys and values of earlier tokens, and in an encoder-decoder of the text that was read.
        source: The text that an encoder read, to be attended to by `CrossAttention`.
        backend: An attention backend's name or "auto".
    """

    causal: bool = True
    mask: Mask | None = None
    scheme: Positions | None = None
    positions: Places | None = None
    key_positions: Places | None = None
    cache: KVCache | None = None
    source: Source | None = None
    backend: str = "auto"


@keep_methods
class Attention(JoinedLinears):
    """Multi-head, grouped-query (num_kv_heads < num_heads) or multi-query (num_kv_heads = 1) attention.

    How many heads there are follows from the widths of `query`, `key` and `value`, so that a part of the heads, as
    tensor parallelism leaves it to each process, is computed like all of them. Attention weights are never stored
    by the forward pass.

    Args:
        shape: Its heads, widths, biases and scale.
        layer: Which layer of the model this is; the cache keeps layers apart by it.
        qk_norm: The normalization of each head's query and key, a name in `NORMS` and its epsilon; None: they are not
            normalized.
    """

    def __init__(
        self,
        shape: AttentionShape,
        *,
        layer: int,
        qk_norm: tuple[str, float] | None = None,
    ) -> None:
        super().__init__("query", "key", "value")
        self.head_dim, self.layer = shape.head_dim, layer
        self.scale = shape.head_dim**-0.5 if shape.scale is None else shape.scale
        self.softcap = shape.softcap
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.query = Linear(shape.hidden_size, queries, bias=shape.bias)
        self.key = Linear(shape.hidden_size, keys, bias=shape.bias)
        self.value = Linear(shape.hidden_size, keys, bias=shape.bias)
        self.output = Linear(queries, shape.hidden_size, bias=shape.output_bias)
        self.query_norm, self.key_norm = (
            None if qk_norm is None else make_norm(qk_norm[0], shape.head_dim, qk_norm[1]) for _ in range(2)
        )
        self.join()

    def project(
        self, x: Float[Tensor, "batch position hidden"], context: AttentionContext
    ) -> tuple[
        Float[Tensor, "batch head position head_dim"],
        Float[Tensor, "batch kv_head position head_dim"],
        Float[Tensor, "batch kv_head position head_dim"],
    ]:
        """Return the queries, keys and values of `x`; queries and keys normalized and rotated to their positions."""
        together = self.multiply_joined(x)
        if together is None:
            query, key, value = (
                layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
                for layer in (self.query, self.key, self.value)
            )
        else:
            heads = [len(layer.weight) // self.head_dim for layer in (self.query, self.key, self.value)]
            query, key, value = split_heads(together, heads, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if context.scheme is not None and context.positions is not None:
            query, key = context.scheme.rotate(query, key, context.positions)
        return query, key, value

    def mask(
        self, query: Float[Tensor, "batch head position head_dim"], context: AttentionContext
    ) -> Mask | None:
        """Return the context's mask, and in it what the position scheme adds to the scores of these queries."""
        scheme, mask = context.scheme, context.mask
        if scheme is None or not scheme.depends_on_queries:
            return mask
        assert context.positions is not None and context.key_positions is not None
        added = scheme.score(self.layer, query, context.positions, context.key_positions) * self.scale
        return with_bias(mask, added)

    def forward(
        self, x: Float[Tensor, "batch position hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch position hidden"]:
        """Attend from each position to those that it may see."""
        query, key, value = self.project(x, context)
        if context.cache is not None:
            key, value = context.cache.update(self.layer, key, value)
        gathered = attend(
            query,
            key,
            value,
            causal=context.causal,
            mask=self.mask(query, context),
            scale=self.scale,
            softcap=self.softcap,
            backend=context.backend,
        )
        out: Tensor = self.output(gathered.transpose(1, 2).flatten(2))
        return out
