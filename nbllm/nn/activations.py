"""The table of activations: what each computes, and what people and transformers call it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from nbllm.nn.gelu import gelu_quick, gelu_tanh


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation.

    Attributes:
        function: Computes it, element by element.
        label: Its name in tables for people.
        transformers_names: What transformers' configurations call it; the first is the one to write.
    """

    function: Callable[[Tensor], Tensor]
    label: str
    transformers_names: tuple[str, ...]


ACTIVATIONS: dict[str, Activation] = {
    "gelu_tanh": Activation(
        gelu_tanh, "GELU (tanh)", ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")
    ),
    "gelu": Activation(F.gelu, "GELU", ("gelu", "gelu_python")),
    "gelu_quick": Activation(gelu_quick, "GELU (sigmoid)", ("quick_gelu",)),
    "silu": Activation(F.silu, "SiLU", ("silu", "swish")),
    "relu": Activation(F.relu, "ReLU", ("relu",)),
    # So et al. 2021, arXiv:2109.08668, section 4.1.
    "relu_squared": Activation(lambda x: F.relu(x).square(), "ReLU squared", ("relu2",)),
}
