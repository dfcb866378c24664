"""Forward pass and loss as one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor, nn

Batch: TypeAlias = Mapping[str, Tensor]

LossOutput: TypeAlias = tuple[Tensor, float, Tensor | None]
"""The loss of a batch summed over what counts, how much counts, and what the network adds to the mean of that (None:
nothing), such as the loads of experts, which is trained on and not part of the loss that is shown."""

Loss: TypeAlias = Callable[[nn.Module, Batch], LossOutput]


class LossModule(nn.Module):
    """A network with its loss: the root that torch's wrappers hold.

    The loss reads the head's matrix outside `network.forward`. A wrapper that gathers parameters when a module is
    called, and sums gradients when they leave it, must therefore wrap both; and a head that is tied to the embedding
    belongs to the root.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch, loss: Loss) -> LossOutput:
        """Return what the loss of a batch is; see `LossOutput`."""
        return loss(self.network, batch)
