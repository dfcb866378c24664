"""Adapters in the weights while a policy samples: what computes a model without adapters fastest then serves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from nbllm.models.peft.head import EMBEDDING
from nbllm.models.quantized import quantized_layers

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.models.peft.adapter import Adapter


@contextmanager
def adapters_merged(lm: LM | None) -> Iterator[None]:
    """Within the block, have the adapters that are on in the weights, where that changes nothing but rounding.

    So it is in float32 alone: in bfloat16, sampler and trainer would be two distributions. Afterwards the weights are
    restored to the bit, and what was trained is trained again.

    Args:
        lm: The model; None: there is nothing to merge.
    """
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
