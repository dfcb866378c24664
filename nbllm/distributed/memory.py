"""How much memory each rank of a plan needs, counted from the network's shape and the plan's own arithmetic.

A step has two moments at which memory is highest. At the end of the last forward pass that is not yet followed by its
backward pass, all activations are held; at the end of the backward pass, all gradients. What is kept between steps is
held at both.

Sources: Rajbhandari et al. 2019 (ZeRO), arXiv:1910.02054, section 3 and figure 1; Korthikanti et al. 2022,
arXiv:2205.05198, section 4, for `textbook_activation_bytes`. What this package's own network keeps is another sum
(`models.module_costs`): attention weights are computed again or kept only below the diagonal, there is no dropout, and
activations are fused.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

from nbllm.core.errors import UserError, nearest
from nbllm.distributed.data_parallel import BUCKET_BYTES
from nbllm.distributed.pipeline_schedule import schedule_kind
from nbllm.distributed.placement import Parameter, Shape, Unit, count
from nbllm.distributed.plan import Plan
from nbllm.models.config import ModelConfig
from nbllm.models.costs import DTYPE_BYTES
from nbllm.nn.linear_cross_entropy import rows_of_a_chunk
from nbllm.nn.matmul import MOST_FOR_ONEDNN

BETWEEN, FORWARD, BACKWARD = "between steps", "end of forward", "end of backward"
MOMENTS = (BETWEEN, FORWARD, BACKWARD)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What a plan is asked to train; it has all of `plan.RunFacts`.

    Args:
        batch_size: Sequences in one forward pass of a data rank.
        sequence_length: Tokens of each.
        accumulation: Forward passes of a data rank in one step; a pipeline's micro-batches.
        precision: What the network computes in.
        optimizer: A name in `OPTIMIZER_STATES`.
        device: "cuda", or "cpu", whose attention kernels keep the weights of short sequences.
        objective: The name of the objective.
        packing: How documents share a sequence.
    """

    batch_size: int
    sequence_length: int
    accumulation: int = 1
    precision: str = "bfloat16"
    optimizer: str = "adamw"
    device: str = "cuda"
    objective: str = "causal_lm"
    packing: str = "concatenated"

    def __post_init__(self) -> None:
        for name in ("batch_size", "sequence_length", "accumulation"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1.", where="explain")
        if self.optimizer not in OPTIMIZER_STATES:
            raise UserError(
                f"There is no optimizer {self.optimizer!r}.",
                where="explain",
                hint=nearest(self.optimizer, OPTIMIZER_STATES),
            )

    @property
    def itemsize(self) -> int:
        """Bytes of an element of what the network computes in."""
        return DTYPE_BYTES.get(self.precision, 2)

    @property
    def has_masters(self) -> bool:
        """Whether float32 weights are held beside those that compute."""
        return self.precision != "float32"


def _adafactor(parameter: Parameter, held: Shape) -> float:
    """Sums over rows and over columns stand for the second moment of a matrix; every rank has all of them."""
    shape = parameter.shape
    if len(shape) < 2:
        return 4.0 * count(shape)
    return 4.0 * (count(shape[:-1]) + count((*shape[:-2], shape[-1])))


def _muon(parameter: Parameter, held: Shape) -> float:
    """One moment for the matrices of blocks, and AdamW's two for all others."""
    of_block = len(held) == 2 and "blocks" in parameter.name.split(".")
    return (4.0 if of_block else 8.0) * count(held)


def _adamw_8bit(parameter: Parameter, held: Shape) -> float:
    """A byte for each element of a moment, and a scale for each block of it; in float32 for what is small."""
    columns = parameter.shape[-1] if parameter.shape else 1
    block = next(size for size in range(min(256, columns), 0, -1) if columns % size == 0)
    if len(held) < 2 or count(parameter.shape) < 4096 or block < 64 or held[-1] % block:
        return 8.0 * count(held)
    return 2.0 * count(held) + 8.0 * count(held) / block


OPTIMIZER_STATES: Mapping[str, Callable[[Parameter, Shape], float]] = {
    "adamw": lambda parameter, held: 8.0 * count(held),
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "lion": lambda parameter, held: 4.0 * count(held),
    "muon": _muon,
}
"""Bytes of each optimizer's state, for a parameter and the shape of what a rank holds of it."""


@functools.lru_cache(maxsize=4096)
def state_bytes(parameters: tuple[Parameter, ...], *, optimizer: str, tensor: int, shards: int) -> float:
    """Return the bytes of an optimizer's state for what a rank holds of some parameters."""
    of_state = OPTIMIZER_STATES[optimizer]
    return sum(of_state(each, each.of_rank(tensor=tensor, shards=shards)) for each in parameters)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What one rank holds.

    Attributes:
        stage: The rank's place on the pipeline.
        parts: Bytes of each part at each of `MOMENTS`, by the part's name.
        offloaded: Bytes that are kept in the CPU's memory or on disk instead.
    """

    stage: int
    parts: Mapping[str, tuple[float, float, float]]
    offloaded: float = 0.0

    def at(self, moment: str) -> float:
        """Return the bytes held at one of `MOMENTS`."""
        place = MOMENTS.index(moment)
        return sum(values[place] for values in self.parts.values())

    @property
    def peak(self) -> float:
        """The most that is held at once, in bytes."""
        return max(map(self.at, MOMENTS))


def rank_memory(
    stage_units: Sequence[Unit], plan: Plan, work: Workload, *, stage: int, config: ModelConfig
) -> Memory:
    """Return what the rank with the largest parts on a stage of the pipeline holds.

    Args:
        stage_units: The units of the stage.
        plan: The plan, sized.
        work: What it trains.
        stage: The stage's place, from 0.
        config: The network's shape.
    """
    held = _Held(stage_units, plan, work, stage, config)
    parts = {
        "parameters": (held.parameters,) * 3,
        "float32 masters": (held.masters,) * 3,
        f"{work.optimizer} states": (held.states,) * 3,
        "gradients": (0.0, held.gradients if held.accumulates else 0.0, held.gradients),
        "activations": (0.0, held.activations, held.late_activations),
        "gathered parameters": (held.resident, held.gathered, held.gathered),
        "gradients of a unit": (0.0, 0.0, held.passing_gradients),
        "loss: logits, gradients of the head": (0.0, held.loss, 0.0),
    }
    offloaded = 0.0
    if plan.offload != "none":
        kept = ("parameters", "float32 masters", f"{work.optimizer} states", "gradients")
        offloaded = sum(parts.pop(name)[-1] for name in kept)
    return Memory(stage, {name: values for name, values in parts.items() if any(values)}, offloaded)


class _Held:
    """The sums for one rank."""

    def __init__(
        self, stage_units: Sequence[Unit], plan: Plan, work: Workload, stage: int, config: ModelConfig
    ) -> None:
        self.units, self.plan, self.work, self.stage, self.config = stage_units, plan, work, stage, config
        self.tokens = work.batch_size * work.sequence_length / plan.context
        self.blocks = [unit for unit in stage_units if unit.is_block]
        self.shards = plan.num_shards if plan.is_sharded else 1

    @functools.cached_property
    def elements(self) -> int:
        """Of the parameters that the rank holds between steps."""
        return sum(unit.elements(tensor=self.plan.tensor, shards=self.shards) for unit in self.units)

    def whole(self, units: Iterable[Unit]) -> list[int]:
        """Return the elements of units as the rank computes with them: not sharded over data ranks."""
        return [unit.elements(tensor=self.plan.tensor) for unit in units]

    @property
    def parameters(self) -> float:
        itemsize = 4 if self.plan.is_sharded else self.work.itemsize  # rounded when they are gathered
        return float(itemsize * self.elements)

    @property
    def masters(self) -> float:
        if self.plan.is_sharded or not self.work.has_masters:
            return 0.0
        return 4.0 * self._updated

    @property
    def _updated(self) -> int:
        """Elements of the parameters that the rank updates: of ZeRO-1 its rows of each."""
        shards = self.plan.num_shards
        return sum(unit.elements(tensor=self.plan.tensor, shards=shards) for unit in self.units)

    @property
    def gradients(self) -> float:
        return 4.0 * self.elements

    @property
    def states(self) -> float:
        of_unit = functools.partial(
            state_bytes, optimizer=self.work.optimizer, tensor=self.plan.tensor, shards=self.plan.num_shards
        )
        return sum(of_unit(unit.parameters) for unit in self.units)

    @property
    def accumulates(self) -> bool:
        """Whether gradients of earlier micro-batches are held while activations are."""
        return self.work.accumulation > 1

    @property
    def resident(self) -> float:
        """What of the parameters to compute with is on the device between steps, where the others are fetched."""
        is_alone = self.plan.offload == "cpu" and not self.plan.is_sharded
        return float(self.work.itemsize * sum(self._outside)) if is_alone else 0.0

    @property
    def gathered(self) -> float:
        """Whole parameters to compute with that were gathered or fetched: the root's, a block's and the next one's."""
        if not self.plan.is_sharded and self.plan.offload == "none":
            return 0.0
        sizes = sorted(self.whole(self.blocks), reverse=True)
        outside = sum(self._outside)
        blocks = sum(sizes) if self.plan.is_sharded and self.plan.zero == 2 else sum(sizes[:2])
        return float(self.work.itemsize * (blocks + outside))

    @property
    def passing_gradients(self) -> float:
        """Gradients on their way: a unit's before they are summed, those in the network's dtype, a dense one."""
        sizes = self.whole(self.units)
        if self.plan.is_sharded:  # as they were computed, and in float32 to be summed
            return float((self.work.itemsize + 4) * max(sizes))
        dense = self._dense_embedding_gradient
        if self.plan.offload == "cpu":  # a block's leave while the next ones are made
            two = sum(sorted(self.whole(self.blocks), reverse=True)[:2])
            return float(self.work.itemsize * (two + max(self._outside))) + dense
        assert self.plan.data is not None
        if (
            self.plan.data * self.plan.context > 1
        ):  # each is taken over as it comes, and copied to where it is summed
            return float(min(BUCKET_BYTES, 4 * sum(sizes))) + dense
        rounded = self.work.itemsize * sum(sizes) if self.work.has_masters and self.accumulates else 0
        return float(rounded) + dense

    @property
    def _outside(self) -> tuple[int, int]:
        """Elements of what is computed after the blocks, and of all else that is outside of them."""
        units = [unit for unit in self.units if not unit.is_block]
        sizes = dict(zip([unit.name for unit in units], self.whole(units), strict=True))
        after = sizes.pop("head", 0)
        return after, sum(sizes.values())

    @property
    def _dense_embedding_gradient(self) -> float:
        """The embedding's gradient beside that of the head, where both are one matrix."""
        names = {unit.name for unit in self.units}
        if not self.config.tie_embeddings or not {"embedding", "head"} <= names:
            return 0.0
        (table,) = (
            each for unit in self.units for each in unit.parameters if each.name == "embedding.weight"
        )
        return float(self.work.itemsize * count(table.of_rank(tensor=self.plan.tensor)))

    def unit_activations(self, unit: Unit, *, checkpointed: bool) -> float:
        """Return the bytes that one micro-batch keeps of a unit."""
        plan, stream = self.plan, self.plan.tensor if self.plan.sequence else 1
        if not checkpointed:
            kept = unit.kept["stream"] / stream + unit.kept["input"] + unit.kept["inner"] / plan.tensor
        else:
            kept = self.config.hidden_size / stream
            if plan.activation_checkpointing == "selective":
                queries = self.config.num_heads * self.config.head_dim
                kept += (unit.made[0] + queries) / plan.tensor + unit.made[1] / stream
        return kept * self.tokens * self.work.itemsize

    def _is_checkpointed(self, place: int) -> bool:
        choice = self.plan.activation_checkpointing
        return choice != "none" and place % (choice if isinstance(choice, int) else 1) == 0

    @property
    def of_a_micro_batch(self) -> float:
        """The activations that one micro-batch keeps on the stage."""
        outside = [unit for unit in self.units if not unit.is_block]
        return sum(self.unit_activations(unit, checkpointed=False) for unit in outside) + sum(
            self.unit_activations(unit, checkpointed=self._is_checkpointed(place))
            for place, unit in enumerate(self.blocks)
        )

    @property
    def activations(self) -> float:
        return self.of_a_micro_batch * micro_batches_held(self.plan, self.work.accumulation, self.stage)

    @property
    def late_activations(self) -> float:
        """Those still held when the last gradients are made: a block that is computed again."""
        if not self.blocks or not self._is_checkpointed(0):
            return 0.0
        return self.unit_activations(self.blocks[0], checkpointed=False)

    @property
    def loss(self) -> float:
        """What the fused loss holds when it ends: the gradients of hidden states and head, and a chunk of logits."""
        if self.units[-1].name != "head" or self.config.score_head:
            return 0.0
        width = self.config.embedding_size or self.config.hidden_size
        vocabulary = self.config.vocab_size / self.plan.tensor
        hidden = self.tokens * width * self.work.itemsize
        rows = min(
            rows_of_a_chunk(-(-self.config.vocab_size // self.plan.tensor), self.work.device), self.tokens
        )
        head, logits = 4.0 * vocabulary * width, 4.0 * vocabulary * rows
        in_backward = hidden + head * self.work.itemsize / 4  # scaled by the gradient of the loss
        return hidden + head + max(logits + self._copies(logits, head), in_backward)

    def _copies(self, logits: float, head: float) -> float:
        """What computing a chunk takes besides: results of matmuls in another dtype or by oneDNN, and exponentials."""
        if self.work.device != "cpu":
            return logits + (head / 2 if self.work.has_masters else 0.0)
        if self.work.has_masters:
            return logits
        return logits + head if logits / 4 <= MOST_FOR_ONEDNN else 0.0


def micro_batches_held(plan: Plan, micro_batches: int, stage: int) -> float:
    """Return how many micro-batches' activations a rank of a pipeline holds at most, each of all its stages.

    GPipe holds all of them; the others those of the forward passes that come before the first backward pass, as
    torch's schedules order them.

    Args:
        plan: The plan.
        micro_batches: Of a step.
        stage: The rank's place on the pipeline, from 0.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.
    """
    if plan.pipeline == 1:
        return 1.0
    if plan.schedule == "gpipe":
        return float(micro_batches)
    chunks, later = schedule_kind(plan.schedule).chunks, plan.pipeline - 1 - stage
    in_round = micro_batches // max(1, micro_batches // plan.pipeline)
    before = (chunks - 1) * in_round + later * (2 if plan.schedule == "interleaved" else 1)
    return min(before + 1, chunks * micro_batches) / chunks


def zero_bytes(
    elements: float,
    ranks: int,
    zero: int,
    *,
    parameter: float = 2.0,
    gradient: float = 2.0,
    state: float = 12.0,
) -> float:
    """Return the bytes of parameters, gradients and optimizer states a rank, as the paper on ZeRO counts them.

    Args:
        elements: Of the parameters.
        ranks: Data ranks.
        zero: 0 to 3.
        parameter: Bytes of each element of the parameters.
        gradient: Of the gradients.
        state: Of masters and optimizer states together.

    Source: Rajbhandari et al. 2019, arXiv:1910.02054, figure 1.
    """
    shares = [ranks if zero >= stage else 1 for stage in (3, 2, 1)]
    return elements * sum(
        each / share for each, share in zip((parameter, gradient, state), shares, strict=True)
    )


def textbook_activation_bytes(
    config: ModelConfig, batch_size: int, sequence_length: int, *, tensor: int = 1, selective: bool = False
) -> float:
    """Return what a layer of GPT keeps in 16 bits with dropout, and with all attention weights: sbh (34 + 5 as / h).

    Args:
        config: The network's shape.
        batch_size: Sequences b.
        sequence_length: Tokens s of each.
        tensor: Tensor ranks; positions are then shared out as well.
        selective: Whether the attention weights are computed again.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, equations 2, 4 and 6.
    """
    tokens = batch_size * sequence_length
    weights = 0.0 if selective else 5 * config.num_heads * sequence_length / config.hidden_size
    return tokens * config.hidden_size * (34 + weights) / tensor
