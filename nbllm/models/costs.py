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

from nbllm.core.errors import UserError
from nbllm.core.html import escape, fragment, table
from nbllm.core.quantities import number, size
from nbllm.core.text_table import text_table
from nbllm.models.config import ModelConfig
from nbllm.models.module_costs import PARTS, module_costs
from nbllm.models.network import CausalNetwork, Network, build_without_weights
from nbllm.nn.cross_attention import CrossAttention

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class Part:
    """What a part of a network costs.

    Attributes:
        name: One of `PARTS`: "embedding", "attention", "feed-forward", "norms", "head", ...
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
        score_flops: Of the operations of a forward pass, those of attention's scores and weighted values, per token.
        cache_elements_per_token: Elements of the key/value cache for each token of a sequence; of an encoder-decoder
            for each that is read and one that is written.
        state_elements: Elements of the cache that a sequence takes whatever its length.
    """

    config: ModelConfig
    batch_size: int
    sequence_length: int
    parts: Sequence[Part]
    score_flops: float
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

    @property
    def causal_flops_per_step(self) -> float:
        """The same without the scores that a causal mask hides: half of them."""
        hidden = self.score_flops / 2
        return 3 * (self.flops_per_token - hidden) * self.batch_size * self.sequence_length

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
    flops, kept, scores = defaultdict[str, float](float), defaultdict[str, float](float), 0.0
    for each in module_costs(network, batch_size, length):
        parameters[each.part] += each.parameters
        flops[each.part] += each.flops
        kept[each.part] += each.kept
        scores += each.scores
    names = [name for name in PARTS if parameters[name] or flops[name]]
    parts = [Part(name, parameters[name], flops[name], kept[name]) for name in names]
    return Costs(config, batch_size, length, parts, scores, *_cache_elements(network))


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
