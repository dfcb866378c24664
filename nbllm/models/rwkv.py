"""RWKV: a recurrent network that is trained on all positions at once, as a transformer is."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.models.config import ModelConfig
from nbllm.models.network import NETWORKS, CausalNetwork, Row, describe_parts, empty_embedding
from nbllm.nn.hooks import keep_methods
from nbllm.nn.normalization import make_norm
from nbllm.nn.recurrent_state import RecurrentState
from nbllm.nn.time_mixing import ChannelMixing, TimeMixing

# Settings that it honours, and those that follow from others.
_VARIED = {
    "family", "network", "vocab_size", "hidden_size", "num_layers", "intermediate_size", "max_positions", "norm_eps",
    "tie_embeddings", "head_bias", "rescale_every", "initializer_range", "num_kv_heads", "head_dim",
}  # fmt: skip
LAST_NORM_EPS = 1e-5  # of the last normalization, whatever the others' is


@keep_methods
class RWKVBlock(nn.Module):
    """Time mixing, then channel mixing, each of the normalized stream and added to it.

    Args:
        config: The model's.
        layer: Its place in the stack, from 0.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.time_mixing_norm = make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.time_mixing = TimeMixing(config.hidden_size, layer)
        self.channel_mixing_norm = make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.channel_mixing = ChannelMixing(config.hidden_size, config.intermediate_size, layer)

    def forward(
        self,
        x: Float[Tensor, "batch position hidden"],
        state: RecurrentState | None,
        real: Bool[Tensor, "batch position"] | None,
        scale: float,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the stream after this block; what is added to it is multiplied by `scale`."""
        x = torch.add(x, self.time_mixing(self.time_mixing_norm(x), state, real), alpha=scale)
        return torch.add(x, self.channel_mixing(self.channel_mixing_norm(x), state, real), alpha=scale)


@NETWORKS.register("rwkv")
@keep_methods
class RWKV(CausalNetwork):
    """RWKV-4; arguments as `Network` takes them.

    Its two forms are one code: read whole, all positions are computed together but for the running means of
    `nn.wkv.wkv`; read with a cache, it goes on from the state after the last token, which has one size however long the
    text is. No token can be taken back from that state.

    In evaluation, with `rescale_every`, the stream is halved after every so many layers, and what they add with it, so
    that it does not exceed float16; the normalizations undo that but for their epsilon.

    Source: Peng et al. 2023, arXiv:2305.13048; transformers' `rwkv`, whose results these are.
    """

    kind = "a recurrent network, which predicts the next token from a state of one size"
    fixed: ClassVar = {
        **{field.name: field.default for field in dataclasses.fields(ModelConfig) if field.name not in _VARIED},
        "num_heads": 1, "positions": "none", "embedding_norm": True, "activation": "relu_squared",
        "attention_bias": False, "feed_forward_bias": False,
    }  # fmt: skip

    def add_parts(self, config: ModelConfig) -> None:
        """Add embedding, its normalization, blocks, the last normalization and the head."""
        if config.head_dim != config.hidden_size:
            raise UserError("An RWKV has one head as wide as the stream.", hint="Leave head_dim.")
        self.embedding = empty_embedding(config.vocab_size, config.hidden_size)
        self.embedding_norm = make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.blocks = nn.ModuleList(RWKVBlock(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config.norm, config.hidden_size, LAST_NORM_EPS)
        self.head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        )

    def forward(
        self,
        input_ids: Int[Tensor, "batch position"],
        *,
        cache: RecurrentState | None = None,
        positions: Int[Tensor, "batch position"] | None = None,
        attention_mask: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"] | None = None,
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Return the logits of the next token at each position; arguments as `hidden` takes them."""
        return self.logits(self.hidden(input_ids, cache=cache, attention_mask=attention_mask))

    def hidden(
        self,
        input_ids: Int[Tensor, "batch position"],
        *,
        cache: RecurrentState | None = None,
        positions: Int[Tensor, "batch position"] | None = None,
        attention_mask: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"] | None = None,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the residual stream after the final normalization, which the head reads.

        Args:
            input_ids: (batch, position) token ids.
            cache: The state after the tokens before these; these are read into it.
            positions: Nothing here depends on them.
            attention_mask: (batch, key), nonzero at real tokens, zero at padding, which stands before a text or after
                its end; the keys are all tokens that were read and then these. None: all are real.
        """
        count = input_ids.shape[1]
        real = None if attention_mask is None else attention_mask[:, -count:].bool()
        every = 0 if self.training else self.config.rescale_every
        x, scale = self.embedding_norm(self.embed_tokens(input_ids)), 1.0
        for layer, block in enumerate(self.blocks, start=1):
            x = block(x, cache, real, scale)
            if every and layer % every == 0:
                x, scale = x / 2, scale / 2
        if cache is not None:
            cache.advance(count)
        out: Tensor = self.norm(x)
        return out

    def make_cache(self, batch: int, max_length: int) -> RecurrentState:
        """Return the state of `batch` sequences before their first token; they may be of any length."""
        config, weight = self.config, self.embedding.weight
        return RecurrentState(config.num_layers, batch, config.hidden_size, weight.dtype, weight.device)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw new weights; what mixes tokens and decays begins as RWKV-4's authors have it.

        Channels differ in how fast they forget, later layers more so than early ones.

        Source: Peng et al. 2023, arXiv:2305.13048, appendix E.
        """
        super().initialize(seed)
        size, layers = self.config.hidden_size, self.config.num_layers
        share = torch.arange(size, dtype=torch.float32, device="cpu") / size
        along = torch.arange(size, dtype=torch.float32, device="cpu") / max(size - 1, 1)
        for layer, block in enumerate(self.blocks):
            time, channel = cast(RWKVBlock, block).time_mixing, cast(RWKVBlock, block).channel_mixing
            depth, rest = layer / max(layers - 1, 1), 1 - layer / layers
            time.decay.copy_(-5 + 8 * along ** (0.7 + 1.3 * depth))
            zigzag = 0.5 * ((torch.arange(size, device="cpu") + 1) % 3 - 1)
            time.bonus.copy_(torch.tensor(0.3).log() + zigzag)
            time.mix_key.copy_(share**rest)
            time.mix_value.copy_(share**rest + 0.3 * depth)
            time.mix_receptance.copy_(share ** (0.5 * rest))
            channel.mix_key.copy_(share**rest)
            channel.mix_receptance.copy_(share**rest)

    def describe(self) -> list[Row]:
        """Return embedding, the parts of all blocks together, last normalization and head."""
        config = self.config

        def of_blocks(name: str) -> list[nn.Module | None]:
            return [getattr(block, part) for block in self.blocks for part in (f"{name}_norm", name)]

        many = f"{config.num_layers} x LayerNorm + "
        wide = f"{config.intermediate_size} wide"
        parts: list[tuple[str, str, list[nn.Module | None]]] = [
            ("embedding", "token embedding", [self.embedding]),
            ("embedding_norm", "LayerNorm", [self.embedding_norm]),
            ("blocks.*.time_mixing", f"{many}time mixing", of_blocks("time_mixing")),
            (
                "blocks.*.channel_mixing",
                f"{many}channel mixing: gated, ReLU squared, {wide}",
                of_blocks("channel_mixing"),
            ),
            ("norm", "LayerNorm", [self.norm]),
            ("head", "head" if self.head is not None else "head, tied to the embedding", [self.head]),
        ]
        return describe_parts(parts, config.num_layers)
