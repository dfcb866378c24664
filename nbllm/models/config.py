"""The configuration that makes one block into GPT-2, LLaMA, BERT and their relatives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nbllm.core.config import PlainConfig, check_choice, check_positive
from nbllm.core.errors import UserError
from nbllm.nn.activations import ACTIVATIONS
from nbllm.nn.normalization import NORMS
from nbllm.nn.positions import POSITIONS, RopeScaling, Shape

if TYPE_CHECKING:
    from nbllm.models.costs import Costs

_MAY_BE_ZERO = (
    "num_kv_heads", "head_dim", "intermediate_size", "position_offset", "embedding_size", "token_types",
    "num_layer_groups", "sliding_window", "full_attention_interval", "num_experts", "experts_per_token",
    "rescale_every", "num_decoder_layers",
)  # fmt: skip
SIZES = ("vocab_size", "hidden_size", "num_heads", "max_positions", *_MAY_BE_ZERO)
LAYERS = ("num_layers", "num_decoder_layers")
MAX_LAYERS, MAX_SIZE = 10_000, 1 << 31


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(PlainConfig):
    """The shape of a model.

    Attributes:
        family: The Hugging Face layout that it is saved in: "gpt2", "llama", "bert", ...
        network: What is built of it, a name in `models.network.NETWORKS`: "decoder", "prefix_decoder", "encoder",
            "encoder_decoder".
        vocab_size: Rows of the embedding.
        hidden_size: Width of the residual stream.
        num_layers: Blocks; of an encoder-decoder, those of the encoder.
        num_decoder_layers: Blocks of an encoder-decoder's decoder, 0: as many as num_layers; other networks have none.
        num_heads: Query heads of a block.
        num_kv_heads: Key/value heads of a block, each serving num_heads / num_kv_heads query heads; 0: as
            many as query heads.
        head_dim: Width of a head; 0: hidden_size / num_heads.
        intermediate_size: Width inside the feed-forward part; 0: 4 * hidden_size, or when gated 8/3 *
            hidden_size rounded up to a multiple of 64, which costs as many parameters.
        max_positions: The longest context, in tokens.
        positions: "learned" (a vector a position), "learned_2d" (one for that in the text and one for that in a blank
            which the token fills, as in the first GLM), "sinusoidal" (waves), "rotary" (queries and keys rotated),
            "alibi" (scores fall with the distance), "relative" (a learned scalar for each bucket of distances, as in
            T5), "transformer_xl" (each query asks for a distance, as in Gopher) or "none".
        position_offset: Rows of the learned positions before that of the first token. Where there are any, the last
            of them is that of padding (OPT), which in an encoder is the token `position_offset - 1` and is not counted
            (RoBERTa); 0: all tokens are counted.
        norm: "layer_norm", "layer_norm_no_bias" (PaLM), "rms_norm" or "rms_norm_offset" (RMSNorm with a weight that is
            stored less 1).
        norm_placement: "pre", before each part and after the last block, "post", after each part has been added to the
            residual stream (Vaswani et al. 2017), or "sandwich", before each part and over its result before it is
            added, and after the last block (Gemma 2).
        residual_scale: What the residual stream is multiplied by before a part is added to it and both are normalized,
            with norm_placement "post": DeepNorm's alpha, sqrt(2 * num_layers) in GLM-130B.
        parallel_block: Whether attention and feed-forward both read the residual stream as it enters the block, and
            are added to it together (GPT-J), instead of one after the other.
        shared_norm: Whether, in a parallel block, both read the same normalization.
        norm_eps: Added to the variance by the normalizations.
        num_experts: How many feed-forward parts each layer has, of which a router chooses some for each token
            (Mixtral); 0: one, for all tokens.
        experts_per_token: How many of them it chooses.
        router_loss_weight: Weight of the loss that keeps the experts' loads alike, in training.
        activation: "gelu_tanh", "gelu", "silu", "relu" or "relu_squared".
        gated: Whether the feed-forward part is gated (SwiGLU when the activation is "silu").
        attention_bias: Whether the projections of attention have biases.
        attention_output_bias: Whether, where they do, the output's has one too.
        feed_forward_bias: Whether those of the feed-forward part have.
        qk_norm: Whether each head's query and key are normalized (RMSNorm) before they are rotated (Qwen3).
        attention_scale: What the scores of attention are multiplied by before the softmax; 0: 1 / sqrt(head_dim).
        attention_softcap: Bounds the scores of attention softly, softcap * tanh(scores / softcap); 0: not (Gemma 2).
        sliding_window: How many keys a token sees, itself included; 0: all before it.
        full_attention_interval: Every how many layers one sees all keys in spite of `sliding_window` (Gemma 2: 2); 0:
            none does.
        tie_embeddings: Whether the head is the transposed embedding.
        head_bias: Whether the head has a bias; where it is tied, only in an encoder-decoder (BART).
        logit_softcap: Bounds the logits softly, likewise; 0: not (Gemma 2).
        rope_theta: Base of the rotary frequencies.
        rope_local_theta: That of the layers with a sliding window, whose frequencies are then not scaled (Gemma 3); 0:
            all layers have the same.
        rotary_fraction: Part of a head's components that rotary positions rotate, the first ones.
        rotary_interleaved: Whether they rotate neighbouring components together (GPT-J), instead of each of the first
            half with one of the second.
        rope_scaling: How the rotary frequencies are scaled for texts longer than the model was first trained on; None:
            they are not.
        embedding_size: Width of the token embedding, which a projection brings to hidden_size (ALBERT,
            OPT-350m), and in a decoder another back before the head; 0: the embedding has hidden_size, and there is
            no projection.
        scale_embedding: Whether the token embeddings are multiplied by sqrt(hidden_size) (BART, Gemma).
        scale_head: Whether the last hidden states are divided by sqrt(hidden_size) before the head (T5, PaLM).
        embedding_norm: Whether the sum of token, position and type embeddings is normalized.
        token_types: Kinds of tokens, such as those of a first and a second sentence, with a learned vector each; 0:
            all tokens are of one kind.
        num_layer_groups: How many blocks there are, each used for equally many consecutive layers (ALBERT); 0: every
            layer has a block of its own.
        mask_head: Whether an encoder has a head that predicts masked tokens.
        pooler: Whether an encoder has a layer that makes a vector of the whole text out of its first token.
        score_head: Whether a head gives each text a score, as a reward model has it, and none predicts tokens; that of
            an encoder reads its pooler.
        rescale_every: After so many layers of a recurrent network the stream is halved in evaluation (RWKV-4), which
            keeps it within float16; 0: it is not.
        initializer_range: Standard deviation of new weights.
    """

    family: str
    network: str = "decoder"
    vocab_size: int
    hidden_size: int = 768
    num_layers: int = 12
    num_decoder_layers: int = 0
    num_heads: int = 12
    num_kv_heads: int = 0
    head_dim: int = 0
    intermediate_size: int = 0
    max_positions: int = 1024
    positions: str = "learned"
    position_offset: int = 0
    norm: str = "layer_norm"
    norm_placement: str = "pre"
    residual_scale: float = 1.0
    parallel_block: bool = False
    shared_norm: bool = False
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"
    gated: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    router_loss_weight: float = 0.0
    attention_bias: bool = True
    attention_output_bias: bool = True
    feed_forward_bias: bool = True
    qk_norm: bool = False
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    sliding_window: int = 0
    full_attention_interval: int = 0
    tie_embeddings: bool = True
    head_bias: bool = False
    logit_softcap: float = 0.0
    rope_theta: float = 10000.0
    rope_local_theta: float = 0.0
    rotary_fraction: float = 1.0
    rotary_interleaved: bool = False
    rope_scaling: RopeScaling | None = None
    embedding_size: int = 0
    scale_embedding: bool = False
    scale_head: bool = False
    embedding_norm: bool = False
    token_types: int = 0
    num_layer_groups: int = 0
    mask_head: bool = False
    pooler: bool = False
    score_head: bool = False
    rescale_every: int = 0
    initializer_range: float = 0.02

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from a mapping; a scaling may be a `RopeScaling` or a mapping of its settings.

        Raises:
            UserError: A key is unknown, or a value is of another type or out of range.
        """
        scaling = values.get("rope_scaling")
        if isinstance(scaling, Mapping):
            values = {**values, "rope_scaling": RopeScaling.from_dict(scaling)}
        elif scaling is not None and not isinstance(scaling, RopeScaling):
            raise UserError(
                f"rope_scaling must be a RopeScaling or its settings, not {scaling!r}.", where=cls.__name__
            )
        return super().from_dict(values)

    def __post_init__(self) -> None:
        check_positive(self, "vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions")
        for name, most in (
            *((layers, MAX_LAYERS) for layers in LAYERS),
            *((size, MAX_SIZE) for size in SIZES),
        ):
            if getattr(self, name) > most:
                raise UserError(f"{name} must be at most {most:,}.", where="ModelConfig")
        check_positive(
            self, "norm_eps", "rope_theta", "rotary_fraction", "initializer_range", "residual_scale"
        )
        check_choice(self, "positions", tuple(POSITIONS))
        check_choice(self, "norm", tuple(NORMS))
        check_choice(self, "norm_placement", ("pre", "post", "sandwich"))
        check_choice(self, "activation", tuple(ACTIVATIONS))
        self._check_ranges()
        self._derive()
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads}).",
                where="ModelConfig",
                hint="Each key/value head serves the same number of query heads.",
            )
        if self.num_layer_groups > self.num_layers:
            raise UserError(
                f"num_layer_groups ({self.num_layer_groups}) is more than num_layers ({self.num_layers}).",
                where="ModelConfig",
            )
        if self.position_offset and self.positions != "learned":
            raise UserError("position_offset is for learned positions.", where="ModelConfig")
        self._check_rotary()
        self._check_combinations()

    def _check_ranges(self) -> None:
        """Refuse numbers that are negative or not finite."""
        for name in _MAY_BE_ZERO:
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative.", where="ModelConfig")
        for name in (
            "attention_scale",
            "attention_softcap",
            "logit_softcap",
            "rope_local_theta",
            "router_loss_weight",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must not be negative.", where="ModelConfig")

    def _check_combinations(self) -> None:
        """Refuse settings that need another."""
        for name in ("full_attention_interval", "rope_local_theta"):
            if getattr(self, name) and not self.sliding_window:
                raise UserError(f"{name} is for layers with a sliding_window.", where="ModelConfig")
        if not self.experts_per_token <= self.num_experts or (
            self.num_experts and not self.experts_per_token
        ):
            raise UserError(
                f"experts_per_token ({self.experts_per_token}) must be from 1 to num_experts ({self.num_experts}).",
                where="ModelConfig",
            )
        if self.router_loss_weight and not self.num_experts:
            raise UserError("router_loss_weight is for a mixture of experts.", where="ModelConfig")
        if self.residual_scale != 1 and self.norm_placement != "post":
            raise UserError('residual_scale is for norm_placement="post".', where="ModelConfig")
        if self.parallel_block and self.norm_placement != "pre":
            raise UserError('A parallel block has norm_placement="pre".', where="ModelConfig")
        if self.shared_norm and not self.parallel_block:
            raise UserError("shared_norm is for a parallel block.", where="ModelConfig")
        if self.score_head and self.mask_head:
            raise UserError(
                "A model with a score_head has no head that predicts tokens.", where="ModelConfig"
            )
        if self.head_bias and self.tie_embeddings and self.network != "encoder_decoder":
            raise UserError("head_bias is for a head that is not tied.", where="ModelConfig")

    def _check_rotary(self) -> None:
        """Refuse heads of which rotary positions cannot rotate pairs."""
        if self.rotary_fraction > 1:
            raise UserError("rotary_fraction must be at most 1.", where="ModelConfig")
        if self.positions != "rotary":
            for name, usual in (
                ("rotary_fraction", 1),
                ("rotary_interleaved", False),
                ("rope_scaling", None),
                ("rope_local_theta", 0),
            ):
                if getattr(self, name) != usual:
                    raise UserError(f"{name} is for rotary positions.", where="ModelConfig")
            return
        if self.rotary_dim % 2 or not self.rotary_dim:
            part = "" if self.rotary_fraction == 1 else f" and rotary_fraction {self.rotary_fraction:g}"
            raise UserError(
                f"head_dim is {self.head_dim}{part}; rotary positions rotate pairs, so it must be even.",
                where="ModelConfig",
            )
        self._check_scaling()

    def _check_scaling(self) -> None:
        """Refuse what a scaling of rotary frequencies cannot be computed for."""
        scaling = self.rope_scaling
        if scaling is None:
            return
        if scaling.kind == "yarn" and self.rope_theta <= 1:
            raise UserError("rope_theta must be greater than 1 for YaRN.", where="ModelConfig")
        if scaling.kind == "dynamic":
            if self.rotary_dim == 2:
                raise UserError("Dynamic scaling needs heads of more than one pair.", where="ModelConfig")
            if self.max_positions != scaling.max_positions:
                raise UserError(
                    f"max_positions is {self.max_positions}; with dynamic scaling it is factor * "
                    f"original_max_positions: {scaling.max_positions}.",
                    where="ModelConfig",
                )

    def costs(self, *, batch_size: int = 1, sequence_length: int | None = None) -> Costs:
        """Return parameters, floating-point operations and memory for a batch of sequences; no weight is built.

        Args:
            batch_size: Sequences.
            sequence_length: Tokens of each; None: the whole context.

        Raises:
            UserError: One of them is less than 1.
        """
        from nbllm.models.costs import count_costs

        return count_costs(self, batch_size=batch_size, sequence_length=sequence_length)

    def __str__(self) -> str:
        return str(self.costs())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the costs where IPython shows text."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        from nbllm.core.html import fragment, key_values

        settings = f"<details><summary>All settings</summary>{key_values(self.to_dict())}</details>"
        return fragment(self.costs().body() + settings)

    @property
    def rotary_dim(self) -> int:
        """How many components of a head rotary positions rotate."""
        return int(
            self.head_dim * self.rotary_fraction + 1e-6
        )  # a fraction may be just below what it stands for

    def _derive(self) -> None:
        """Fill in the sizes that were left at 0."""
        if self.network == "encoder_decoder" and not self.num_decoder_layers:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
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


def shape_for_positions(
    config: ModelConfig, *, causal: bool, width: int | None = None, num_layers: int | None = None
) -> Shape:
    """Return what of a configuration the position scheme of a stack depends on.

    Args:
        config: The configuration.
        causal: Whether tokens see only earlier ones.
        width: Of the vectors to which positions may be added; None: hidden_size.
        num_layers: Layers of the stack that have parameters of their own; None: those of a network of one stack.
    """
    return Shape(
        hidden_size=config.hidden_size if width is None else width,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        max_positions=config.max_positions,
        theta=config.rope_theta,
        rotary_dim=config.rotary_dim,
        rotary_interleaved=config.rotary_interleaved,
        rope_scaling=config.rope_scaling,
        offset=config.position_offset,
        causal=causal,
        num_layers=config.num_layer_groups or config.num_layers if num_layers is None else num_layers,
    )


def check_fixed(config: ModelConfig, fixed: Mapping[str, Any], what: str, hint: str) -> None:
    """Refuse a configuration that differs from the settings that a family or network cannot vary.

    Args:
        config: The configuration.
        fixed: Those settings.
        what: Whose they are, for the message.
        hint: What to do.

    Raises:
        UserError: A setting differs; it is named.
    """
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise UserError(
                f"A {what} has {name}={value!r}, not {getattr(config, name)!r}.",
                where=what,
                hint=hint,
            )
