"""What a configuration costs: parameters, operations and memory, counted without building a weight.

Counted are the operations of matrix multiplications, two for each multiplication and addition: each matrix is
multiplied with every token, and each head compares a query with every key and adds up every value:

    forward pass, per token = 2 * elements of matrices + 4 * layers * heads * head_dim * keys
    training step           = 3 * forward pass (the backward pass multiplies each matrix twice)

Every score is counted, those that a causal mask or a sliding window hides too, as is usual.

Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1; Chowdhery et al. 2022, arXiv:2204.02311, appendix B.

The activations of a training step are what the backward pass needs: the input of each matrix and normalization, the
queries, keys, values and result of attention (not its weights), and the factors of activations and gates. In float32
they agree within 5% with what autograd keeps of every family here. In bfloat16 a machine that multiplies such matrices
in float32 keeps the inner part of the feed-forward layers in float32.

Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, without dropout and without the term of the attention
weights, which are computed again.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.core.html import escape, fragment, table
from nbllm.core.quantities import number, size
from nbllm.core.text_table import text_table
from nbllm.models.config import ModelConfig
from nbllm.models.network import CausalNetwork, Network, build_without_weights
from nbllm.nn.attention import Attention
from nbllm.nn.cross_attention import CrossAttention
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.gelu import gelu_tanh
from nbllm.nn.joined import JoinedLinears
from nbllm.nn.mixture_of_experts import MixtureOfExperts
from nbllm.nn.positions import Positions, TransformerXLPositions
from nbllm.nn.time_mixing import ChannelMixing, TimeMixing

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class Part:
    """What a part of a network costs.

    Attributes:
        name: One of `_PARTS`: "embedding", "attention", "feed-forward", "norms", "head", ...
        parameters: How many elements its parameters have.
        flops: Floating-point operations of a forward pass, per token.
        activations: Elements that a training step keeps for the backward pass, per token.
    """

    name: str
    parameters: int
    flops: float
    activations: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a configuration costs for a batch of sequences.

    Attributes:
        config: The configuration.
        batch_size: Sequences.
        sequence_length: Tokens of each, which is also how many keys a query is compared with. An encoder-decoder reads
            so many and writes as many.
        parts: The parts of the network.
        cache_elements_per_token: Elements of the key/value cache for each token of a sequence; of an encoder-decoder
            for each that is read and one that is written.
        state_elements: Elements of the cache that a sequence takes whatever its length.
    """

    config: ModelConfig
    batch_size: int
    sequence_length: int
    parts: Sequence[Part]
    cache_elements_per_token: int
    state_elements: int

    @property
    def parameters(self) -> int:
        """How many elements the parameters have; a tied head counts once."""
        return sum(part.parameters for part in self.parts)

    @property
    def flops_per_token(self) -> float:
        """Operations of a forward pass, per token."""
        return sum(part.flops for part in self.parts)

    @property
    def flops_per_step(self) -> float:
        """Operations of a training step: forward and backward pass of the whole batch."""
        return 3 * self.flops_per_token * self.batch_size * self.sequence_length

    def weight_bytes(self, dtype: str) -> int:
        """Return the memory of the weights."""
        return self.parameters * DTYPE_BYTES[dtype]

    def activation_bytes(self, dtype: str) -> float:
        """Return the memory of what a training step of the batch keeps for its backward pass."""
        tokens = self.batch_size * self.sequence_length
        return sum(part.activations for part in self.parts) * tokens * DTYPE_BYTES[dtype]

    def cache_bytes(self, length: int, dtype: str) -> int:
        """Return the memory of the cache of one sequence of `length` tokens."""
        return (self.state_elements + self.cache_elements_per_token * length) * DTYPE_BYTES[dtype]

    def __str__(self) -> str:
        parts = [tuple(_text(value) for value in row) for row in (self._part_header, *self._part_rows())]
        memory = [tuple(_text(value) for value in row) for row in (_memory_header(), *self._memory_rows())]
        return "\n\n".join((self._title(), text_table(parts), self._operations(), text_table(memory)))

    def _repr_html_(self) -> str:
        return fragment(self.body())

    def body(self) -> str:
        """Return the tables as HTML, without the theme."""
        return (
            f"<p><strong>{escape(self._title())}</strong></p>"
            f"{table(self._part_rows(), self._part_header, row_headers=True)}"
            f"<p>{escape(self._operations())}</p>"
            f"{table(self._memory_rows(), _memory_header(), row_headers=True)}"
            f'<p class="muted">{escape(_EXPLANATION)}</p>'
        )

    def _title(self) -> str:
        config, active = self.config, ""
        if config.num_experts:
            active = f" ({build_without_weights(config).num_active_parameters:,} active)"
        return (
            f"{config.family} ({config.network}): {self.parameters:,} parameters{active}, {config.num_layers} layers, "
            f"{config.hidden_size} wide, context {config.max_positions:,}"
        )

    @property
    def _flops_unit(self) -> tuple[float, str]:
        """The unit in which operations are shown: that of a small model would be rounded away in millions."""
        return (1e6, "MFLOPs") if self.flops_per_token >= 1e6 else (1e3, "kFLOPs")

    @property
    def _part_header(self) -> tuple[str, ...]:
        return ("part", "parameters", "share (%)", f"{self._flops_unit[1]} per token", "share (%)")

    def _part_rows(self) -> list[tuple[object, ...]]:
        whole, flops = self.parameters, self.flops_per_token
        unit, _ = self._flops_unit
        rows: list[tuple[object, ...]] = []
        for part in self.parts:
            name = part.name if part.parameters else f"{part.name}, tied to the embedding"
            shares = _percent(part.parameters / whole), _percent(part.flops / flops)
            rows.append((name, part.parameters, shares[0], part.flops / unit, shares[1]))
        return [*rows, ("total", whole, 100.0, flops / unit, 100.0)]

    def _operations(self) -> str:
        of_both = ", read and as many written" if self.config.network == "encoder_decoder" else ""
        return (
            f"Per token of a forward pass over {self.sequence_length:,} tokens{of_both}. A training step of "
            f"{self.batch_size} x {self.sequence_length:,} tokens takes {_count(self.flops_per_step)}FLOPs, as many as "
            "three forward passes."
        )

    def _memory_rows(self) -> list[tuple[object, ...]]:
        length, context = self.sequence_length, self.config.max_positions
        rows: list[tuple[str, Callable[[str], float]]] = [("weights", self.weight_bytes)]
        of_both = " read and written" if self.config.network == "encoder_decoder" else ""
        if self.cache_elements_per_token:
            rows += [
                (
                    "key/value cache, per token",
                    lambda dtype: self.cache_bytes(1, dtype) - self.cache_bytes(0, dtype),
                ),
                (
                    f"key/value cache, {context:,} tokens{of_both}",
                    lambda dtype: self.cache_bytes(context, dtype),
                ),
            ]
        elif self.state_elements:
            rows.append(("state of a sequence, of any length", lambda dtype: self.cache_bytes(0, dtype)))
        rows.append(
            (f"activations of a training step of {self.batch_size} x {length:,}", self.activation_bytes)
        )
        return [(name, *(size(of(dtype)) for dtype in DTYPE_BYTES)) for name, of in rows]


_EXPLANATION = (
    "FLOPs: 2 for each element of a matrix, and 4 x heads x head width x keys in each layer's attention (Kaplan et al. "
    "2020; Chowdhery et al. 2022). Activations: what the backward pass needs, without attention weights (Korthikanti "
    "et al. 2022). Training with AdamW in float32 takes 16 bytes per parameter, and the activations."
)


def _memory_header() -> tuple[str, ...]:
    return ("memory", *DTYPE_BYTES)


def count_costs(config: ModelConfig, *, batch_size: int = 1, sequence_length: int | None = None) -> Costs:
    """Return what a configuration costs for a batch of sequences; no weight is built.

    Args:
        config: The configuration.
        batch_size: Sequences.
        sequence_length: Tokens of each; None: the whole context.

    Raises:
        UserError: There is no such network, or one of the numbers is less than 1.
    """
    length = config.max_positions if sequence_length is None else sequence_length
    if batch_size < 1 or length < 1:
        raise UserError("batch_size and sequence_length must be at least 1.", where="costs")
    network = build_without_weights(config)
    parameters = Counter[str]()
    flops, kept = defaultdict[str, float](float), defaultdict[str, float](float)
    layers_per_block = config.num_layers / (config.num_layer_groups or config.num_layers)
    shared = _layers_with_a_shared_input(network)
    for path, module in network.named_modules():
        name = _part_of(path, module)
        uses = layers_per_block if path.startswith("blocks.") else 1.0
        if ".relative." in f".{path}":  # of distances, not of tokens
            uses = 0.0
        if ".experts." in path:  # only the chosen ones compute a token
            uses *= config.experts_per_token / config.num_experts
        parameters[name] += sum(own.numel() for own in module.parameters(recurse=False))
        flops[name] += uses * _flops(module, length)
        kept[name] += 0 if module in shared else uses * _kept(module, length)
        if isinstance(module, Positions):
            stack = network.get_submodule(path.rpartition(".")[0])
            kept["attention"] += _kept_for_positions(stack, module, config, (batch_size, length))
            flops["attention"] += _flops_for_positions(module, config, (batch_size, length))
    if config.parallel_block:  # both parts read one tensor, or both of their normalizations do
        kept["norms"] -= config.num_layers * config.hidden_size
    if not config.score_head and network.can != {"embed"}:
        weight = cast(Tensor, network.head_weight)
        if not any(module.weight is weight for module in network.modules() if isinstance(module, nn.Linear)):
            flops["head"] += 2 * weight.numel()
            kept["head"] += weight.shape[1]
    names = [name for name in _PARTS if parameters[name] or flops[name]]
    parts = [Part(name, parameters[name], flops[name], kept[name]) for name in names]
    return Costs(config, batch_size, length, parts, *_cache_elements(network))


_PARTS = (
    "embedding", "attention", "cross-attention", "feed-forward", "time-mixing", "channel-mixing", "norms", "head",
)  # fmt: skip


def _part_of(path: str, module: nn.Module) -> str:
    """Return the part of the network that a module belongs to, by the names that parts have in every network."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return "norms"
    names = path.replace("positions.relative", "attention").split(".")
    for name in ("cross_attention", "attention", "feed_forward", "time_mixing", "channel_mixing", "head"):
        if name in names:
            return name.replace("_", "-")
    return "head" if path in ("pooler", "head_projection", "score") else "embedding"


def _flops(module: nn.Module, keys: int) -> int:
    """Return the operations of a module for one token, those of the modules in it not included."""
    if isinstance(module, nn.Linear):
        return 2 * module.weight.numel()
    if isinstance(module, (Attention, CrossAttention)):
        return 4 * keys * module.query.out_features
    return 0


def _kept(module: nn.Module, keys: int) -> int:
    """Return the elements that a module keeps of one token for the backward pass, likewise."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return module.weight.numel()
    if isinstance(module, CrossAttention):
        return module.query.out_features + module.key.out_features + module.value.out_features
    if isinstance(module, Attention):
        heads = module.query.out_features + module.key.out_features
        normalized = 0 if module.query_norm is None else heads
        if module.softcap:  # no fused kernel bounds scores, so that these and the weights are kept
            num_heads = module.query.out_features // module.head_dim
            return 2 * num_heads * keys + module.value.out_features + normalized
        return heads + module.value.out_features + normalized
    if isinstance(module, MixtureOfExperts):  # what the experts of a token made of it, to be weighted
        return module.experts_per_token * module.router.in_features
    if isinstance(module, FeedForward):
        width = module.up.out_features
        if module.gate is None:
            return 0 if module.activation is F.relu else width
        factors = {F.silu: 2, gelu_tanh: 4}  # how often the inner part is kept, in whole or in parts
        return factors.get(module.activation, 3) * width
    if isinstance(
        module, TimeMixing
    ):  # both tokens of the mixtures; of the mean, its operands and states; the gate
        return 9 * module.key.out_features
    if isinstance(module, ChannelMixing):
        return 4 * module.value.out_features + module.key.out_features
    return 0


def _layers_with_a_shared_input(network: Network) -> set[nn.Module]:
    """Return the linear layers whose input another layer keeps already."""
    shared: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, JoinedLinears):
            shared.update(getattr(module, name) for name in module.joined[1:])
        if isinstance(module, CrossAttention):
            shared.add(module.key)  # what the encoder made: one tensor for all layers
    return shared


def _flops_for_positions(scheme: Positions, config: ModelConfig, batch: tuple[int, int]) -> float:
    """Return the operations of the layers of a stack for one token because of its position scheme."""
    if not isinstance(scheme, TransformerXLPositions):
        return 0.0
    batch_size, length = batch
    distances = length if scheme.causal else 2 * length - 1
    once = 2 * sum(weight.numel() for weight in scheme.relative.parameters()) * distances
    of_a_query = 2 * config.num_heads * config.head_dim * distances
    return len(scheme.relative) * of_a_query + once / (batch_size * length)


def _kept_for_positions(
    stack: nn.Module, scheme: Positions, config: ModelConfig, batch: tuple[int, int]
) -> float:
    """Return the elements that the layers of a stack keep of one token because of its position scheme."""
    blocks = cast(nn.ModuleList, stack.blocks)
    layers = config.num_layers if config.num_layer_groups else len(blocks)
    batch_size, length = batch
    if isinstance(scheme, TransformerXLPositions):
        # Attention weights, and the scores of all distances; queries, twice; once for the batch, places and W_R R.
        queries, distances = config.num_heads * config.head_dim, length if scheme.causal else 2 * length - 1
        of_batch = 4 * length + queries * distances / length
        return layers * (config.num_heads * (length + distances) + 2 * queries + of_batch / batch_size)
    if type(scheme).rotate is not Positions.rotate:  # queries and keys before and after
        queries = config.num_heads * config.head_dim
        # Of heads that are put together of two parts, the result of attention lies in another order: it is copied.
        copied = queries if config.rotary_dim < config.head_dim or config.rotary_interleaved else 0
        return float(layers * (queries + config.num_kv_heads * config.head_dim + copied))
    if type(scheme).bias is Positions.bias:
        return 0.0
    weights = config.num_heads * length
    if any(parameter.requires_grad for parameter in scheme.parameters()):
        # No fused kernel has a gradient for the bias, so the attention weights are kept; and so are, once for the
        # batch, the bias and its buckets.
        return layers * weights + 2 * weights / batch_size
    # Where the future is hidden, each layer does so in a copy of its own.
    copies = layers if isinstance(stack, CausalNetwork) or getattr(stack, "is_decoder", False) else 1
    return copies * weights / batch_size


def _cache_elements(network: Network) -> tuple[int, int]:
    """Return how many elements the cache of a sequence has for each token, and whatever its length."""
    if not hasattr(network, "make_cache"):
        return 0, 0
    made = [cast(CausalNetwork, network).make_cache(1, length) for length in (1, 2)]
    one, two = (cache.num_bytes // network.dtype.itemsize for cache in made)
    crossed = sum(
        module.key.out_features + module.value.out_features
        for module in network.modules()
        if isinstance(module, CrossAttention)
    )
    return two - one + crossed, 2 * one - two


def _percent(share: float) -> float:
    return round(100 * share, 1)


def _count(value: float) -> str:
    """Return a number with three digits and an SI prefix.

    >>> _count(285_000_000), _count(20.5e12), _count(0)
    ('285 M', '20.5 T', '0 ')
    """
    for power, prefix in zip(range(24, 0, -3), "YZEPTGMk", strict=True):
        if value >= 0.9995 * 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.0f} "


def _text(value: object) -> str:
    return number(value) if isinstance(value, (int, float)) else str(value)
