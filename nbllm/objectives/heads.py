"""The loss of a network's head, which all objectives that predict tokens from hidden states share."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from nbllm.nn.linear_cross_entropy import linear_cross_entropy


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
    network: Head, hidden: Float[Tensor, "batch position hidden"], targets: Int[Tensor, "batch position"]
) -> Float[Tensor, ""]:
    """Return the cross-entropy of a network's logits against `targets`, summed over those that count, in nats.

    Args:
        network: The network, whose head it is.
        hidden: (batch, position, hidden), what its head reads.
        targets: (batch, position), the right tokens; -100 does not count.
    """
    return linear_cross_entropy(
        hidden.flatten(0, 1),
        network.head_weight,
        targets.flatten(),
        bias=network.head_bias,
        softcap=network.logit_softcap,
    )
