"""By how much the logits of a network change when something is written into its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from nbllm.models.network import Network

_LENGTH = 32  # tokens


@torch.no_grad()
def merge_gap(model: Network, change: Callable[[], object]) -> float:
    """Return the largest difference of the logits of some tokens before and after a change."""
    was_training = model.training
    model.eval()
    try:
        before = _logits(model)
        change()
        return float((_logits(model) - before).abs().max())
    finally:
        model.train(was_training)


def _logits(model: Network) -> Tensor:
    """Return logits, or hidden states where there is no head, of tokens from all over the vocabulary."""
    config = model.config
    count = min(_LENGTH, config.max_positions, config.vocab_size)
    ids = torch.arange(count, device=model.device)[None] * (config.vocab_size // count)
    network = cast(Any, model)
    out: Tensor = network(ids, ids) if config.network == "encoder_decoder" else network(ids)
    return out.float()
