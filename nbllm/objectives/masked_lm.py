"""Masked language modelling: predict tokens that are hidden from those before and after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.nn.linear_cross_entropy import linear_cross_entropy
from nbllm.objectives.base import IGNORED, OBJECTIVES, Batch, Objective
from nbllm.objectives.isolation import seen_of
from nbllm.objectives.special_tokens import MASK, around, length_within, token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class _Head(Protocol):
    """What reads the hidden states before they are multiplied with the head's matrix."""

    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor: ...


class MaskFiller(Protocol):
    """An encoder with a head that predicts masked tokens."""

    head: _Head

    def hidden(self, input_ids: Tensor, **seen: Tensor) -> Tensor:
        """Return the final hidden states, (batch, position, hidden); `seen`: "visible" and "positions", or nothing."""

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix, (vocabulary, embedding)."""


@OBJECTIVES.register("masked_lm")
class MaskedLM(Objective[MaskFiller]):
    """The cross-entropy of tokens chosen at random, most of them hidden behind the mask token.

    Each token of the text is chosen with probability 0.15, whatever is chosen besides. Of the chosen ones 80% are
    replaced by the mask token, 10% by a token drawn from the whole vocabulary, and 10% are left as they are. Special
    tokens are never chosen, nor drawn. Each window stands between the tokens that the tokenizer puts around a text
    ([CLS] and [SEP]), which count as part of the sequence length.

    Args:
        mask: The mask token.
        is_special: (vocabulary,), whether a token is one that is never chosen.
        around: The tokens before and after each window.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1; a draw for each token instead of a fixed number for each
        sequence, as in Liu et al. 2019, arXiv:1907.11692, each time that a text is read anew (section 4.1).
    """

    needs = "fill"
    can_isolate = True
    special_tokens = ((MASK,),)
    chosen: ClassVar[float] = 0.15
    masked: ClassVar[float] = 0.8
    replaced: ClassVar[float] = 0.1

    def __init__(
        self, mask: int, is_special: NDArray[np.bool_], around: tuple[list[int], list[int]] = ([], [])
    ) -> None:
        self.mask, self.is_special, self.around = mask, is_special, around
        self.drawn = np.flatnonzero(~is_special)

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer.

        Raises:
            UserError: It has no mask token, or nothing but special tokens.
        """
        mask = token_id(tokenizer, "masked_lm", MASK)
        is_special = np.zeros(len(tokenizer), dtype=bool)
        is_special[list(tokenizer.all_special_ids)] = True
        if is_special.all():
            raise UserError("The tokenizer has no token that could be masked.")
        return cls(mask, is_special, around(tokenizer))

    def window_length(self, sequence_length: int) -> int:
        """Return how many tokens of the text make one sequence."""
        return length_within(self.around, sequence_length)

    def batch(self, windows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return "inputs" and "targets", each (batch, sequence); a target is -100 where nothing is predicted."""
        choice, change = rng.random((2, *windows.shape))
        choice = np.take_along_axis(choice, self.word_starts(windows), axis=1)
        is_chosen = (choice < self.chosen) & ~self.is_special[windows]
        random = self.drawn[rng.integers(len(self.drawn), size=windows.shape)]
        changed = np.where(change < self.masked, self.mask, random)
        is_changed = is_chosen & (change < self.masked + self.replaced)
        inputs = np.where(is_changed, changed, windows)
        targets = np.where(is_chosen, windows, IGNORED)
        before, after = self.around
        ends = ((0, 0), (len(before), len(after)))
        inputs = np.pad(inputs, ends)
        inputs[:, : len(before)] = before
        inputs[:, inputs.shape[1] - len(after) :] = after
        made = {"inputs": inputs, "targets": np.pad(targets, ends, constant_values=IGNORED)}
        if self.isolation is not None:  # the tokens around a window are of its first and its last document
            documents = self.isolation._replace(begins_next=False).documents(windows)
            made["documents"] = np.pad(documents, ends, mode="edge")
        return {name: torch.from_numpy(array) for name, array in made.items()}

    def word_starts(self, windows: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return for each token the place in its window whose draw decides whether it is chosen: its own."""
        return np.broadcast_to(np.arange(windows.shape[1]), windows.shape)

    def loss(self, network: MaskFiller, batch: Batch) -> tuple[Tensor, int]:
        """Return the cross-entropy summed over the chosen tokens, in nats, and their number."""
        is_chosen = batch["targets"] != IGNORED
        hidden = network.head(network.hidden(batch["inputs"], **seen_of(batch, causal=False))[is_chosen])
        targets = batch["targets"][is_chosen]
        loss = linear_cross_entropy(hidden, network.head_weight, targets, bias=network.head.bias)
        return loss, len(targets)


show = MaskedLM.show
