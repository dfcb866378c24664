"""The causal decoder: a stack of blocks that predicts the next token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.core.seeding import generator
from nbllm.models.block import Block
from nbllm.models.config import ModelConfig
from nbllm.nn.attention import AttentionContext
from nbllm.nn.hooks import keep_methods
from nbllm.nn.joined import empty_parameters
from nbllm.nn.kv_cache import KVCache
from nbllm.nn.masks import padded_causal_mask
from nbllm.nn.normalization import make_norm
from nbllm.nn.positions import LearnedPositions, RotaryPositions, Rotation


@keep_methods
class Decoder(nn.Module):
    """A causal language model.

    Args:
        config: Its shape.
        seed: Of the initial weights. They depend on the seed and each weight's name and shape alone; the
            global random state is neither read nor moved.

    Attributes:
        attention_backend: A name in `nn.attention_backends.BACKENDS`, or "auto": measured.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.attention_backend = "auto"
        # The layers' own initialisation would draw from the global random state; on "meta" it draws nothing.
        with torch.device("meta"):
            # nn.Embedding(...) would draw, and to draw on "meta" torch first imports sympy: a second.
            empty = torch.empty(config.vocab_size, config.hidden_size)
            self.embedding = nn.Embedding.from_pretrained(empty, freeze=False)
            self.positions: LearnedPositions | RotaryPositions
            if config.positions == "learned":
                self.positions = LearnedPositions(config.max_positions, config.hidden_size)
            else:
                self.positions = RotaryPositions(config.head_dim, config.rope_theta)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
            self.norm = make_norm(config.norm, config.hidden_size, config.norm_eps)
            self.head = (
                None
                if config.tie_embeddings
                else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            )
        if torch.get_default_device().type != "meta":
            self.load_state_dict(empty_parameters(self, device=torch.get_default_device()), assign=True)
            self.initialize(seed)

    @classmethod
    def without_weights(cls, config: ModelConfig) -> Decoder:
        """Return a model whose parameters have shapes but no memory (device "meta"), to be loaded into."""
        with torch.device("meta"):
            return cls(config)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw new weights.

        Matrices are normal with `initializer_range`; those that write into the residual stream are scaled
        down by sqrt(2 * num_layers), as many as write into it. Biases are 0, normalizations 1.

        Source: Radford et al. 2019 (GPT-2), section 2.3.
        """
        residual = 1 / math.sqrt(2 * self.config.num_layers)
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            into_stream = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            std = self.config.initializer_range * (residual if into_stream else 1.0)
            # Drawn on the CPU in float32, so that every device and precision begins from the same weights.
            drawn = torch.empty(weight.shape, device="cpu", dtype=torch.float32)
            weight.copy_(drawn.normal_(0.0, std, generator=generator(seed, "weights", name)))

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
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the residual stream after the final normalization, which the head reads.

        Args:
            input_ids: (batch, position) token ids.
            cache: Keys and values of the tokens before these; these are added to it.
            positions: (batch, position), the place of each token in its sequence. None: counted from the
                tokens held in the cache, and over the real tokens alone where there is a mask.
            attention_mask: (batch, key), nonzero at real tokens, zero at padding; the keys are those of the
                cache and then these. None: all are real.

        Raises:
            UserError: More tokens than a model with learned positions has positions, or than the cache holds.
        """
        past = 0 if cache is None else cache.length
        count = input_ids.shape[1]
        if positions is None and attention_mask is not None:
            positions = (attention_mask.long().cumsum(1) - 1).clamp_(min=0)[:, past:]
        length = self._check_length(past + count, positions)
        where = slice(past, past + count) if positions is None else positions
        x = self.embedding(input_ids)
        rotation: Rotation | None = None
        if isinstance(self.positions, RotaryPositions):
            rotation = self.positions(where, length, input_ids.device)
        else:
            x = x + self.positions(where)
        mask = None if attention_mask is None else padded_causal_mask(attention_mask, count)
        context = AttentionContext(
            causal=mask is None, mask=mask, rotation=rotation, cache=cache, backend=self.attention_backend
        )
        for block in self.blocks:
            x = block(x, context)
        if cache is not None:
            cache.advance(count)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocabulary"]:
        """Return the scores of every token of the vocabulary from the final hidden state."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Float[Tensor, "vocabulary hidden"]:
        """The matrix that turns hidden states into logits: (vocabulary, hidden)."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def num_parameters(self) -> int:
        """How many elements the parameters have; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def make_cache(self, batch: int, max_length: int) -> KVCache:
        """Return an empty key/value cache for `batch` sequences of up to `max_length` tokens."""
        config, weight = self.config, self.embedding.weight
        return KVCache(
            config.num_layers,
            batch,
            config.num_kv_heads,
            config.head_dim,
            max_length,
            dtype=weight.dtype,
            device=weight.device,
        )

    def _check_length(self, length: int, positions: Int[Tensor, "batch position"] | None) -> int:
        """Return one more than the highest position; refuse what learned positions cannot number."""
        if positions is not None and (
            self.config.positions == "rotary" or length > self.config.max_positions
        ):
            length = int(positions.max()) + 1
        if self.config.positions == "learned" and length > self.config.max_positions:
            raise UserError(
                f"{length} tokens were given; this model has {self.config.max_positions} positions.",
                hint="Shorten the text, or make the model with a greater max_positions.",
            )
        return length
