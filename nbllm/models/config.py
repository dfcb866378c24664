"""The configuration that makes one block into GPT-2, LLaMA and their relatives."""

from __future__ import annotations

import dataclasses

from nbllm.core.config import PlainConfig, check_choice, check_positive
from nbllm.core.errors import UserError
from nbllm.nn.activations import ACTIVATIONS
from nbllm.nn.normalization import NORMS
from nbllm.nn.positions import POSITIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(PlainConfig):
    """The shape of a model.

    Attributes:
        family: The Hugging Face layout that it is saved in: "gpt2", "llama", "qwen2".
        network: What is built of it, a name in `models.network.NETWORKS`: "decoder".
        vocab_size: Rows of the embedding.
        hidden_size: Width of the residual stream.
        num_layers: Blocks.
        num_heads: Query heads of a block.
        num_kv_heads: Key/value heads of a block, each serving num_heads / num_kv_heads query heads; 0: as
            many as query heads.
        head_dim: Width of a head; 0: hidden_size / num_heads.
        intermediate_size: Width inside the feed-forward part; 0: 4 * hidden_size, or when gated 8/3 *
            hidden_size rounded up to a multiple of 64, which costs as many parameters.
        max_positions: The longest context, in tokens.
        positions: "learned" (a vector a position) or "rotary" (queries and keys rotated).
        norm: "layer_norm" or "rms_norm", before each part and after the last block.
        norm_eps: Added to the variance by the normalizations.
        activation: "gelu_tanh", "gelu", "silu" or "relu".
        gated: Whether the feed-forward part is gated (SwiGLU when the activation is "silu").
        attention_bias: Whether the projections of attention have biases.
        attention_output_bias: Whether, where they do, the output's has one too.
        feed_forward_bias: Whether those of the feed-forward part have.
        tie_embeddings: Whether the head is the transposed embedding.
        rope_theta: Base of the rotary frequencies.
        initializer_range: Standard deviation of new weights.
    """

    family: str
    network: str = "decoder"
    vocab_size: int
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    num_kv_heads: int = 0
    head_dim: int = 0
    intermediate_size: int = 0
    max_positions: int = 1024
    positions: str = "learned"
    norm: str = "layer_norm"
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"
    gated: bool = False
    attention_bias: bool = True
    attention_output_bias: bool = True
    feed_forward_bias: bool = True
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        check_positive(self, "vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions")
        check_positive(self, "norm_eps", "rope_theta", "initializer_range")
        check_choice(self, "positions", tuple(POSITIONS))
        check_choice(self, "norm", tuple(NORMS))
        check_choice(self, "activation", tuple(ACTIVATIONS))
        for name in ("num_kv_heads", "head_dim", "intermediate_size"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative.", where="ModelConfig")
        self._derive()
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads}).",
                where="ModelConfig",
                hint="Each key/value head serves the same number of query heads.",
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"head_dim is {self.head_dim}; rotary positions rotate pairs, so it must be even.",
                where="ModelConfig",
            )

    def _derive(self) -> None:
        """Fill in the sizes that were left at 0."""
        if not self.num_kv_heads:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise UserError(
                    f"hidden_size ({self.hidden_size}) is not a multiple of num_heads ({self.num_heads}).",
                    where="ModelConfig",
                    hint="Change one of them, or give head_dim.",
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if not self.intermediate_size:
            size = 4 * self.hidden_size
            if self.gated:
                size = -(-size * 2 // 3 // 64) * 64
            object.__setattr__(self, "intermediate_size", size)
