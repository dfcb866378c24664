"""What the objectives have in common by which a network reads one text and predicts another, token by token."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbllm.objectives.base import IGNORED, Batch, Objective
from nbllm.objectives.heads import Head, head_cross_entropy
from nbllm.objectives.spans import Bools, Ints
from nbllm.objectives.special_tokens import end_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Denoiser(Head, Protocol):
    """An encoder-decoder, or a prefix decoder, which reads both texts in one sequence."""

    def hidden(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states of the second text, (batch, position, hidden)."""


class TextToText(Objective[Denoiser]):
    """The cross-entropy of each token of a second text given those before it and the whole first one.

    Its batches have "inputs", (batch, position), "decoder_inputs" and "targets", (batch, target): the second text from
    a start token, and the token after each of these, -100 at padding. Where texts of a batch differ in length there is
    also "mask", (batch, position), false at the padding of "inputs".

    Args:
        start: What the decoder begins with: the padding token, as in T5, or where there is none the end token.
        end: The token that ends a text.
    """

    needs = "denoise"

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer.

        Raises:
            UserError: It lacks a token that the objective needs.
        """
        end = end_id(tokenizer)
        return cls(end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id), end)

    @abstractmethod
    def batch(self, windows: Any, rng: np.random.Generator) -> Batch:
        """Return the batch of some windows, with the names above."""

    def pair(
        self, inputs: Ints, targets: Ints, real: Bools | None = None, counted: Bools | None = None
    ) -> Batch:
        """Return the batch of first and second texts.

        Args:
            inputs: (batch, position), padded at the end.
            targets: (batch, target), padded at the end.
            real: Where `inputs` is no padding; None: everywhere.
            counted: Where `targets` is none; None: everywhere.
        """
        before = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=self.start)
        if counted is not None:
            targets = np.where(counted, targets, IGNORED)
        made: dict[str, NDArray[Any]] = {"inputs": inputs, "decoder_inputs": before, "targets": targets}
        if real is not None:
            made["mask"] = real
        return {name: torch.from_numpy(array) for name, array in made.items()}

    def loss(self, network: Denoiser, batch: Batch) -> tuple[Tensor, float]:
        """Return the cross-entropy summed over the second texts, in nats, and the number of their tokens."""
        targets, mask = batch["targets"], batch.get("mask")
        counted = targets != IGNORED
        hidden = network.hidden(
            batch["inputs"],
            batch["decoder_inputs"],
            attention_mask=mask,
            decoder_attention_mask=None if mask is None else counted,
        )
        loss = head_cross_entropy(network, hidden, targets)
        return loss, int(counted.sum())
