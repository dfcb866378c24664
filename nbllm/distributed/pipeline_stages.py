"""The stages of a pipeline: which blocks each computes, and the part of a network that computes them.

A stage is a run of consecutive blocks; those of an encoder-decoder are counted through both stacks, first those of the
encoder. The part of a network that a rank keeps is the network itself without the modules that its stages do not need:
every parameter has the name that it has in the whole network. A parameter that several ranks need, such as the
embedding that is also the head, or the relative positions of T5, is kept by each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from torch import nn

from nbllm.core.errors import UserError
from nbllm.distributed.staged_network import EarlierPositions, Stage, compute_in_stages
from nbllm.models.decoder import Decoder
from nbllm.models.encoder import Encoder
from nbllm.models.encoder_decoder import EncoderDecoder, Stack
from nbllm.models.network import Network
from nbllm.nn.mixture_of_experts import MixtureOfExperts
from nbllm.nn.positions import Positions


def make_stages(network: Network, count: int, *, sequence_length: int | None = None) -> list[Stage]:
    """Divide a network into stages of which the most expensive is as cheap as it can be.

    Args:
        network: The whole network; its parameters may be on the device "meta".
        count: How many stages.
        sequence_length: With how many keys a query is compared; None: the network's whole context.

    Raises:
        UserError: The network cannot be divided, or has fewer blocks than there would be stages.
    """
    check_divisible(network)
    costs = block_costs(network, network.context_length if sequence_length is None else sequence_length)
    if len(costs) < count:
        raise UserError(
            f"A pipeline of {count} stages needs {count} blocks; this network has {len(costs)}.",
            where="Plan",
            hint=f"Use at most {len(costs)} stages: a smaller pipeline, or a schedule with one stage on each rank.",
        )
    return [Stage(index, run, len(costs)) for index, run in enumerate(balanced_runs(costs, count))]


def check_divisible(network: nn.Module) -> None:
    """Raise `UserError` where a network cannot be divided into stages, with the reason."""
    if not isinstance(network, (Decoder, Encoder, EncoderDecoder)):
        kind = network.kind if isinstance(network, Network) else type(network).__name__
        raise UserError(
            f"A pipeline divides decoders, encoders and encoder-decoders; this is {kind}.",
            where="Plan",
            hint="Use pipeline=1.",
        )
    config = network.config
    if config.num_layer_groups:
        raise UserError(
            "The layers of this network share their blocks, so that no rank could do without one.",
            where="Plan",
            hint="Use pipeline=1.",
        )
    if config.router_loss_weight:
        raise UserError(
            "The loss that balances the experts is computed over the routers of all layers together, and a stage has "
            "only its own.",
            where="Plan",
            hint="Use pipeline=1, or a model with router_loss_weight=0.",
        )


def block_costs(network: Network, keys: int) -> list[float]:
    """Return what each block costs per token, in multiplications; embedding and head count with the ends.

    Args:
        network: The whole network.
        keys: With how many keys a query is compared.
    """
    config = network.config
    attention = 2.0 * config.num_heads * config.head_dim * keys
    costs = []
    for stack in stacks_of(network).values():
        crosses = isinstance(stack, Stack) and stack.is_decoder
        costs += [_matrix_elements(block) + attention * (1 + crosses) for block in stack.blocks]
    costs[0] += sum(_matrix_elements(getattr(network, name, None)) for name in _AT_BEGIN)
    costs[-1] += sum(_matrix_elements(getattr(network, name, None)) for name in _AT_END)
    if is_tied(network):
        costs[-1] += _matrix_elements(network.get_submodule("embedding"))
    return costs


def _matrix_elements(module: object) -> float:
    """Return with how many elements of a module's matrices a token is multiplied."""
    if not isinstance(module, nn.Module):
        return 0.0
    elements = float(sum(weight.numel() for weight in module.parameters() if weight.dim() > 1))
    for mixture in module.modules():
        if isinstance(mixture, MixtureOfExperts):
            of_experts = sum(weight.numel() for weight in mixture.experts.parameters() if weight.dim() > 1)
            elements -= of_experts * (1 - mixture.experts_per_token / len(mixture.experts))
    return elements


def balanced_runs(costs: Sequence[float], count: int) -> list[range]:
    """Divide items into consecutive runs, none empty: the dearest as cheap as can be, then all as alike as can be.

    Args:
        costs: Of each item; at least `count`.
        count: How many runs.
    """
    sums = [0.0, *accumulate(costs)]
    dearest = _best(sums, count, lambda best, cost: max(best, cost))[0]

    def squares(best: float, cost: float) -> float:
        return best + cost**2 if cost <= dearest * (1 + 1e-9) else float("inf")

    starts = _best(sums, count, squares)[1]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(costs)], strict=True)]


def _best(sums: Sequence[float], count: int, added: Any) -> tuple[float, list[int]]:
    """Return the least measure of `count` runs, and where they start.

    Args:
        sums: Of the costs before each item, and of all.
        count: How many runs.
        added: Returns the measure of some runs and one more from that of these and the cost of that.
    """
    none: tuple[float, list[int]] = (float("inf"), [])
    table: list[tuple[float, list[int]]] = [(0.0, []), *[none] * (len(sums) - 1)]
    for _ in range(count):
        longer = [none]
        for stop in range(1, len(sums)):
            options = ((added(table[start][0], sums[stop] - sums[start]), start) for start in range(stop))
            least, start = min(options)
            longer.append((least, [*table[start][1], start]))
        table = longer
    return table[-1]


def stacks_of(network: Network) -> dict[str, Any]:
    """Return the stacks of blocks by the prefix of their parameters' names, in the order in which they are computed."""
    if isinstance(network, EncoderDecoder):
        return {"encoder.": network.encoder, "decoder.": network.decoder}
    return {"": network}


def is_tied(network: Network) -> bool:
    """Return whether the head is the embedding."""
    if isinstance(network, Encoder):
        return network.head is not None
    return network.config.tie_embeddings and not network.config.score_head


# Modules and parameters of a network that only its first stage needs, and only its last.
_AT_BEGIN = ("projection", "token_types")
_AT_END = ("head_projection", "head", "head_bias", "score", "pooler")


def absent_from(network: Network, stages: Sequence[Stage]) -> set[str]:
    """Return the paths of the modules and parameters of a whole network that none of some stages needs."""
    here = {number for stage in stages for number in stage.blocks}
    is_first, is_last = (any(getattr(stage, name) for stage in stages) for name in ("is_first", "is_last"))
    absent = set[str]() if is_first else set(_AT_BEGIN)
    if not is_last:
        absent |= set(_AT_END)
    embeds = is_last and is_tied(network)
    before = 0
    for prefix, stack in stacks_of(network).items():
        count = len(stack.blocks)
        own = {number - before for number in here if before <= number < before + count}
        before += count
        absent |= {f"{prefix}blocks.{number}" for number in range(count) if number not in own}
        embeds = embeds or 0 in own
        if 0 not in own:
            absent.add(f"{prefix}embedding_norm")
        if not own or (0 not in own and _is_only_embedded(stack.positions)):
            absent.add(f"{prefix}positions")
        if count - 1 not in own:
            absent.add(f"{prefix}norm")
    if not embeds:
        absent.add("embedding")
    return {path for path in absent if _find(network, path) is not None}


def _is_only_embedded(scheme: Positions) -> bool:
    """Return whether positions enter with the embedding alone, and not in attention."""
    kind = type(scheme)
    return not any(
        getattr(kind, name) is not getattr(Positions, name) for name in ("rotate", "bias", "score")
    )


def _find(network: nn.Module, path: str) -> object:
    found: object = network
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def names_of(network: Network, stages: Sequence[Stage]) -> list[str]:
    """Return the names of the parameters that some stages need, in the order of the whole network."""
    absent = absent_from(network, stages)
    return [
        name
        for name, _ in network.named_parameters()
        if not any(name == path or name.startswith(f"{path}.") for path in absent)
    ]


def keep_stages(network: Network, stages: Sequence[Stage]) -> None:
    """Take from a whole network, in place, what none of some stages needs; it then computes one stage at a time.

    See `staged_network`.
    """
    absent, vocabulary = absent_from(network, stages), network.vocabulary_parameters
    for prefix, stack in stacks_of(network).items():
        blocks = nn.ModuleList()
        for name, block in stack.blocks.named_children():
            if f"{prefix}blocks.{name}" not in absent:
                blocks.add_module(name, block)
        stack.blocks = blocks
        if f"{prefix}positions" in absent:
            stack.positions = EarlierPositions()
    for path in absent:
        parent, _, name = path.rpartition(".")
        owner = network.get_submodule(parent)
        if name in owner._parameters:
            owner.register_parameter(name, None)
        elif name != "positions" and not parent.endswith("blocks"):
            setattr(owner, name, None)
    compute_in_stages(network, vocabulary)
