"""The form in which a policy samples: that which is computed fastest without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from nbllm.models.peft.head import EMBEDDING
from nbllm.models.quantized import quantized_layers

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.models.network import Network
    from nbllm.models.peft.adapter import Adapter


@contextmanager
def for_sampling(network: Network, lm: LM | None) -> Iterator[None]:
    """Within the block, let a network be computed as is fastest without gradients, where that changes but rounding.

    The attention backend, which is the fastest for training, is left to the run's recorded choices; and adapters that
    are on are in the weights, so that the decoding kernel computes the network. They are in float32 alone: in bfloat16,
    sampler and trainer would be two distributions. Afterwards all is as before, the weights to the bit.

    Args:
        network: The policy.
        lm: The model that it is part of, for its adapters; None: it has none.
    """
    backend, network.attention_backend = network.attention_backend, "auto"
    try:
        with _merged(lm):
            yield
    finally:
        network.attention_backend = backend


@contextmanager
def _merged(lm: LM | None) -> Iterator[None]:
    on = [] if lm is None else [adapter for adapter in lm.adapters if adapter.state == "on"]
    if lm is None or not on or lm.model.dtype != torch.float32 or not all(map(_can_merge, on)):
        yield
        return
    if quantized_layers(lm.model):  # 4 bits take no updates
        yield
        return
    trained = {name: parameter.requires_grad for name, parameter in lm.model.named_parameters()}
    lm.adapter_stack.merge(*on)
    try:
        yield
    finally:
        for adapter in on:
            adapter.on()
        for name, parameter in lm.model.named_parameters():
            parameter.requires_grad_(trained[name])


def _can_merge(adapter: Adapter) -> bool:
    """Return whether an adapter's parts are all changes of a layer's weights, and none of the embedding."""
    return not adapter.parts.keys() & {"", EMBEDDING} and all(
        part.can_merge for part in adapter.parts.values()
    )
