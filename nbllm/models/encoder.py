"""The encoder: a stack of blocks in which every token sees every other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.models.block import Block
from nbllm.models.config import ModelConfig, shape_for_positions
from nbllm.models.heads import MaskedLMHead
from nbllm.models.network import (
    NETWORKS,
    Network,
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
from nbllm.nn.masks import padding_mask, with_bias
from nbllm.nn.normalization import NORMS, make_norm
from nbllm.nn.positions import Places, check_length, make_positions


@NETWORKS.register("encoder")
@keep_methods
class Encoder(Network):
    """A bidirectional transformer, as BERT is; arguments as `Network` takes them.

    Source: Devlin et al. 2019, arXiv:1810.04805; Lan et al. 2020, arXiv:1909.11942 (factorized embeddings, layers that
        share their parameters).
    """

    can = frozenset({"embed", "fill"})
    takes_mask = True
    fixed: ClassVar = {
        "tie_embeddings": True, "sliding_window": 0, "logit_softcap": 0.0, "num_decoder_layers": 0,
        "scale_embedding": False, "scale_head": False, "rescale_every": 0, "num_experts": 0,
    }  # fmt: skip

    def add_parts(self, config: ModelConfig) -> None:
        """Add embeddings, blocks, and the head and the pooler where the configuration has them."""
        size = config.embedding_size or config.hidden_size
        self.embedding = empty_embedding(config.vocab_size, size)
        self.positions = make_positions(
            config.positions, shape_for_positions(config, causal=False, width=size)
        )
        self.token_types = empty_embedding(config.token_types, size) if config.token_types else None
        self.embedding_norm = make_norm(config.norm, size, config.norm_eps) if config.embedding_norm else None
        self.projection = Linear(size, config.hidden_size) if config.embedding_size else None
        groups = config.num_layer_groups or config.num_layers
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(groups))
        is_post = config.norm_placement == "post"
        self.norm = None if is_post else make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.pooler = Linear(config.hidden_size, config.hidden_size) if config.pooler else None
        self.head = MaskedLMHead(config) if config.mask_head else None
        self.score = Linear(config.hidden_size, 1) if config.score_head else None
        if not config.mask_head:
            self.can = self.can - {"fill"}
        if config.score_head:
            if not config.pooler:
                raise UserError("The score head of an encoder reads its pooler.", hint="Give pooler=True.")
            self.can = self.can | {"reward"}
        without = "" if config.mask_head else ", without a head that predicts tokens"
        self.kind = f"an encoder, which reads a text in both directions{without}"

    def forward(
        self,
        input_ids: Int[Tensor, "batch position"],
        *,
        attention_mask: Bool[Tensor, "batch position"] | Int[Tensor, "batch position"] | None = None,
        token_types: Int[Tensor, "batch position"] | None = None,
        positions: Int[Tensor, "batch position"] | None = None,
    ) -> Float[Tensor, "batch position _"]:
        """Return the logits of the token at each position, or the hidden states where there is no head.

        Arguments as `hidden` takes them.
        """
        hidden = self.hidden(
            input_ids, attention_mask=attention_mask, token_types=token_types, positions=positions
        )
        return hidden if self.head is None else self.logits(hidden)

    def hidden(
        self,
        input_ids: Int[Tensor, "batch position"],
        *,
        attention_mask: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"] | None = None,
        token_types: Int[Tensor, "batch position"] | None = None,
        positions: Int[Tensor, "batch position"] | None = None,
        num_layers: int | None = None,
        visible: Bool[Tensor, "#batch 1 position key"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the hidden states after the last layer that is run.

        Args:
            input_ids: (batch, position) token ids.
            attention_mask: (batch, key), nonzero at real tokens, zero at padding, which no other token sees; the keys
                are those of the cache and then these. None: all are real.
            token_types: (batch, position), the kind of each token. None: all are of kind 0.
            positions: (batch, position), the place of each token in its sequence, from 0. None: the real tokens are
                counted; with `position_offset`, those that are not the padding token.
            num_layers: How many layers to run, from the first; None: all.
            visible: (batch, 1, position, key), True where a token sees a key; each must see one. None: every real
                token.
            cache: Keys and values that stand before the tokens, at the first positions, and that all of them see, as
                an adapter's prefix. None: there are none.

        Raises:
            UserError: More tokens than a model with learned positions has positions, or token types for a model that
                has none.
        """
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None
        counted = self.count_positions(input_ids, attention_mask) if positions is None else positions
        past = 0 if cache is None else cache.length
        length = check_length(self.positions, past + input_ids.shape[1], counted)
        places = seen = Places(slice(0, length) if counted is None else counted, length)
        if counted is not None and past:
            first = torch.arange(past, device=counted.device).expand(len(counted), -1)
            seen = Places(torch.cat((first, counted), dim=1), length)
        mask: Tensor | None = visible
        if visible is None and attention_mask is not None:
            mask = padding_mask(attention_mask)
        x = self.begin_stream(input_ids, token_types, places)
        bias = self.positions.bias(places, seen)
        bias = None if bias is None else bias.to(x)
        context = AttentionContext(
            causal=False, mask=with_bias(mask, bias), scheme=self.positions, positions=places, key_positions=seen,
            cache=cache, backend=self.attention_backend,
        )  # fmt: skip
        for layer, block in self.numbered_blocks():
            if num_layers is not None and layer >= num_layers:
                break
            x = block(x, context)
        return self.finish_stream(x)

    def numbered_blocks(self) -> Iterable[tuple[int, nn.Module]]:
        """Return the block of each layer in their order, with the layer's number; a block may serve several layers."""
        each = self.config.num_layers / len(self.blocks)
        return ((layer, self.blocks[int(layer / each)]) for layer in range(self.config.num_layers))

    def finish_stream(
        self, x: Float[Tensor, "batch position hidden"]
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the hidden states of the residual stream after the last block."""
        out: Tensor = x if self.norm is None else self.norm(x)
        return out

    def logits(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocabulary"]:
        """Return the scores of every token of the vocabulary; there must be a head."""
        assert self.head is not None
        return F.linear(self.head(hidden), self.head_weight, self.head.bias)

    def pooled(self, hidden: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch hidden"]:
        """Return a vector for each text, out of the hidden state of its first token; there must be a pooler."""
        assert self.pooler is not None
        return torch.tanh(self.pooler(hidden[:, 0]))

    def scores(
        self, input_ids: Int[Tensor, "batch position"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the score of each text, out of its first token; there must be a score head.

        Args:
            input_ids: (batch, position) token ids, padded at the end.
            lengths: (batch,), how many are no padding; at least 1.
        """
        real = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]
        pooled = self.pooled(self.hidden(input_ids, attention_mask=real))
        assert self.score is not None and self.score.bias is not None
        return F.linear(pooled.float(), self.score.weight.float(), self.score.bias.float())[:, 0]

    @property
    def head_weight(self) -> Float[Tensor, "vocabulary embedding"]:
        """The matrix of the head, which is the token embedding: (vocabulary, embedding)."""
        return self.embedding.weight

    @property
    def vocabulary_parameters(self) -> list[tuple[nn.Module, str]]:
        """The parameters with a row for each token: the embedding and the head's bias."""
        embedding: list[tuple[nn.Module, str]] = [(self.embedding, "weight")]
        return embedding if self.head is None else [*embedding, (self.head, "bias")]

    def describe(self) -> list[Row]:
        """Return embeddings, the parts of all blocks together, pooler and head."""
        config = self.config
        norm, activation = NORMS[config.norm].label, ACTIVATIONS[config.activation].label
        groups = len(self.blocks)
        many = (
            f"{config.num_layers} x "
            if groups == config.num_layers
            else f"{groups} for {config.num_layers} layers: "
        )
        heads = f"{config.num_heads} heads of {config.head_dim}"
        attention = with_norms(config, f"attention in both directions, {heads}")
        gate = "gated " if config.gated else ""
        feed_forward = with_norms(
            config, f"{gate}feed-forward, {activation}, {config.intermediate_size} wide"
        )

        parts: list[tuple[str, str, list[nn.Module | None]]] = [
            (
                "embedding",
                f"token embedding{', tied to the head' if self.head is not None else ''}",
                [self.embedding],
            ),
            ("positions", self.positions.label, [self.positions]),
            ("token_types", "token types", [self.token_types]),
            ("embedding_norm", norm, [self.embedding_norm]),
            ("projection", "from the embedding's width", [self.projection]),
            ("blocks.*.attention", many + attention, of_blocks(self.blocks, "attention")),
            ("blocks.*.feed_forward", many + feed_forward, of_blocks(self.blocks, "feed_forward")),
            ("norm", norm, [self.norm]),
            ("pooler", "pooler of the first token", [self.pooler]),
            ("head", f"masked-token head: linear, {activation}, {norm}, bias", [self.head]),
            ("score", "score of the pooled vector", [self.score]),
        ]
        optional = ("token_types", "embedding_norm", "projection", "norm", "pooler", "head", "score")
        return describe_parts(
            [part for part in parts if part[0] not in optional or part[2] != [None]], groups
        )

    def count_positions(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Return the position of each token; None: they are 0, 1, 2, ... in every sequence."""
        offset = self.config.position_offset
        if offset:
            real = input_ids != offset - 1
            return (real.cumsum(1) - 1).where(real, -1)
        if attention_mask is None:
            return None
        return (attention_mask.long().cumsum(1) - 1).clamp_(min=0)

    def begin_stream(
        self,
        input_ids: Int[Tensor, "batch position"],
        token_types: Int[Tensor, "batch position"] | None,
        places: Places,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the residual stream that the first block reads; arguments as in `hidden`."""
        x: Tensor = self.embed_tokens(input_ids)
        if self.token_types is not None:
            x = x + (self.token_types.weight[0] if token_types is None else self.token_types(token_types))
        elif token_types is not None:
            raise UserError("This model has no token types.", hint="Leave token_types out.")
        x = self.positions.embed(x, places)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return x if self.projection is None else self.projection(x)
