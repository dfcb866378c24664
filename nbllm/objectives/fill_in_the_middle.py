"""Fill-in-the-middle: a causal decoder learns to write what stands between two given parts of a text."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nbllm.objectives.base import IGNORED, OBJECTIVES, Batch
from nbllm.objectives.causal_lm import CausalLM, next_tokens
from nbllm.objectives.example import Example, make_example
from nbllm.objectives.special_tokens import end_id, token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PREFIX = ("<|fim_prefix|>", "<fim_prefix>", "▁<PRE>")
SUFFIX = ("<|fim_suffix|>", "<fim_suffix>", "▁<SUF>")
MIDDLE = ("<|fim_middle|>", "<fim_middle>", "▁<MID>")


@OBJECTIVES.register("fill_in_the_middle")
class FillInTheMiddle(CausalLM):
    """Language modelling of documents of which half are rearranged: prefix, suffix, and then the middle between them.

    Each document in a window is rearranged with probability 0.5. It is cut at two places drawn uniformly from those
    between its characters, and its parts are encoded anew, as they will be when the model is used; a text that does
    not survive being decoded and encoded (part of a character at a window's end, an unknown token) is cut between two
    tokens. Half of the rearranged ones are <PRE> prefix <SUF> suffix <MID> middle ("PSM"), half <PRE> <SUF> suffix
    <MID> prefix middle ("SPM", in the form that shares what it learns with PSM); each ends with the end token. What
    gets longer than the window is cut from the suffix. All tokens count, as in causal language modelling.

    Source: Bavarian et al. 2022, arXiv:2207.14255, sections 3 and 4.3, appendix D.
    """

    counts_every_token = False  # texts are read in another order, with marks and without what they are cut by
    special_tokens = (PREFIX, SUFFIX, MIDDLE)
    rate: float = 0.5
    spm_rate: ClassVar[float] = 0.5
    tokenizer: PreTrainedTokenizerFast
    end: int
    begin: int | None  # the token before each document, where that is not the end of another
    marks: tuple[int, int, int]  # prefix, suffix, middle

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer.

        Raises:
            UserError: It lacks the three tokens that mark the parts, or an end token.
        """
        made = cls()
        made.tokenizer, made.end = tokenizer, end_id(tokenizer)
        made.begin = None if tokenizer.bos_token_id == made.end else tokenizer.bos_token_id
        prefix, suffix, middle = (
            token_id(tokenizer, "fill_in_the_middle", *names) for names in cls.special_tokens
        )
        made.marks = prefix, suffix, middle
        return made

    @classmethod
    def show(cls, text: str, *, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Example:
        """Return a text as it is rearranged, to be looked at; arguments and errors as `Objective.show`."""
        made = cls.for_tokenizer(tokenizer)
        made.rate = 1.0
        room = [made.end] * 16  # for the marks, the end, and the tokens that the cuts make of others
        shown = make_example(made, text, tokenizer, seed, behind=room)
        count = shown.predicted.index(tokenizer.convert_ids_to_tokens(made.end)) + 1
        return dataclasses.replace(shown, seen=shown.seen[:count], predicted=shown.predicted[:count])

    def batch(self, windows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return "inputs" and "targets", each (batch, window - 1); a target is -100 behind a row's last token."""
        rows = np.full(windows.shape, self.end)
        lengths = np.zeros(len(windows), np.int64)
        for number, window in enumerate(windows):
            row = self._rearranged(window, rng)
            lengths[number] = len(row)
            rows[number, : len(row)] = row
        is_real = np.arange(1, windows.shape[1]) < lengths[:, None]
        return next_tokens(rows[:, :-1], np.where(is_real, rows[:, 1:], IGNORED), self.isolation)

    def _rearranged(self, window: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
        """Return a window with some of its documents rearranged, at most as long as it was."""
        ends = np.flatnonzero(window == self.end)
        row: list[int] = []
        for document in np.split(window, ends + 1):
            tokens = document.tolist()
            if tokens[:1] == [self.begin] and len(row) < len(window):
                row.append(tokens.pop(0))
            room = len(window) - len(row)
            body = tokens[:-1] if tokens and tokens[-1] == self.end else tokens
            body = body[: room - 4]  # three marks and the end
            if rng.random() < self.rate and room > 4 and body:
                row += self._transformed(body, room, rng)
            else:
                row += tokens[:room]
        return row

    def _transformed(self, body: list[int], room: int, rng: np.random.Generator) -> list[int]:
        """Return the tokens of a document rearranged, at most `room` of them."""
        prefix, middle, suffix = self._parts(body, rng)
        before, between, then = self.marks
        suffix = suffix[: max(0, room - 4 - len(prefix) - len(middle))]
        if rng.random() < self.spm_rate:
            made = [before, between, *suffix, then, *prefix, *middle, self.end]
        else:
            made = [before, *prefix, between, *suffix, then, *middle, self.end]
        return made[:room]

    def _parts(self, body: list[int], rng: np.random.Generator) -> list[list[int]]:
        """Return the tokens of prefix, middle and suffix."""
        text = self.tokenizer.decode(body, clean_up_tokenization_spaces=False)
        places = np.sort(rng.random(2))
        if self._encoded([text])[0] != body:
            first, second = (places * (len(body) + 1)).astype(int)
            return [body[:first], body[first:second], body[second:]]
        first, second = (places * (len(text) + 1)).astype(int)
        return self._encoded([text[:first], text[first:second], text[second:]])

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids


show = FillInTheMiddle.show
