"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbllm.objectives.base import OBJECTIVES, Batch, Objective
from nbllm.objectives.heads import Head, head_cross_entropy


class HiddenAndHead(Head, Protocol):
    """A decoder: hidden states, and the matrix that makes logits of them."""

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Return the final hidden states, (batch, position, hidden)."""


@OBJECTIVES.register("causal_lm")
class CausalLM(Objective[HiddenAndHead]):
    """The cross-entropy of each token given those before it in its window.

    The logits exist only chunk by chunk (`nn.linear_cross_entropy`).

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 1.
    """

    overlap = 1
    needs = "score"  # a network that sees what follows would only learn to copy it
    counts_every_token = True

    def batch(self, windows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return "inputs" and "targets", each (batch, window - 1); a target is the token after its input."""
        tokens = torch.from_numpy(windows)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}

    def loss(self, network: HiddenAndHead, batch: Batch) -> tuple[Tensor, int]:
        """Return the cross-entropy summed over all targets, in nats, and their number."""
        targets = batch["targets"]
        loss = head_cross_entropy(network, network.hidden(batch["inputs"]), targets)
        return loss, targets.numel()


show = CausalLM.show
