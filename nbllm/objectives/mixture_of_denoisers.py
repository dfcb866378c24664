"""UL2's mixture of denoisers: short spans, long spans, many spans, or the end of a text are to be predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from nbllm.objectives.base import OBJECTIVES, Batch
from nbllm.objectives.span_corruption import Corruption, check_sentinels, corrupted
from nbllm.objectives.spans import Ints
from nbllm.objectives.special_tokens import SENTINELS, sentinel_ids, token_id
from nbllm.objectives.text_to_text import TextToText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Mode(NamedTuple):
    """A denoiser: the token that tells the network its kind, and what it does to a text."""

    token: str
    corruption: Corruption


MODES = (
    Mode("[R]", Corruption(0.15, 3.0)),
    Mode("[R]", Corruption(0.15, 8.0)),
    Mode("[S]", Corruption(0.25, None)),
    Mode("[X]", Corruption(0.5, 3.0)),
    Mode("[X]", Corruption(0.5, 8.0)),
    Mode("[X]", Corruption(0.15, 64.0)),
    Mode("[X]", Corruption(0.5, 64.0)),
)


@OBJECTIVES.register("mixture_of_denoisers")
class MixtureOfDenoisers(TextToText):
    """Each window is corrupted by one of seven denoisers, each as likely, whose mode token is the first that is read.

    - [R], regular: 15% of the tokens, in spans of 3 or of 8 on average, as in span corruption;
    - [S], sequential: the last quarter of the window, in one span;
    - [X], extreme: half of the tokens in spans of 3, 8 or 64, or 15% in spans of 64 on average.

    Source: Tay et al. 2022, arXiv:2205.05131, section 3.1.2 and table 1.
    """

    special_tokens = tuple((name,) for name in (*SENTINELS, "[R]", "[S]", "[X]"))
    modes: ClassVar = MODES
    sentinels: Ints  # their ids, in the order in which they stand in a text
    mode_ids: list[int]  # of each of `modes`

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer.

        Raises:
            UserError: It lacks sentinels, mode tokens or an end token.
        """
        made, name = super().for_tokenizer(tokenizer), "mixture_of_denoisers"
        made.sentinels = np.array(sentinel_ids(tokenizer, name))
        made.mode_ids = [token_id(tokenizer, name, mode.token) for mode in cls.modes]
        return made

    def window_length(self, sequence_length: int) -> int:
        """Return how many tokens of the text make inputs of at most `sequence_length` tokens, whatever the denoiser."""
        length = self._longest(sequence_length)
        check_sentinels(self.sentinels, [mode.corruption for mode in self.modes], length, sequence_length)
        return length

    def num_positions(self, sequence_length: int) -> int:
        """Return the most tokens that inputs and targets have together, but the last, which nothing follows."""
        length = self._longest(sequence_length)
        return max(sum(mode.corruption.lengths(length)) for mode in self.modes)

    def _longest(self, sequence_length: int) -> int:
        return min(mode.corruption.longest(sequence_length - 1) for mode in self.modes)

    def batch(self, windows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return "inputs" with their "mask", "decoder_inputs" and "targets"; padded at the end."""
        drawn = rng.integers(len(self.modes), size=len(windows))
        made = []
        for number in np.unique(drawn):
            rows = np.flatnonzero(drawn == number)
            corruption = self.modes[number].corruption
            inputs, targets = corrupted(windows[rows], corruption, self.sentinels, self.end, rng)
            made.append(
                (rows, np.pad(inputs, ((0, 0), (1, 0)), constant_values=self.mode_ids[number]), targets)
            )
        width, count = (max(part[kind].shape[1] for part in made) for kind in (1, 2))
        all_inputs, all_targets = (np.full((len(windows), size), self.start) for size in (width, count))
        real, counted = (np.zeros(each.shape, bool) for each in (all_inputs, all_targets))
        for rows, inputs, targets in made:
            all_inputs[rows, : inputs.shape[1]], real[rows, : inputs.shape[1]] = inputs, True
            all_targets[rows, : targets.shape[1]], counted[rows, : targets.shape[1]] = targets, True
        return self.pair(all_inputs, all_targets, real, counted)


show = MixtureOfDenoisers.show
