"""Steps of a small model under a plan, to be compared with the same steps in one process.

Everything here runs on every rank alike, and depends on its arguments alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nbllm.distributed import OneRank, Plan, lay_out
from nbllm.distributed.layout import Layout
from nbllm.distributed.sharded_tensors import local_part, whole_tensor
from nbllm.models import build, make_config
from nbllm.nn.compute.decisions import PLAIN, use_choices
from nbllm.objectives.base import IGNORED, Objective
from nbllm.objectives.causal_lm import CausalLM
from nbllm.objectives.text_to_text import TextToText

VOCABULARY, BATCH, LENGTH = 96, 2, 32
SHAPES: dict[str, dict[str, Any]] = {
    # Heads and vocabulary divide by four, the layers by two.
    "decoder": {"family": "gpt2", "num_heads": 4, "tie_embeddings": True},
    "untied": {"family": "llama", "num_heads": 4, "num_kv_heads": 2, "tie_embeddings": False},
    "encoder_decoder": {"family": "t5", "num_heads": 4},
}


class Pairs(TextToText):
    """Pairs of texts, made by `make_batch`."""

    def batch(self, windows: Any, rng: Any) -> Any:
        raise NotImplementedError


class Group:
    """The ranks of a pool."""

    rank = property(lambda self: dist.get_rank())
    size = property(lambda self: dist.get_world_size())


@dataclasses.dataclass
class Steps:
    """What some steps came to, whole, on rank 0: the losses, the norms of the gradients, and what was left behind."""

    losses: list[float]
    norms: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def make_network(kind: str, **changes: Any) -> Any:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "initializer_range": 0.2}
    shape |= SHAPES[kind] | ({"max_positions": LENGTH} if kind != "encoder_decoder" else {}) | changes
    return build(make_config(shape.pop("family"), **shape), seed=1)


def make_objective(kind: str) -> Objective[Any]:
    return Pairs(0, 1) if kind == "encoder_decoder" else CausalLM()


def make_batch(kind: str, position: int, size: int = BATCH) -> dict[str, Tensor]:
    """Return the batch of the sequences from `position` on; how much counts in it depends on the position."""
    generator = torch.Generator().manual_seed(position)
    inputs = torch.randint(86, (size, LENGTH), generator=generator)
    targets = torch.randint(86, (size, LENGTH), generator=generator)
    targets[:, : 2 + position % 7] = IGNORED
    if kind != "encoder_decoder":
        return {"inputs": inputs, "targets": targets}
    mask = torch.ones_like(inputs, dtype=torch.bool)
    mask[0, LENGTH - 4 :] = False
    return {"inputs": inputs, "decoder_inputs": targets.clamp(min=0), "targets": targets, "mask": mask}


def take_steps(
    kind: str,
    plan: dict[str, Any],
    *,
    steps: int = 3,
    sequences: int = 8,
    lr: float = 0.05,
    dtype: str = "float32",
    **changes: Any,
) -> Steps:
    """Take some steps of gradient descent.

    Args:
        kind: One of `SHAPES`.
        plan: Of `Plan`; empty: one process, whatever the pool has.
        steps: How many.
        sequences: In one step, over all data ranks.
        lr: The learning rate.
        dtype: What the network computes in.
        changes: Of the network's shape.
    """
    with use_choices(PLAIN):  # what is measured would differ from rank to rank
        return _take_steps(kind, plan, steps, sequences, lr, dtype, changes)


def _take_steps(
    kind: str,
    plan: dict[str, Any],
    steps: int,
    sequences: int,
    lr: float,
    dtype: str,
    changes: dict[str, Any],
) -> Steps:
    ranks: Any = Group() if plan else OneRank()
    layout = lay_out(make_network(kind, **changes), Plan(**plan), ranks, dtype=getattr(torch, dtype))
    objective = make_objective(kind)
    losses, norms = [], []
    gradients: dict[str, Tensor] = {}
    for step in range(steps):
        loss, norm = one_step(layout, kind, objective, step * sequences, sequences)
        losses.append(loss)
        norms.append(norm)
        gradients = {
            name: whole_tensor(p.grad) for name, p in layout.parameters().items() if p.grad is not None
        }
        with torch.no_grad():
            for parameter in layout.parameters().values():
                if parameter.grad is not None:
                    local_part(parameter).sub_(local_part(parameter.grad), alpha=lr)
        layout.publish()
        layout.drop_gradients()
    weights = {name: whole_tensor(p).clone() for name, p in layout.parameters().items()}
    return Steps(losses, norms, {n: g.clone() for n, g in gradients.items()}, weights)


def one_step(
    layout: Layout, kind: str, objective: Objective[Any], position: int, sequences: int
) -> tuple[float, float]:
    """Compute the gradients of a step; return the mean loss and the gradients' norm."""
    first, stride = position + layout.data_rank * BATCH, layout.data_size * BATCH
    batches = [make_batch(kind, at) for at in range(first, position + sequences, stride)]
    total, count = layout.forward_backward(batches, lambda net, b: (*objective.loss(net, b), None), 100.0)
    sums = torch.tensor([total, count], dtype=torch.float64)
    layout.sum([sums])
    gradients = [p.grad for p in layout.parameters().values() if p.grad is not None]
    for gradient in gradients:
        local_part(gradient).mul_(100.0 / float(sums[1]))
    return float(sums[0] / sums[1]), layout.norm(gradients)


def assert_equal_steps(found: Steps, expected: Steps, *, tolerance: float = 1e-5) -> None:
    """Check that losses, norms, gradients and weights agree, relative to the largest element of each tensor."""
    torch.testing.assert_close(
        torch.tensor(found.losses), torch.tensor(expected.losses), rtol=tolerance, atol=0
    )
    torch.testing.assert_close(
        torch.tensor(found.norms), torch.tensor(expected.norms), rtol=tolerance, atol=0
    )
    for one, other in ((found.gradients, expected.gradients), (found.weights, expected.weights)):
        assert one.keys() == other.keys()
        # What is zero but for rounding (the gradient of a key's bias) is as exact as the largest elements are.
        least = 1e-2 * max(float(tensor.abs().max()) for tensor in other.values())
        for name, tensor in other.items():
            size, worst = float(tensor.abs().max()), float((one[name] - tensor).abs().max())
            assert worst <= tolerance * max(size, least), (
                f"{name} differs by {worst:.3g}, of at most {size:.3g}"
            )
