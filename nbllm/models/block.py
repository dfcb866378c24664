"""The one block of every transformer here."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from nbllm.models.config import ModelConfig
from nbllm.nn.attention import Attention, AttentionContext
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.hooks import keep_methods
from nbllm.nn.normalization import add_and_normalize, keep_and_normalize, make_norm


@keep_methods
class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream.

    Each part reads the normalized stream ("pre"), or the stream is normalized after each is added ("post").

    Args:
        config: The model's.
        layer: Its place in the stack, from 0.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1 ("post"); Radford et al. 2019 (GPT-2), section 2.3, and
        Touvron et al. 2023, arXiv:2302.13971, section 2.2 ("pre").
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_placement = config.norm_placement
        self.attention_norm = make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.attention = Attention(
            config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            bias=config.attention_bias,
            output_bias=config.attention_bias and config.attention_output_bias,
            layer=layer,
        )
        self.feed_forward_norm = make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(
            config.hidden_size,
            config.intermediate_size,
            activation=config.activation,
            gated=config.gated,
            bias=config.feed_forward_bias,
        )

    def forward(
        self, x: Float[Tensor, "batch position hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the residual stream after this block."""
        if self.norm_placement == "post":
            x = add_and_normalize(self.attention_norm, x, self.attention(x, context))[1]
            return add_and_normalize(self.feed_forward_norm, x, self.feed_forward(x))[1]
        x, normal = keep_and_normalize(self.attention_norm, x)
        gathered = self.attention(normal, context)
        x, normal = add_and_normalize(self.feed_forward_norm, x, gathered)
        out: Tensor = x + self.feed_forward(normal)
        return out
