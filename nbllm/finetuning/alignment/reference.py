"""The policy as it was when a run began: what its drift is measured from, and bounded by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Reference:
    """The network that a run began with; it shares with the trained one all weights that are not trained.

    Kept are the first values of the parameters that are trained, which are exchanged for a while. With a new adapter
    that is the adapter alone, whose first update is zero: the reference is the model with the adapter off. One that was
    trained before, by supervised fine-tuning for instance, stays on as it was. Without an adapter it is a frozen copy
    of the weights.

    Args:
        network: What is trained; parameters that need no gradient are not.
        values: The first values, where `tensors` returned them earlier; None: those that the network has now.

    Source: what goes wrong otherwise: github.com/huggingface/trl/issues/956.
    """

    def __init__(self, network: nn.Module, values: Mapping[str, Tensor] | None = None) -> None:
        self._network = network
        self._values = dict(values or {})
        self.note_trained()

    @torch.no_grad()
    def note_trained(self) -> None:
        """Keep the values of parameters that are trained from now on, because they were unfrozen.

        To be called before a step; `active` does so as well.
        """
        for name, parameter in self._network.named_parameters():
            if parameter.requires_grad and name not in self._values:
                self._values[name] = parameter.detach().clone()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block, and without gradients, the network is the reference.

        What is computed with gradients is computed after it: the parameters are written to.
        """
        self.note_trained()
        parameters = dict(self._network.named_parameters())
        with torch.no_grad():
            now = {name: parameters[name].detach().clone() for name in self._values}
            try:
                for name, value in self._values.items():
                    parameters[name].copy_(value)
                yield
            finally:
                for name, value in now.items():
                    parameters[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Return the first values by name: part of `Objective.state_tensors`."""
        return dict(self._values)
