"""Which parameters each rank of a plan holds, unit by unit; no weight is built and no process started."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Collection, Sequence

from torch import nn

from nbllm.distributed.pipeline_schedule import schedule_kind
from nbllm.distributed.pipeline_stages import make_stages, names_of
from nbllm.distributed.plan import Plan
from nbllm.distributed.staged_network import Stage
from nbllm.distributed.tensor_shares import shares
from nbllm.models.config import ModelConfig
from nbllm.models.module_costs import Width, module_costs
from nbllm.models.network import Network, build_without_weights

_BLOCK = re.compile(r"(?:.*\.)?blocks\.\d+(?=\.)")

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter, by the name that it has in a network of one process.

    Attributes:
        name: Its name.
        shape: Of the whole.
        tensor_dim: The dimension that tensor ranks share out; None: each has all of it.
    """

    name: str
    shape: Shape
    tensor_dim: int | None = None

    def of_rank(self, *, tensor: int = 1, shards: int = 1, tensor_rank: int = 0, shard: int = 0) -> Shape:
        """Return the shape of what one rank holds.

        A dimension is cut into parts of ceil(size / ranks), of which the last ones may be smaller or empty, as
        `torch.chunk` and DTensor's `Shard` cut it. Data ranks share out the first dimension of what tensor ranks leave.

        Args:
            tensor: Tensor ranks.
            shards: Data ranks that share it out.
            tensor_rank: Which of the former.
            shard: Which of the latter.
        """
        shape = list(self.shape)
        if self.tensor_dim is not None:
            shape[self.tensor_dim] = _part(shape[self.tensor_dim], tensor, tensor_rank)
        if shape:
            shape[0] = _part(shape[0], shards, shard)
        return tuple(shape)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A block, or what comes before or after all blocks: what a plan places, gathers and computes again as one.

    Attributes:
        name: "embedding", "blocks.3", "decoder.blocks.0", "head".
        parameters: Its own; a tied head has none, except on a pipeline stage that has no embedding beside it.
        kept: Elements that a training step keeps for the backward pass, per token, by their width.
        made: Elements that its matrices make of a token: those that tensor ranks share out, and the others.
        flops: Operations of a forward pass, per token.
    """

    name: str
    parameters: tuple[Parameter, ...]
    kept: dict[Width, float]
    made: tuple[float, float]
    flops: float

    @property
    def is_block(self) -> bool:
        """Whether it is a block."""
        return "blocks." in self.name

    def elements(self, *, tensor: int = 1, shards: int = 1) -> int:
        """Return how many elements of its parameters a rank holds, the one that holds most."""
        return _elements(self.parameters, tensor, shards)


def stages_of(
    config: ModelConfig, plan: Plan, batch_size: int, length: int, *, keeps_weights: bool = False
) -> list[list[Unit]]:
    """Return the units that each rank of the pipeline computes, in their order.

    Args:
        config: The network's shape.
        plan: The plan, sized.
        batch_size: Sequences.
        length: Tokens of each.
        keeps_weights: Whether the attention backend keeps the attention weights of short sequences.

    Raises:
        UserError: The network cannot be divided so.
    """
    units = _units(config, plan.tensor, plan.sequence, (batch_size, length), keeps_weights)
    if plan.pipeline == 1:
        return [units]
    blocks = [unit for unit in units if unit.is_block]
    found = []
    for own, names in _stages_of_ranks(config, plan.pipeline, plan.schedule, length):
        computed = [blocks[number] for stage in own for number in stage.blocks]
        first = [units[0]] if any(stage.is_first for stage in own) else []
        last = [units[-1]] if any(stage.is_last for stage in own) else []
        found.append(_holding([*first, *computed, *last], names, units))
    return found


@functools.lru_cache(maxsize=64)
def _stages_of_ranks(
    config: ModelConfig, ranks: int, schedule: str, length: int
) -> list[tuple[list[Stage], frozenset[str]]]:
    """Return the stages of each rank of a pipeline, and the names of the parameters that they need."""
    network = _network(config)
    stages = make_stages(network, ranks * schedule_kind(schedule).chunks, sequence_length=length)
    return [(own := stages[rank::ranks], frozenset(names_of(network, own))) for rank in range(ranks)]


@functools.lru_cache(maxsize=4096)
def _elements(parameters: tuple[Parameter, ...], tensor: int, shards: int) -> int:
    return sum(count(each.of_rank(tensor=tensor, shards=shards)) for each in parameters)


def count(shape: Shape) -> int:
    """Return how many elements a shape has."""
    return math.prod(shape)


def _holding(computed: Sequence[Unit], names: Collection[str], units: Sequence[Unit]) -> list[Unit]:
    """Return units with the parameters of these names; what belongs to a unit of another rank comes with the last."""
    own = [
        dataclasses.replace(unit, parameters=tuple(each for each in unit.parameters if each.name in names))
        for unit in computed
    ]
    held = {each.name for unit in own for each in unit.parameters}
    more = [
        each for unit in units for each in unit.parameters if each.name in names and each.name not in held
    ]
    own[-1] = dataclasses.replace(own[-1], parameters=(*own[-1].parameters, *more))
    return own


@functools.lru_cache(maxsize=4)
def _network(config: ModelConfig) -> Network:
    return build_without_weights(config)


@functools.lru_cache(maxsize=64)  # who searches for a plan asks for the same again and again
def _units(
    config: ModelConfig, tensor: int, sequence: bool, batch: tuple[int, int], keeps_weights: bool
) -> list[Unit]:
    network = _network(config)
    shared = shares(network, tensor, sequence=sequence)
    kept: dict[str, dict[Width, float]] = defaultdict(lambda: {"stream": 0.0, "input": 0.0, "inner": 0.0})
    made: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    flops: dict[str, float] = defaultdict(float)
    for each in module_costs(network, *batch, keeps_weights=keeps_weights):
        name = _unit_of(network, each.path)
        share = shared.get(f"{each.path}.weight")
        kept[name][each.width] += each.kept
        made[name][0 if share is not None and share.dim == 0 else 1] += each.made
        flops[name] += each.flops
    parameters: dict[str, list[Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        placed = Parameter(name, tuple(parameter.shape), shared[name].dim)
        parameters[_unit_of(network, name)].append(placed)
    blocks = [name for name in dict.fromkeys([*kept, *parameters]) if "blocks." in name]
    return [
        Unit(name, tuple(parameters[name]), kept[name], (made[name][0], made[name][1]), flops[name])
        for name in ("embedding", *blocks, "head")
    ]


def _part(size: int, parts: int, place: int) -> int:
    """Return the size of one part of a dimension that is cut as `torch.chunk` cuts it."""
    each = -(-size // parts)
    return max(0, min(each, size - place * each))


def _unit_of(network: Network, path: str) -> str:
    """Return the name of the unit that a module or parameter belongs to."""
    found = _BLOCK.match(f"{path}.")
    if found:
        return found.group()
    first, _, rest = path.partition(".")
    stack: nn.Module = network
    if isinstance(inner := getattr(network, first, None), nn.Module) and hasattr(inner, "blocks"):
        stack, first = inner, rest.partition(".")[0]
    children = [name for name, _ in stack.named_children()]
    after = children[children.index("blocks") :] if "blocks" in children else []
    return "head" if first in after or first == "head" else "embedding"
