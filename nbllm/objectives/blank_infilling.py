"""GLM's blank infilling: predict spans that were replaced by mask tokens, one after the other in random order."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.nn.positions import Positions
from nbllm.objectives.base import IGNORED, OBJECTIVES, Batch, Objective
from nbllm.objectives.heads import Head, head_cross_entropy
from nbllm.objectives.spans import Ints, Spans, compacted, most_spans, poisson_spans
from nbllm.objectives.special_tokens import MASK, token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

START, END = ("<|startofpiece|>", "<sop>"), ("<|endofpiece|>", "<eop>")


class Infiller(Head, Protocol):
    """A prefix decoder."""

    positions: Positions

    def hidden(self, input_ids: Tensor, *, prefix_lengths: Tensor, **places: Tensor) -> Tensor:
        """Return the final hidden states, (batch, position, hidden)."""


@OBJECTIVES.register("blank_infilling")
class BlankInfilling(Objective[Infiller]):
    """15% of the tokens, in spans, are to be predicted; the mask token stands in the place of each span.

    Part A is the text with its masks, which the network reads in both directions. Part B, behind it, has the spans in
    random order, each from a start token; its tokens see part A and what is before them in part B, and predict the
    next one of the span, the last an end token. A span's length is drawn from a Poisson distribution with mean 3,
    without 0; between two spans there is a token at least.

    Every token has two positions, counted from 0: "positions" is its place in part A, and in part B that of the mask
    which the span stands for; "span_positions" is 0 in part A, and counts from 1 in each span of part B. A network
    whose positions are of one dimension is given their sum: in part B about where the token stood in the text.

    Args:
        mask: The mask token.
        start: The token before each span of part B.
        end: The token that ends a span.

    Source: Du et al. 2022, arXiv:2103.10360, sections 2.1 and 2.2, and the published code (THUDM/GLM).
    """

    needs = "infill"
    special_tokens = ((MASK,), START, END)
    rate: ClassVar[float] = 0.15
    mean_length: ClassVar[float] = 3.0

    def __init__(self, mask: int, start: int, end: int) -> None:
        self.mask, self.start, self.end = mask, start, end

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer.

        Raises:
            UserError: It lacks the mask token or those around a span.
        """
        return cls(*(token_id(tokenizer, "blank_infilling", *names) for names in cls.special_tokens))

    def window_length(self, sequence_length: int) -> int:
        """Return how many tokens of the text make at most `sequence_length` tokens of both parts together."""
        length = 0
        while self._most_tokens(length + 1) <= sequence_length:
            length += 1
        if not length:
            raise UserError(
                f"sequence_length is {sequence_length}, too short for any text.", hint="Use a longer one."
            )
        return length

    def _most_tokens(self, length: int) -> int:
        """Return the most tokens that both parts can have: the text's, and for each span a mask and a start token."""
        return length + 2 * most_spans(max(1, round(length * self.rate)), self.mean_length)

    def batch(self, windows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return "inputs", "targets", "positions" and "span_positions", (batch, position) each, and "prefix_lengths".

        "prefix_lengths", (batch,), are the tokens of part A; a target is -100 in part A and at padding.
        """
        spans = poisson_spans(windows.shape, rng, rate=self.rate, mean=self.mean_length, least=1)
        values, there = spans.replaced_by(self.mask, windows)
        first, real = compacted(values, there, self.end)
        places = there.cumsum(1)[:, ::2] - 1  # of each slot's mask in part A
        second = self._second_part(windows, spans, places, rng)
        counted = second["targets"] != IGNORED
        there = np.hstack((real, counted))
        width = first.shape[1]
        parts = {
            "inputs": (first, second["inputs"]),
            "targets": (np.full(first.shape, IGNORED), second["targets"]),
            "positions": (np.tile(np.arange(width), (len(first), 1)), second["positions"]),
            "span_positions": (np.zeros(first.shape, np.int64), second["span_positions"]),
        }
        fills = {"inputs": self.end, "targets": IGNORED, "positions": 0, "span_positions": 0}
        made = {name: compacted(np.hstack(both), there, fills[name])[0] for name, both in parts.items()}
        return {
            name: torch.from_numpy(array) for name, array in (made | {"prefix_lengths": real.sum(1)}).items()
        }

    def _second_part(
        self, windows: Ints, spans: Spans, places: Ints, rng: np.random.Generator
    ) -> dict[str, Ints]:
        """Return part B, (row, position) arrays by name, padded at the end with targets of -100.

        Args:
            windows: The text.
            spans: Those of each window.
            places: (row, slot), the place in part A of a slot's mask.
            rng: For the order of the spans.
        """
        rows, slots = np.nonzero(spans.drawn)
        order = np.lexsort((rng.random(len(rows)), rows))
        rows, slots = rows[order], slots[order]
        starts, lengths, masks = (each[rows, slots] for each in (spans.starts, spans.lengths, places))
        owner = np.repeat(np.arange(len(rows)), lengths + 1)  # the span of each token of part B, of all rows
        within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths + 1) - lengths - 1, lengths + 1)
        totals = np.bincount(rows[owner], minlength=len(windows))
        row = rows[owner]
        column = np.arange(len(owner)) - (np.cumsum(totals) - totals)[row]
        text = windows[row, np.minimum(starts[owner] + within, windows.shape[1] - 1)]
        before = windows[row, np.maximum(starts[owner] + within - 1, 0)]
        flat = {
            "inputs": np.where(within == 0, self.start, before),
            "targets": np.where(within == lengths[owner], self.end, text),
            "positions": masks[owner],
            "span_positions": within + 1,
        }
        made = {}
        for name, values in flat.items():
            made[name] = np.full((len(windows), totals.max()), IGNORED if name == "targets" else 0)
            made[name][row, column] = values
        return made

    def loss(self, network: Infiller, batch: Batch) -> tuple[Tensor, int]:
        """Return the cross-entropy summed over part B, in nats, and the number of its tokens."""
        targets = batch["targets"]
        places = {name: batch[name] for name in ("positions", "span_positions")}
        if not network.positions.has_spans:
            places = {"positions": places["positions"] + places["span_positions"]}
        hidden = network.hidden(batch["inputs"], prefix_lengths=batch["prefix_lengths"], **places)
        loss = head_cross_entropy(network, hidden, targets)
        return loss, int((targets != IGNORED).sum())


show = BlankInfilling.show
