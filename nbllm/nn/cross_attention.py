"""Attention from a decoder's tokens to the text that an encoder has read."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from nbllm.nn.attention import AttentionContext, AttentionShape
from nbllm.nn.attention_backends.dispatch import attend
from nbllm.nn.cross_attention_cache import CrossAttentionCache
from nbllm.nn.heads import split_heads
from nbllm.nn.hooks import keep_methods
from nbllm.nn.joined import JoinedLinears
from nbllm.nn.linear import Linear


@keep_methods
class CrossAttention(JoinedLinears):
    """Queries of a decoder's tokens, keys and values of the encoder's last hidden states.

    Positions play no part in it. With a cache, keys and values are computed once for a text, not for every token.

    Args:
        shape: Its heads, widths, biases and scale.
        layer: Which layer of the decoder this is; the cache keeps layers apart by it.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3.
    """

    def __init__(self, shape: AttentionShape, *, layer: int) -> None:
        super().__init__("key", "value")
        self.head_dim, self.layer = shape.head_dim, layer
        self.scale = shape.head_dim**-0.5 if shape.scale is None else shape.scale
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.query = Linear(shape.hidden_size, queries, bias=shape.bias)
        self.key = Linear(shape.hidden_size, keys, bias=shape.bias)
        self.value = Linear(shape.hidden_size, keys, bias=shape.bias)
        self.output = Linear(queries, shape.hidden_size, bias=shape.output_bias)
        self.join()

    def project(
        self, x: Float[Tensor, "batch position hidden"], context: AttentionContext
    ) -> tuple[
        Float[Tensor, "batch head position head_dim"],
        Float[Tensor, "batch kv_head source head_dim"],
        Float[Tensor, "batch kv_head source head_dim"],
    ]:
        """Return the queries of `x`, and the keys and values of the text in `context.source`."""
        query = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return query, *self._keys_and_values(context)

    def forward(
        self, x: Float[Tensor, "batch position hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch position hidden"]:
        """Attend from each position to the real tokens of the text in `context.source`."""
        assert context.source is not None
        query, key, value = self.project(x, context)
        mask = context.source.mask
        gathered = attend(
            query, key, value, causal=False, mask=mask, scale=self.scale, backend=context.backend
        )
        out: Tensor = self.output(gathered.transpose(1, 2).flatten(2))
        return out

    def _keys_and_values(
        self, context: AttentionContext
    ) -> tuple[
        Float[Tensor, "batch kv_head source head_dim"], Float[Tensor, "batch kv_head source head_dim"]
    ]:
        """Return the keys and values of the source: the cache's, or those of its hidden states, which it then keeps."""
        assert context.source is not None
        source, cache = context.source.hidden, context.cache
        if source is None:
            assert isinstance(cache, CrossAttentionCache)
            return cache.source(self.layer)
        together = self.multiply_joined(source)
        if together is None:
            key, value = (
                layer(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
                for layer in (self.key, self.value)
            )
        else:
            heads = [len(layer.weight) // self.head_dim for layer in (self.key, self.value)]
            key, value = split_heads(together, heads, self.head_dim)
        if isinstance(cache, CrossAttentionCache):
            cache.keep_source(self.layer, key, value)
        return key, value
