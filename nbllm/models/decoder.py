"""The causal decoder: a stack of blocks that predicts the next token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.models.block import Block
from nbllm.models.config import ModelConfig, shape_for_positions
from nbllm.models.network import (
    NETWORKS,
    CausalNetwork,
    Row,
    describe_parts,
    empty_embedding,
    of_blocks,
    with_norms,
)
from nbllm.nn.activations import ACTIVATIONS
from nbllm.nn.attention import AttentionContext
from nbllm.nn.hooks import keep_methods
from nbllm.nn.kv_cache import KVCache
from nbllm.nn.linear import Linear
from nbllm.nn.masks import causal_mask, padded_causal_mask, sliding_window_mask, with_bias
from nbllm.nn.mixture_of_experts import note_padding
from nbllm.nn.normalization import NORMS, make_norm
from nbllm.nn.positions import Places, Positions, check_length, make_positions
from nbllm.nn.rereading_cache import RereadingCache


@NETWORKS.register("decoder")
@keep_methods
class Decoder(CausalNetwork):
    """A causal language model; arguments as `Network` takes them."""

    kind = "a causal decoder, which predicts the next token"
    takes_mask = True
    fixed: ClassVar = {
        "token_types": 0, "num_layer_groups": 0, "mask_head": False, "rescale_every": 0,
        "pooler": False, "num_decoder_layers": 0,
    }  # fmt: skip

    def add_parts(self, config: ModelConfig) -> None:
        """Add embedding, positions, blocks, the last normalization and the head."""
        size = config.embedding_size or config.hidden_size
        self.embedding = empty_embedding(config.vocab_size, size)
        self.projection = Linear(size, config.hidden_size, bias=False) if config.embedding_size else None
        self.positions = make_positions(
            config.positions, shape_for_positions(config, causal=not self.reads_prefix)
        )
        self.local_positions: Positions | None = None  # of the layers with a sliding window; None: the same
        if config.rope_local_theta:
            local = config.replace(rope_theta=config.rope_local_theta, rope_scaling=None)
            self.local_positions = make_positions(
                config.positions, shape_for_positions(local, causal=not self.reads_prefix)
            )
        self.embedding_norm = (
            make_norm(config.norm, config.hidden_size, config.norm_eps) if config.embedding_norm else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        is_post = config.norm_placement == "post"
        self.norm = None if is_post else make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.head_projection = Linear(config.hidden_size, size, bias=False) if config.embedding_size else None
        has_head = not (config.tie_embeddings or config.score_head)
        self.head = nn.Linear(size, config.vocab_size, bias=config.head_bias) if has_head else None
        self.score = Linear(size, 1, bias=False) if config.score_head else None
        if config.score_head:
            self.can = frozenset({"embed", "reward"})
            self.kind = "a causal decoder with a head that scores a text, and none that predicts tokens"

    def forward(
        self,
        input_ids: Int[Tensor, "batch position"],
        *,
        cache: KVCache | None = None,
        positions: Int[Tensor, "batch position"] | None = None,
        attention_mask: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"] | None = None,
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Return the logits of the next token at each position; arguments as `hidden` takes them."""
        hidden = self.hidden(input_ids, cache=cache, positions=positions, attention_mask=attention_mask)
        return self.logits(hidden)

    def hidden(
        self,
        input_ids: Int[Tensor, "batch position"],
        *,
        cache: KVCache | None = None,
        positions: Int[Tensor, "batch position"] | None = None,
        attention_mask: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"] | None = None,
        visible: Bool[Tensor, "#batch 1 position key"] | None = None,
        span_positions: Int[Tensor, "batch position"] | None = None,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the residual stream after the final normalization and projection, which the head reads.

        Args:
            input_ids: (batch, position) token ids.
            cache: Keys and values of the tokens before these; these are added to it.
            positions: (batch, position), the place of each token in its sequence. None: counted from the
                tokens held in the cache, and over the real tokens alone where there is a mask.
            attention_mask: (batch, key), nonzero at real tokens, zero at padding; the keys are those of the
                cache and then these. None: all are real.
            visible: (batch, 1, position, key), True where a token sees a key; each must see one. None: those before it
                and itself, padding excepted.
            span_positions: (batch, position), the place of each token in the blank that it fills, from 1, and 0 where
                it fills none; for two-dimensional positions. None: none fills a blank.

        Raises:
            UserError: More tokens than a model with learned positions has positions, or than the cache holds; or
                `span_positions`, and the model's positions have one dimension.
        """
        past = 0 if cache is None else cache.length
        count = input_ids.shape[1]
        if isinstance(cache, RereadingCache):
            tokens = cache.with_new(input_ids)
            if self._must_reread(cache, count):
                if past and positions is not None and attention_mask is None:
                    raise UserError("With dynamic scaling of positions, a cache counts them by itself.")
                cache.advance_without_keys(count)
                return self.hidden(tokens, attention_mask=attention_mask)[:, past:]
        of_keys: Tensor | None = None
        if attention_mask is not None:
            # Padding has the row before the first position's, where there is one; it reaches no token either way.
            lowest = -1 if self.config.position_offset else 0
            of_keys = (attention_mask.long().cumsum(1) - 1).clamp_(min=lowest)
            positions = of_keys[:, past:] if positions is None else positions
        elif positions is not None:  # those in a cache were counted from 0
            before = torch.arange(past, device=positions.device).expand(len(positions), -1)
            of_keys = torch.cat((before, positions), dim=1) if past else positions
        where = self._places(past, count, positions, span_positions)
        x = self.begin_stream(input_ids, where)
        mask: Tensor | None = visible
        if visible is None and attention_mask is not None:
            mask = padded_causal_mask(attention_mask, count)
        seen = Places(slice(0, past + count) if of_keys is None else of_keys, where.length)
        full, windowed = self._contexts(where, seen, mask, cache, x)
        note_padding(None if attention_mask is None else attention_mask[:, past:])
        for layer, block in self.numbered_blocks():
            x = block(x, full if self._sees_all(layer) else windowed)
        if cache is not None:
            cache.advance(count)
        return self.finish_stream(x)

    def begin_stream(
        self, input_ids: Int[Tensor, "batch position"], where: Places
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the residual stream that the first block reads."""
        x = self.positions.embed(self.embed_tokens(input_ids), where)
        out: Tensor = x if self.embedding_norm is None else self.embedding_norm(x)
        return out

    def numbered_blocks(self) -> Iterable[tuple[int, nn.Module]]:
        """Return the blocks in their order, each with its number."""
        return enumerate(self.blocks)

    def finish_stream(self, x: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch position _"]:
        """Return what the head reads of the residual stream after the last block."""
        for last in (self.norm, self.head_projection):
            x = x if last is None else last(x)
        return x * self.config.hidden_size**-0.5 if self.config.scale_head else x

    def embed_tokens(
        self, input_ids: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the embeddings of tokens, projected and scaled where the configuration says so."""
        x: Tensor = self.embedding(input_ids)
        if self.projection is not None:
            x = self.projection(x)
        if self.config.scale_embedding:  # the factor is rounded to the weights' dtype, as Gemma's authors do
            x = x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device=x.device)
        return x

    def _contexts(
        self, where: Places, seen: Places, mask: Tensor | None, cache: KVCache | None, x: Tensor
    ) -> tuple[AttentionContext, AttentionContext]:
        """Return what the layers that see all keys share, and those with a sliding window.

        Args:
            where: Positions of the queries.
            seen: Of all keys.
            mask: Which keys a query sees; None: those up to its own position.
            cache: As in `hidden`.
            x: What the first layer reads.
        """
        bias = self.positions.bias(where, seen)
        bias = None if bias is None else bias.to(x)
        full = AttentionContext(
            causal=mask is None,
            mask=with_bias(mask, bias),
            scheme=self.positions,
            positions=where,
            key_positions=seen,
            cache=cache,
            backend=self.attention_backend,
        )
        window, count = self.config.sliding_window, x.shape[1]
        if not window:
            return full, full
        windowed = full
        if self.local_positions is not None:
            windowed = dataclasses.replace(full, scheme=self.local_positions)
        keys = seen.on(x.device)
        if keys.shape[1] > window:
            near = sliding_window_mask(keys[:, -count:], keys, window)
            near = near & (causal_mask(count, keys.shape[1], device=x.device) if mask is None else mask)
            windowed = dataclasses.replace(windowed, causal=False, mask=with_bias(near, bias))
        return full, windowed

    def _sees_all(self, layer: int) -> bool:
        """Return whether the tokens of a layer see all keys, and not a sliding window of them."""
        interval = self.config.full_attention_interval
        return bool(interval) and (layer + 1) % interval == 0

    def _must_reread(self, cache: RereadingCache, count: int) -> bool:
        """Return whether the keys and values in the cache do not hold with `count` more tokens."""
        scaling = self.config.rope_scaling
        assert scaling is not None
        return scaling.depends_on_length(cache.length + count) or not cache.holds_all

    def _places(self, past: int, count: int, positions: Tensor | None, spans: Tensor | None) -> Places:
        """Return where `count` tokens after `past` others stand; refuse what the position scheme cannot number."""
        length = check_length(self.positions, past + count, positions)
        if spans is not None and not self.positions.has_spans:
            raise UserError(
                f"This model has {self.positions.label}, which have no place for positions in blanks.",
                hint='Make it with positions="learned_2d".',
            )
        return Places(slice(past, past + count) if positions is None else positions, length, spans)

    def describe(self) -> list[Row]:
        """Return embedding, positions, the parts of all blocks together, last normalization and head."""
        config = self.config
        heads = f"{config.num_heads} heads of {config.head_dim}"
        if config.num_kv_heads != config.num_heads:
            heads += f", {config.num_kv_heads} key/value heads"
        if config.qk_norm:
            heads += ", queries and keys normalized"
        if config.attention_softcap:
            heads += f", scores bounded at {config.attention_softcap:g}"
        if config.sliding_window:
            heads += f", a window of {config.sliding_window}"
            if config.full_attention_interval:
                heads += f" except in one of {config.full_attention_interval} layers"
        norm, activation = NORMS[config.norm].label, ACTIVATIONS[config.activation].label
        beside = ", in parallel to attention" if config.parallel_block else ""
        many, gate = f"{config.num_layers} x ", "gated " if config.gated else ""
        inner = f"{gate}feed-forward: {activation}, {config.intermediate_size} wide"
        if config.num_experts:
            inner = f"{config.num_experts} experts, {config.experts_per_token} for each token, of {inner}"
        feed_forward = f"the same + {inner}" if config.shared_norm else with_norms(config, inner)
        parts: list[tuple[str, str, list[nn.Module | None]]] = [
            ("embedding", "token embedding", [self.embedding]),
            ("projection", "from the embedding's width", [self.projection]),
            ("positions", self.positions.label, [self.positions]),
            ("embedding_norm", norm, [self.embedding_norm]),
            (
                "blocks.*.attention",
                many + with_norms(config, f"attention: {heads}"),
                of_blocks(self.blocks, "attention"),
            ),
            ("blocks.*.feed_forward", many + feed_forward + beside, of_blocks(self.blocks, "feed_forward")),
            ("norm", norm, [self.norm]),
            ("head_projection", "to the embedding's width", [self.head_projection]),
            ("head", "head" if self.head is not None else "head, tied to the embedding", [self.head]),
            ("score", "score of the last token", [self.score]),
        ]
        head = "head" if self.score is None else "score"
        return describe_parts(
            [part for part in parts if part[0] == head or part[2] != [None]],
            config.num_layers,
        )

    def scores(
        self, input_ids: Int[Tensor, "batch position"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the score of each text, which its last token has; there must be a score head.

        Args:
            input_ids: (batch, position) token ids, padded at the end.
            lengths: (batch,), how many are no padding; at least 1.
        """
        hidden = self.hidden(input_ids)
        assert self.score is not None
        last: Tensor = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        return F.linear(last.float(), self.score.weight.float())[:, 0]

    def make_cache(self, batch: int, max_length: int) -> KVCache:
        """Return an empty key/value cache for `batch` sequences of up to `max_length` tokens."""
        config, weight = self.config, self.embedding.weight
        dynamic = config.rope_scaling is not None and config.rope_scaling.kind == "dynamic"
        return (RereadingCache if dynamic else KVCache)(
            config.num_layers,
            batch,
            config.num_kv_heads,
            config.head_dim,
            max_length,
            dtype=weight.dtype,
            device=weight.device,
        )
