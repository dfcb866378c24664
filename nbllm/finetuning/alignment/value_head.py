"""What a policy expects of the rewards to come: a linear head on its hidden states, with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nbllm.distributed.layout import OneProcess
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers.adamw import AdamW

if TYPE_CHECKING:
    from nbllm.models.network import CausalNetwork


class _ZeroLinear(nn.Module):
    """A linear map to a number; torch's own would draw its weights from the global random state."""

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, hidden: Float[Tensor, "real hidden"]) -> Float[Tensor, " real"]:
        return F.linear(hidden, self.weight, self.bias)[:, 0]


class ValueHead:
    """A linear map from hidden states to a number, zero at first: nothing is expected before anything is learnt.

    Args:
        network: Whose hidden states it reads.
    """

    def __init__(self, network: CausalNetwork) -> None:
        weight = network.head_weight
        self.linear = _ZeroLinear(weight.shape[1], weight.device)
        self.optimizer = Optimizer(OneProcess(self.linear), AdamW)

    def __call__(
        self, hidden: Float[Tensor, "real hidden"], mask: Bool[Tensor, "sequence token"]
    ) -> Float[Tensor, "sequence token"]:
        """Return the value before each token of answers; 0 at padding."""
        values = self.linear(hidden.float())
        return torch.zeros(mask.shape, device=mask.device).index_put(mask.nonzero(as_tuple=True), values)

    def configure(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        defaults = {setting.name: float(setting.default or 0.0) for setting in AdamW.settings}
        self.optimizer.configure(lr=lr, **{**defaults, "weight_decay": 0.0})

    def state_tensors(self) -> dict[str, Tensor]:
        """Return its parameters and its optimizer's state."""
        own = {name: parameter.detach() for name, parameter in self.linear.named_parameters()}
        return own | {f"optimizer.{name}": each for name, each in self.optimizer.state_tensors().items()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_tensors` returned."""
        for name, parameter in self.linear.named_parameters():
            parameter.copy_(tensors[name])
        prefix = "optimizer."
        self.optimizer.load_state_tensors(
            {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
        )
