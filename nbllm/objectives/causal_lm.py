"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbllm.objectives.base import IGNORED, OBJECTIVES, Batch, Objective
from nbllm.objectives.heads import Head, head_cross_entropy
from nbllm.objectives.isolation import Isolation, seen_of
from nbllm.objectives.spans import Ints


class HiddenAndHead(Head, Protocol):
    """A decoder: hidden states, and the matrix that makes logits of them."""

    def hidden(self, input_ids: Tensor, **seen: Tensor) -> Tensor:
        """Return the final hidden states, (batch, position, hidden); `seen`: "visible" and "positions", or nothing."""


@OBJECTIVES.register("causal_lm")
class CausalLM(Objective[HiddenAndHead]):
    """The cross-entropy of each token given those before it in its window.

    The logits exist only chunk by chunk (`nn.linear_cross_entropy`). Of documents that are isolated, each token is
    predicted but the one that begins a document, where such a token stands between two besides the end of the first.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 1.
    """

    overlap = 1
    needs = "score"  # a network that sees what follows would only learn to copy it
    counts_every_token = True
    can_isolate = True

    def batch(self, windows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return "inputs" and "targets", each (batch, window - 1); a target is the token after its input."""
        return next_tokens(windows[:, :-1], windows[:, 1:], self.isolation)

    def loss(self, network: HiddenAndHead, batch: Batch) -> tuple[Tensor, int]:
        """Return the cross-entropy summed over all targets, in nats, and their number."""
        targets = batch["targets"]
        hidden = network.hidden(batch["inputs"], **seen_of(batch, causal=True))
        loss = head_cross_entropy(network, hidden, targets)
        return loss, int((targets != IGNORED).sum())


def next_tokens(inputs: Ints, targets: Ints, isolation: Isolation | None) -> Batch:
    """Return the batch of tokens and those after them; with "documents" where these are isolated.

    The token that begins a document is then not predicted from the one before.
    """
    if isolation is None:
        return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
    if not isolation.begins_next:
        targets = np.where(inputs == isolation.end, IGNORED, targets)
    made = {"inputs": inputs, "targets": targets, "documents": isolation.documents(inputs)}
    return {name: torch.from_numpy(array) for name, array in made.items()}


show = CausalLM.show
