"""A mixture of experts: several feed-forward parts, of which a router chooses a few for each token."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.hooks import keep_methods
from nbllm.nn.linear import Linear


@dataclasses.dataclass
class Routing:
    """What the routers of a forward pass chose, for the loss that keeps the experts' loads alike.

    Attributes:
        probabilities: Of each layer, (token, expert), float32, with gradient.
        chosen: Of each layer, (token, choice), the experts of each token.
        real: (token,), True at real tokens, False at padding; None: all are real.
    """

    probabilities: list[Float[Tensor, "token expert"]] = dataclasses.field(default_factory=list)
    chosen: list[Int[Tensor, "token choice"]] = dataclasses.field(default_factory=list)
    real: Bool[Tensor, " token"] | None = None


_recording: ContextVar[Routing | None] = ContextVar("routing", default=None)


@contextlib.contextmanager
def record_routing() -> Iterator[Routing]:
    """Within the block, in this thread, keep what routers choose."""
    routing = Routing()
    token = _recording.set(routing)
    try:
        yield routing
    finally:
        _recording.reset(token)


def current_routing() -> Routing | None:
    """Return what `record_routing` keeps now; None: nothing is kept."""
    return _recording.get()


def note_padding(real: Bool[Tensor, "batch position"] | Int[Tensor, "batch position"] | None) -> None:
    """Say which of the tokens that now pass the routers are real (nonzero), to what `record_routing` keeps."""
    routing = None if real is None else current_routing()
    if routing is not None and real is not None:
        routing.real = real.bool().flatten()


@keep_methods
class MixtureOfExperts(nn.Module):
    """Each token goes to the `experts_per_token` experts that a linear router finds the most probable.

    Their results are added, weighted by the probabilities, which are made to sum to one. The tokens of an expert are
    computed together, as one matrix.

    Args:
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside each expert.
        num_experts: Experts.
        experts_per_token: How many of them compute each token.
        activation: A name in `nn.activations.ACTIVATIONS`.
        gated: Whether each expert is gated.
        bias: Whether the experts' matrices have biases.

    Source: Jiang et al. 2024 (Mixtral), arXiv:2401.04088, section 2.1; Shazeer et al. 2017, arXiv:1701.06538.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        num_experts: int,
        experts_per_token: int,
        activation: str,
        gated: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.experts_per_token = experts_per_token
        self.router = Linear(hidden_size, num_experts, bias=False)
        self.experts = nn.ModuleList(
            FeedForward(hidden_size, intermediate_size, activation=activation, gated=gated, bias=bias)
            for _ in range(num_experts)
        )

    def forward(self, x: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch position hidden"]:
        """Transform each position by itself, by its own experts."""
        tokens = x.flatten(0, 1)
        probabilities = self.router(tokens).float().softmax(-1)
        weights, chosen = probabilities.topk(self.experts_per_token, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        routing = current_routing()
        if routing is not None:
            routing.probabilities.append(probabilities)
            routing.chosen.append(chosen)
        order = chosen.flatten().argsort(stable=True)  # the choices, expert by expert
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        parts = tokens[order // self.experts_per_token].split(counts)
        # An expert without tokens is called too: on every rank each parameter has a gradient.
        computed = torch.cat(
            [expert(part[None])[0] for expert, part in zip(self.experts, parts, strict=True)]
        )
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        by_token = computed[back].unflatten(0, (-1, self.experts_per_token))
        out: Tensor = (by_token * weights[..., None]).sum(1).to(x.dtype)
        return out.view_as(x)


def load_balancing_loss(routing: Routing) -> Float[Tensor, ""]:
    """Return how uneven the experts' loads are: num_experts * sum over experts of (share of tokens * mean probability).

    Shares and means are taken over the tokens of all layers together; padding does not count. Where all experts are
    equally probable it is `experts_per_token`, as in transformers, which counts a token for each of its experts; Fedus
    et al. choose one expert, and have 1.

    Raises:
        ValueError: No router has chosen.

    Source: Fedus et al. 2021 (Switch Transformer), arXiv:2101.03961, equations 4 to 6.
    """
    if not routing.chosen:
        raise ValueError("no router has chosen anything")
    layers, num_experts = len(routing.chosen), routing.probabilities[0].shape[1]
    probabilities, chosen = torch.cat(routing.probabilities), torch.cat(routing.chosen)
    if routing.real is not None:
        kept = routing.real.repeat(layers)
        probabilities, chosen = probabilities[kept], chosen[kept]
    shares = chosen.flatten().bincount(minlength=num_experts) / max(len(chosen), 1)
    return num_experts * (shares * probabilities.sum(0) / max(len(chosen), 1)).sum()
