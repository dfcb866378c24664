"""The encoder-decoder: an encoder reads a text, and a decoder that attends to it predicts another, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nbllm.models.block import Block
from nbllm.models.config import ModelConfig, shape_for_positions
from nbllm.models.network import (
    NETWORKS,
    GenerativeNetwork,
    Row,
    describe_parts,
    empty_embedding,
    of_blocks,
    with_norms,
)
from nbllm.nn.activations import ACTIVATIONS
from nbllm.nn.attention import AttentionContext, Source
from nbllm.nn.cross_attention_cache import CrossAttentionCache
from nbllm.nn.hooks import keep_methods
from nbllm.nn.key_prefix import KeyPrefix
from nbllm.nn.masks import padded_causal_mask, padding_mask, with_bias
from nbllm.nn.normalization import NORMS, make_norm
from nbllm.nn.positions import Places, check_length, make_positions

SourceIds = Int[Tensor, "batch source"]
SourceMask = Bool[Tensor, "batch source"] | Int[Tensor, "batch source"]
Ids = Int[Tensor, "batch position"]
Mask = Bool[Tensor, "batch key"] | Int[Tensor, "batch key"]


@keep_methods
class Stack(nn.Module):
    """The encoder or the decoder of an encoder-decoder, without the token embedding that both read.

    Args:
        config: The model's.
        is_decoder: Whether tokens see only those before them, and attend to what the encoder has read.
    """

    def __init__(self, config: ModelConfig, *, is_decoder: bool) -> None:
        super().__init__()
        self.is_decoder = is_decoder
        layers = config.num_decoder_layers if is_decoder else config.num_layers

        def norm() -> nn.Module:
            return make_norm(config.norm, config.hidden_size, config.norm_eps)

        self.positions = make_positions(
            config.positions, shape_for_positions(config, causal=is_decoder, num_layers=layers)
        )
        self.embedding_norm = norm() if config.embedding_norm else None
        self.blocks = nn.ModuleList(
            Block(config, layer, has_cross_attention=is_decoder) for layer in range(layers)
        )
        self.norm = None if config.norm_placement == "post" else norm()

    def forward(
        self,
        x: Float[Tensor, "batch position hidden"],
        *,
        attention_mask: Mask | None,
        backend: str,
        source: Source | None = None,
        cache: CrossAttentionCache | KeyPrefix | None = None,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the hidden states after the last block.

        Args:
            x: (batch, position, hidden), the embedded tokens.
            attention_mask: (batch, key), nonzero at real tokens; the keys are those of the cache and then these. Only
                real tokens are counted. None: all are real.
            backend: The attention backend.
            source: What a decoder attends to.
            cache: Of a decoder: its keys and values so far; those of `x` are added.
        """
        past, count = 0 if cache is None else cache.length, x.shape[1]
        of_keys = None if attention_mask is None else (attention_mask.long().cumsum(1) - 1).clamp_(min=0)
        positions = None if of_keys is None else of_keys[:, past:]
        length = check_length(self.positions, past + count, positions)
        where = Places(slice(past, past + count) if positions is None else positions, length)
        x = self.begin_stream(x, where)
        mask: Tensor | None = None
        if attention_mask is not None:
            mask = (
                padded_causal_mask(attention_mask, count) if self.is_decoder else padding_mask(attention_mask)
            )
        causal = self.is_decoder and mask is None
        seen = Places(slice(0, past + count) if of_keys is None else of_keys, length)
        bias = self.positions.bias(where, seen)
        bias = None if bias is None else bias.to(x)
        context = AttentionContext(
            causal=causal,
            mask=with_bias(mask, bias),
            scheme=self.positions,
            positions=where,
            key_positions=seen,
            cache=cache,
            source=source,
            backend=backend,
        )
        for _, block in self.numbered_blocks():
            x = block(x, context)
        if cache is not None:
            cache.advance(count)
        return self.finish_stream(x)

    def begin_stream(
        self, x: Float[Tensor, "batch position hidden"], where: Places
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the residual stream that the first block reads, of the embedded tokens."""
        x = self.positions.embed(x, where)
        out: Tensor = x if self.embedding_norm is None else self.embedding_norm(x)
        return out

    def numbered_blocks(self) -> Iterable[tuple[int, nn.Module]]:
        """Return the blocks in their order, each with its number."""
        return enumerate(self.blocks)

    def finish_stream(
        self, x: Float[Tensor, "batch position hidden"]
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the hidden states of the residual stream after the last block."""
        out: Tensor = x if self.norm is None else self.norm(x)
        return out


@NETWORKS.register("encoder_decoder")
@keep_methods
class EncoderDecoder(GenerativeNetwork):
    """A sequence-to-sequence transformer, as T5 and BART are; arguments as `Network` takes them.

    Attributes:
        head_bias: (vocabulary,), what is added to the logits; None: nothing.

    Source: Vaswani et al. 2017, arXiv:1706.03762; Raffel et al. 2020, arXiv:1910.10683 (T5); Lewis et al. 2020,
        arXiv:1910.13461 (BART).
    """

    can = frozenset({"generate", "denoise"})
    kind = "an encoder-decoder, which reads one text and writes another"
    fixed: ClassVar = {
        "parallel_block": False, "shared_norm": False, "sliding_window": 0, "logit_softcap": 0.0,
        "embedding_size": 0, "token_types": 0, "num_layer_groups": 0, "mask_head": False, "pooler": False,
        "rescale_every": 0, "num_experts": 0, "rope_scaling": None, "rope_local_theta": 0.0,
        "full_attention_interval": 0, "attention_softcap": 0.0, "score_head": False,
    }  # fmt: skip

    def add_parts(self, config: ModelConfig) -> None:
        """Add the embedding, both stacks, and the head where it is not the embedding."""
        self.embedding = empty_embedding(config.vocab_size, config.hidden_size)
        self.encoder = Stack(config, is_decoder=False)
        self.decoder = Stack(config, is_decoder=True)
        self.head = (
            None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None

    def forward(
        self,
        input_ids: SourceIds,
        decoder_input_ids: Ids,
        *,
        attention_mask: SourceMask | None = None,
        decoder_attention_mask: Mask | None = None,
        cache: CrossAttentionCache | KeyPrefix | None = None,
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Return the logits of the next token at each position of the decoder; arguments as `hidden` takes them."""
        hidden = self.hidden(
            input_ids,
            decoder_input_ids,
            attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            cache=cache,
        )
        return self.logits(hidden)

    def hidden(
        self,
        input_ids: SourceIds | None,
        decoder_input_ids: Ids,
        *,
        attention_mask: SourceMask | None = None,
        decoder_attention_mask: Mask | None = None,
        cache: CrossAttentionCache | KeyPrefix | None = None,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the decoder's last hidden states as the head reads them.

        Args:
            input_ids: (batch, source), token ids of the text that the encoder reads. Where the cache holds the keys and
                values of one, that one is attended to, and these are not read and may be None.
            decoder_input_ids: (batch, position), token ids of the text that is written, from its start token.
            attention_mask: (batch, source), nonzero at real tokens, zero at padding, which no token sees and which
                takes no position. None: all are real.
            decoder_attention_mask: (batch, key), the same of the decoder; the keys are those of the cache and then
                these.
            cache: What `make_cache` made, with the state after the tokens before these; these are added to it.

        Raises:
            UserError: More tokens than a model with learned positions has positions, or than the cache holds.
        """
        if cache is not None and cache.has_source:
            hidden, real = None, cache.source_mask
        else:
            real = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
            assert input_ids is not None, "a text must be read first"
            hidden = self.encode(input_ids, attention_mask=real)
            if cache is not None:
                cache.source_mask = real
        x: Tensor = self.decoder(
            self.embed_tokens(decoder_input_ids),
            attention_mask=decoder_attention_mask,
            backend=self.attention_backend,
            source=Source(hidden, None if real is None else padding_mask(real)),
            cache=cache,
        )
        return x * self.config.hidden_size**-0.5 if self.config.scale_head else x

    def encode(
        self, input_ids: SourceIds, *, attention_mask: SourceMask | None = None
    ) -> Float[Tensor, "batch source hidden"]:
        """Return the encoder's last hidden states; arguments as `hidden` takes them."""
        out: Tensor = self.encoder(
            self.embed_tokens(input_ids), attention_mask=attention_mask, backend=self.attention_backend
        )
        return out

    def logits(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocabulary"]:
        """Return the scores of every token of the vocabulary."""
        return F.linear(hidden, self.head_weight, self.head_bias)

    @property
    def vocabulary_parameters(self) -> list[tuple[nn.Module, str]]:
        """The parameters with a row for each token: those of embedding and head, and what is added to the logits."""
        biases: list[tuple[nn.Module, str]] = [] if self.head_bias is None else [(self, "head_bias")]
        return super().vocabulary_parameters + biases

    @property
    def longest_source(self) -> int | None:
        """The most tokens that the encoder can read; None: no limit, as with T5's relative positions."""
        return self.encoder.positions.limit

    def make_cache(self, batch: int, max_length: int) -> CrossAttentionCache:
        """Return an empty cache for `batch` texts, of which the decoder writes up to `max_length` tokens each."""
        config, weight = self.config, self.embedding.weight
        return CrossAttentionCache(
            config.num_decoder_layers,
            batch,
            config.num_kv_heads,
            config.head_dim,
            max_length,
            dtype=weight.dtype,
            device=weight.device,
        )

    def describe(self) -> list[Row]:
        """Return embedding, the parts of all blocks of each stack together, and head."""
        config = self.config
        tied = "head, tied to the embedding" if self.head is None else "head"
        rows = describe_parts([("embedding", "token embedding", [self.embedding])], 1)
        for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            rows += describe_parts(_parts_of(config, name, stack), len(stack.blocks))
        rows += describe_parts([("head", tied, [self.head])], 1)
        if self.head_bias is not None:
            bias = nn.ParameterList([self.head_bias])
            rows += describe_parts([("head_bias", "added to the logits", [bias])], 1)
        return rows

    def embed_tokens(self, input_ids: Ids) -> Float[Tensor, "batch position hidden"]:
        """Return the embeddings of tokens, scaled where the configuration says so."""
        x: Tensor = self.embedding(input_ids)
        return x * math.sqrt(self.config.hidden_size) if self.config.scale_embedding else x


def _parts_of(config: ModelConfig, name: str, stack: Stack) -> list[tuple[str, str, list[nn.Module | None]]]:
    """Return the parts of a stack for `describe_parts`."""
    norm, activation = NORMS[config.norm].label, ACTIVATIONS[config.activation].label
    heads = f"{config.num_heads} heads of {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f", {config.num_kv_heads} key/value heads"
    many = f"{len(stack.blocks)} x "
    gate = "gated " if config.gated else ""

    direction = "causal attention" if stack.is_decoder else "attention in both directions"
    parts: list[tuple[str, str, list[nn.Module | None]]] = [
        ("positions", stack.positions.label, [stack.positions]),
        ("embedding_norm", norm, [stack.embedding_norm]),
        (
            "blocks.*.attention",
            many + with_norms(config, f"{direction}: {heads}"),
            of_blocks(stack.blocks, "attention"),
        ),
        (
            "blocks.*.cross_attention",
            many + with_norms(config, f"attention to the encoder: {heads}"),
            of_blocks(stack.blocks, "cross_attention") if stack.is_decoder else [None],
        ),
        (
            "blocks.*.feed_forward",
            many + with_norms(config, f"{gate}feed-forward: {activation}, {config.intermediate_size} wide"),
            of_blocks(stack.blocks, "feed_forward"),
        ),
        ("norm", norm, [stack.norm]),
    ]
    return [(f"{name}.{part}", what, modules) for part, what, modules in parts if modules != [None]]
