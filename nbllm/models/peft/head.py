"""A head that is tied to the embedding: untied where an update of one of them is written into its weights."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from nbllm.core.errors import UserError
from nbllm.models.network import GenerativeNetwork

EMBEDDING, HEAD = "embedding", "head"


@torch.no_grad()
def untie(model: nn.Module) -> bool:
    """Give a network whose head is its embedding a head of its own, with the same weights.

    Returns:
        Whether it was tied.

    Raises:
        UserError: The network cannot have one.
    """
    if not isinstance(model, GenerativeNetwork):
        raise UserError("The head of an encoder is its embedding, and an update of one cannot be merged.")
    if model.head is not None:
        return False
    weight = model.embedding.weight
    head = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    head.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    model.head = head
    model.config = model.config.replace(tie_embeddings=False)
    return True


def tie_again(model: nn.Module) -> None:
    """Make the embedding the head again, as it was before `untie`."""
    network = cast(Any, model)
    del network.head
    network.head = None
    network.config = network.config.replace(tie_embeddings=True)
