"""What each module of a network computes for a token, and what of it a training step keeps, counted without weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from nbllm.models.config import ModelConfig
from nbllm.models.network import CausalNetwork, Network
from nbllm.nn.attention import Attention
from nbllm.nn.attention_backends.blocked import num_kept_weights
from nbllm.nn.cross_attention import CrossAttention
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.gelu import gelu_tanh
from nbllm.nn.joined import JoinedLinears
from nbllm.nn.mixture_of_experts import MixtureOfExperts
from nbllm.nn.positions import Positions, TransformerXLPositions
from nbllm.nn.time_mixing import ChannelMixing, TimeMixing

Width = Literal["stream", "input", "inner"]
"""Of what is kept: as wide as the residual stream; the same, read by the first matrices of a part; or as wide as the
heads or the inner feed-forward layer, which tensor parallelism divides."""


@dataclasses.dataclass(frozen=True)
class ModuleCosts:
    """What one module costs, those in it not included.

    Attributes:
        path: Its name in the network.
        part: One of `PARTS`.
        parameters: Elements of its own parameters.
        flops: Floating-point operations of a forward pass, per token.
        scores: Of these, those of attention's scores and of the values that they weigh.
        kept: Elements that a training step keeps for the backward pass, per token.
        width: Which kind these are.
        made: Elements that a matrix makes of a token.
    """

    path: str
    part: str
    parameters: int = 0
    flops: float = 0.0
    scores: float = 0.0
    kept: float = 0.0
    width: Width = "stream"
    made: float = 0.0


PARTS = (
    "embedding", "attention", "cross-attention", "feed-forward", "time-mixing", "channel-mixing", "norms", "head",
)  # fmt: skip


def module_costs(
    network: Network, batch_size: int, length: int, *, keeps_weights: bool = False
) -> Iterator[ModuleCosts]:
    """Yield what each module of a network costs.

    Args:
        network: The network; it may be on "meta".
        batch_size: Sequences.
        length: Tokens of each, which is also how many keys a query is compared with.
        keeps_weights: Whether attention weights are kept, as "blocked" keeps those of short sequences on the CPU.
    """
    config = network.config
    layers_per_block = config.num_layers / (config.num_layer_groups or config.num_layers)
    shared = _layers_with_a_shared_input(network)
    for path, module in network.named_modules():
        uses = layers_per_block if path.startswith("blocks.") else 1.0
        if ".relative." in f".{path}":  # of distances, not of tokens
            uses = 0.0
        if ".experts." in path:  # only the chosen ones compute a token
            uses *= config.experts_per_token / config.num_experts
        scores = _scores(module, length)
        kept = 0.0 if module in shared else float(_kept(module, length))
        if keeps_weights and isinstance(module, (Attention, CrossAttention)):
            kept += _kept_weights(module, length, causal=_is_causal(network, path))
        yield ModuleCosts(
            path,
            _part_of(path, module),
            parameters=sum(own.numel() for own in module.parameters(recurse=False)),
            flops=uses * (scores + (2 * module.weight.numel() if isinstance(module, nn.Linear) else 0)),
            scores=uses * scores,
            kept=uses * kept,
            width=_width(path, module),
            made=uses * module.out_features if isinstance(module, nn.Linear) else 0.0,
        )
        if isinstance(module, Positions):
            yield from _costs_of_positions(network, path, module, (batch_size, length))
    yield from _costs_outside_modules(network)


def _costs_of_positions(
    network: Network, path: str, scheme: Positions, batch: tuple[int, int]
) -> Iterator[ModuleCosts]:
    """Yield what each attention layer of a stack costs because of its position scheme."""
    name = path.rpartition(".")[0]
    stack = network.get_submodule(name)
    layers = len(cast(nn.ModuleList, stack.blocks))
    kept = _kept_for_positions(stack, scheme, network.config, batch) / layers
    flops = _flops_for_positions(scheme, network.config, batch) / layers
    for layer in range(layers):
        attention = f"{name}.blocks.{layer}.attention".lstrip(".")
        yield ModuleCosts(attention, "attention", flops=flops, kept=kept, width="inner")


def _costs_outside_modules(network: Network) -> Iterator[ModuleCosts]:
    """Yield what is no module's own: the head that is the embedding, and the input that two norms share."""
    config = network.config
    if config.parallel_block:  # both parts read one tensor, or both of their normalizations do
        for layer in range(config.num_layers):
            yield ModuleCosts(f"blocks.{layer}.attention_norm", "norms", kept=-float(config.hidden_size))
    if config.score_head or network.can == {"embed"}:
        return
    weight = cast(Tensor, network.head_weight)
    if not any(module.weight is weight for module in network.modules() if isinstance(module, nn.Linear)):
        yield ModuleCosts(
            "head", "head", flops=2.0 * weight.numel(), kept=float(weight.shape[1]), width="input"
        )


def _part_of(path: str, module: nn.Module) -> str:
    """Return the part of the network that a module belongs to, by the names that parts have in every network."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return "norms"
    names = path.replace("positions.relative", "attention").split(".")
    for name in ("cross_attention", "attention", "feed_forward", "time_mixing", "channel_mixing", "head"):
        if name in names:
            return name.replace("_", "-")
    return "head" if path in ("pooler", "head_projection", "score") else "embedding"


def _scores(module: nn.Module, keys: int) -> int:
    """Return the operations of a token's attention scores, and of the values that they weigh."""
    if isinstance(module, (Attention, CrossAttention)):
        return 4 * keys * module.query.out_features
    return 0


def _width(path: str, module: nn.Module) -> Width:
    """Return which kind the elements are that a module keeps."""
    *_, parent, name = f"..{path}".split(".")
    if isinstance(module, nn.Linear):
        return "inner" if name in ("output", "down") and parent != "" else "input"
    return "inner" if isinstance(module, (Attention, CrossAttention, FeedForward)) else "stream"


def _is_causal(network: Network, path: str) -> bool:
    """Return whether an attention layer sees only what is before a token."""
    is_decoder = isinstance(network, CausalNetwork) or path.startswith("decoder.")
    return is_decoder and not path.endswith("cross_attention")


def _kept_weights(module: Attention | CrossAttention, length: int, *, causal: bool) -> float:
    """Return the attention weights that "blocked" keeps, per token."""
    num_heads = module.query.out_features // module.head_dim
    return num_heads * num_kept_weights(length, length, module.head_dim, causal=causal) / length


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
