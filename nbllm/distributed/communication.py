"""How many bytes each rank of a plan sends in a step, by what is sent.

Counted is what a ring sends: of a tensor of V bytes over n ranks an all-reduce 2 (n - 1) / n V, an all-gather or a
reduce-scatter (n - 1) / n V, an all-to-all of each rank's V bytes (n - 1) / n V. A rank receives as much.

Sources: Rajbhandari et al. 2019 (ZeRO), arXiv:1910.02054, section 7; Shoeybi et al. 2019 (tensor parallel),
arXiv:1909.08053, section 3; Narayanan et al. 2021 (pipelines), arXiv:2104.04473, section 3.2; Jacobs et al. 2023
(DeepSpeed-Ulysses), arXiv:2309.14509, section 3.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nbllm.distributed.memory import Workload
from nbllm.distributed.pipeline_schedule import schedule_kind
from nbllm.distributed.placement import Unit
from nbllm.distributed.plan import Plan
from nbllm.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Traffic:
    """One kind of message of a step.

    Attributes:
        axis: Between which ranks: "data", "replicate", "shard", "tensor", "pipeline" or "context".
        what: What is exchanged, and how.
        num_bytes: What a rank sends in a step.
        overlaps: Whether it goes on while the rank computes.
    """

    axis: str
    what: str
    num_bytes: float
    overlaps: bool


def all_reduced(num_bytes: float, ranks: int) -> float:
    """Return what a rank sends to add up a tensor of so many bytes over ranks."""
    return 2 * (ranks - 1) / ranks * num_bytes


def gathered(num_bytes: float, ranks: int) -> float:
    """Return what a rank sends to gather a tensor of so many bytes, or to add it up and keep a part of it."""
    return (ranks - 1) / ranks * num_bytes


def traffic(stage: Sequence[Unit], plan: Plan, work: Workload, config: ModelConfig) -> list[Traffic]:
    """Return what a rank of one stage of the pipeline sends in a step.

    Args:
        stage: The units of the stage.
        plan: The plan, sized.
        work: What it trains.
        config: The network's shape.
    """
    found = [*_of_data(stage, plan, work), *_of_tensor(stage, plan, work, config)]
    found += [*_of_pipeline(plan, work, config), *_of_context(stage, plan, work, config)]
    return [each for each in found if each.num_bytes]


def _of_data(stage: Sequence[Unit], plan: Plan, work: Workload) -> list[Traffic]:
    assert plan.data is not None
    elements = sum(unit.elements(tensor=plan.tensor) for unit in stage)
    if not plan.is_sharded:
        ranks = plan.data * plan.context
        found = [Traffic("data", "gradients, all-reduce", all_reduced(4.0 * elements, ranks), True)]
        if plan.num_shards > 1:
            published = gathered(work.itemsize * float(elements), plan.num_shards)
            found.append(Traffic("shard", "updated parameters, all-gather", published, False))
        return found
    shards, groups = plan.num_shards, plan.data // plan.num_shards
    # ZeRO-2 keeps what it has gathered until the last backward pass of a step.
    passes = 2 * work.accumulation if plan.zero == 3 else 1
    whole = gathered(work.itemsize * float(elements), shards)
    summed = work.accumulation * gathered(4.0 * elements, shards)
    own = 4.0 * elements / shards
    return [
        Traffic("shard", "parameters, all-gather", passes * whole, True),
        Traffic("shard", "gradients, reduce-scatter", summed, True),
        Traffic("replicate", "gradients, all-reduce", all_reduced(own, groups), True),
        Traffic("context", "gradients, all-reduce", all_reduced(own, plan.context), False),
    ]


def _of_tensor(stage: Sequence[Unit], plan: Plan, work: Workload, config: ModelConfig) -> list[Traffic]:
    if plan.tensor == 1:
        return []
    stream = all_reduced(_stream_bytes(plan, work, config), plan.tensor)
    blocks = [(3 if unit.name.startswith("decoder.") else 2) for unit in stage if unit.is_block]
    layers = layers_of(config)
    # What is computed a second time ends before the last sum of a block, which nothing asks for again.
    again = _recomputed(plan) * layers * sum(parts - 1 for parts in blocks)
    ends = sum(unit.name in ("embedding", "head") for unit in stage)
    joined = (
        1.0 if plan.sequence and blocks else 0.0
    )  # gathered after the last block, and the gradient before the first
    how = "reduce-scatter and all-gather" if plan.sequence else "all-reduce"
    sums = (2 * layers * sum(blocks) + again + ends + joined) * stream * work.accumulation
    return [Traffic("tensor", f"activations and their gradients, {how}", sums, False)]


def _of_pipeline(plan: Plan, work: Workload, config: ModelConfig) -> list[Traffic]:
    if plan.pipeline == 1:
        return []
    passes = 2 * work.accumulation * schedule_kind(plan.schedule).chunks
    sent = passes * _stream_bytes(plan, work, config)
    return [Traffic("pipeline", "activations and their gradients, to the neighbours", sent, True)]


def _of_context(stage: Sequence[Unit], plan: Plan, work: Workload, config: ModelConfig) -> list[Traffic]:
    if plan.context == 1:
        return []
    blocks = sum(unit.is_block for unit in stage) * layers_of(config)
    width = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim / plan.tensor
    tokens = work.batch_size * work.sequence_length / plan.context
    each = gathered(tokens * width * work.itemsize, plan.context)
    passes = (2 + _recomputed(plan)) * work.accumulation
    what = "queries, keys, values and results, all-to-all"
    return [Traffic("context", what, passes * blocks * each, False)]


def layers_of(config: ModelConfig) -> float:
    """Return how many layers each block of a network computes: one, unless layers share blocks."""
    return config.num_layers / config.num_layer_groups if config.num_layer_groups else 1.0


def _stream_bytes(plan: Plan, work: Workload, config: ModelConfig) -> float:
    """The residual stream of a micro-batch on a rank."""
    return work.batch_size * work.sequence_length / plan.context * config.hidden_size * work.itemsize


def _recomputed(plan: Plan) -> float:
    """Return the share of blocks whose forward pass is computed a second time."""
    choice = plan.activation_checkpointing
    return 0.0 if choice == "none" else 1 / choice if isinstance(choice, int) else 1.0
