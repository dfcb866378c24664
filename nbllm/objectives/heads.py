"""The loss of a network's head, which all objectives that predict tokens from hidden states share."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbllm.nn.linear_cross_entropy import linear_cross_entropy
from nbllm.objectives.base import IGNORED


class Head(Protocol):
    """What makes logits of hidden states."""

    @property
    def head_weight(self) -> Tensor:
        """The output matrix, (vocabulary, hidden)."""

    @property
    def head_bias(self) -> Tensor | None:
        """What is added to the logits, (vocabulary,)."""

    @property
    def logit_softcap(self) -> float:
        """How they are bounded after that; 0: not."""


def head_cross_entropy(
    network: Head,
    hidden: Float[Tensor, "batch position hidden"],
    targets: Int[Tensor, "batch position"],
    *,
    weights: Float[Tensor, "batch position"] | None = None,
    losses: Float[Tensor, "batch position"] | None = None,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of a network's logits against `targets`, summed over those that count, in nats.

    Logits are computed only where a target counts.

    Args:
        network: The network, whose head it is.
        hidden: (batch, position, hidden), what its head reads.
        targets: (batch, position), the right tokens; -100 does not count.
        weights: (batch, position), what each loss is multiplied by; None: 1.
        losses: (batch, position), float32, filled with the loss of each target, not weighted, 0 where none counts.
    """
    rows, flat = hidden.flatten(0, 1), targets.flatten()
    counted = flat != IGNORED
    places = None if bool(counted.all()) else counted.nonzero()[:, 0]

    def chosen(values: Tensor) -> Tensor:
        return values if places is None else values.index_select(0, places)

    each = None if losses is None else torch.zeros(len(chosen(flat)), device=flat.device)
    loss = linear_cross_entropy(
        chosen(rows),
        network.head_weight,
        chosen(flat),
        bias=network.head_bias,
        softcap=network.logit_softcap,
        weights=None if weights is None else chosen(weights.flatten()),
        losses=each,
    )
    if losses is not None and each is not None:
        losses.zero_().masked_scatter_(targets != IGNORED, each)
    return loss
