"""The one block of every transformer here."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from nbllm.models.config import ModelConfig
from nbllm.nn.attention import Attention, AttentionContext, AttentionShape
from nbllm.nn.cross_attention import CrossAttention
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.hooks import keep_methods
from nbllm.nn.mixture_of_experts import MixtureOfExperts
from nbllm.nn.normalization import NORMS, add_and_normalize, keep_and_normalize, make_norm


@keep_methods
class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream; in between, cross-attention where there is some.

    Each part reads the normalized stream ("pre"), or the stream is normalized after each is added ("post"), or each
    part reads the normalized stream and its result is normalized before it is added ("sandwich"). In a parallel block
    both read the stream as it enters, normalized for each or once for both.

    Args:
        config: The model's.
        layer: Its place in the stack, from 0.
        has_cross_attention: Whether it also attends to the text that an encoder has read.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1 ("post"); Radford et al. 2019 (GPT-2), section 2.3, and
        Touvron et al. 2023, arXiv:2302.13971, section 2.2 ("pre"); Black et al. 2022, arXiv:2204.06745, section 2.1
        (parallel); Ding et al. 2021 (CogView), arXiv:2105.13290, section 2.4 ("sandwich"); Wang et al. 2022,
        arXiv:2203.00555 (DeepNorm, which multiplies the stream before "post").
    """

    def __init__(self, config: ModelConfig, layer: int, *, has_cross_attention: bool = False) -> None:
        super().__init__()
        self.norm_placement, self.parallel = config.norm_placement, config.parallel_block
        self.residual_scale = config.residual_scale

        def norm(*, present: bool) -> nn.Module | None:
            return make_norm(config.norm, config.hidden_size, config.norm_eps) if present else None

        sandwich = config.norm_placement == "sandwich"
        self.attention_norm = make_norm(config.norm, config.hidden_size, config.norm_eps)
        shape = AttentionShape(
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            bias=config.attention_bias,
            output_bias=config.attention_bias and config.attention_output_bias,
            scale=config.attention_scale or None,
            softcap=config.attention_softcap,
        )
        of_heads = "rms_norm" if NORMS[config.norm].centred else config.norm
        self.attention = Attention(
            shape, layer=layer, qk_norm=(of_heads, config.norm_eps) if config.qk_norm else None
        )
        self.attention_output_norm = norm(present=sandwich)
        self.cross_attention_norm = norm(present=has_cross_attention)
        self.cross_attention = CrossAttention(shape, layer=layer) if has_cross_attention else None
        self.cross_attention_output_norm = norm(present=has_cross_attention and sandwich)
        self.feed_forward_norm = norm(present=not config.shared_norm)
        self.feed_forward = _make_feed_forward(config)
        self.feed_forward_output_norm = norm(present=sandwich)

    def forward(
        self, x: Float[Tensor, "batch position hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the residual stream after this block."""
        if self.parallel:
            return self._in_parallel(x, context)
        assert self.feed_forward_norm is not None
        if self.norm_placement == "post":
            x = self._added(self.attention_norm, x, self.attention(x, context))
            if self.cross_attention_norm is not None and self.cross_attention is not None:
                x = self._added(self.cross_attention_norm, x, self.cross_attention(x, context))
            return self._added(self.feed_forward_norm, x, self.feed_forward(x))
        x, normal = keep_and_normalize(self.attention_norm, x)
        gathered = _normalized(self.attention_output_norm, self.attention(normal, context))
        if self.cross_attention_norm is not None and self.cross_attention is not None:
            x, normal = add_and_normalize(self.cross_attention_norm, x, gathered)
            gathered = _normalized(self.cross_attention_output_norm, self.cross_attention(normal, context))
        x, normal = add_and_normalize(self.feed_forward_norm, x, gathered)
        return x + _normalized(self.feed_forward_output_norm, self.feed_forward(normal))

    def _added(self, norm: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        """Return the stream with what a part adds to it, normalized ("post")."""
        return add_and_normalize(norm, x if self.residual_scale == 1 else x * self.residual_scale, branch)[1]

    def _in_parallel(
        self, x: Float[Tensor, "batch position hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the stream with both parts added, each of what entered."""
        normal = self.attention_norm(x)
        for_feed_forward = normal if self.feed_forward_norm is None else self.feed_forward_norm(x)
        out: Tensor = x + self.attention(normal, context) + self.feed_forward(for_feed_forward)
        return out


def _normalized(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Return x, normalized where there is something to do so."""
    out: Tensor = x if norm is None else norm(x)
    return out


def _make_feed_forward(config: ModelConfig) -> nn.Module:
    """Return one feed-forward part for all tokens, or the mixture of experts in its place."""
    sizes = (config.hidden_size, config.intermediate_size)
    kind: dict[str, Any] = {
        "activation": config.activation,
        "gated": config.gated,
        "bias": config.feed_forward_bias,
    }
    if not config.num_experts:
        return FeedForward(*sizes, **kind)
    return MixtureOfExperts(
        *sizes, num_experts=config.num_experts, experts_per_token=config.experts_per_token, **kind
    )
