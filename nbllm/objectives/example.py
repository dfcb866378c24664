"""One text as an objective gives it to a network, for people to look at."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllm.core.errors import UserError
from nbllm.core.terminal import visible_line
from nbllm.core.text_table import text_table
from nbllm.objectives.base import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HEADER = ("position", "seen", "to predict")


@dataclasses.dataclass(frozen=True)
class Example:
    """What a network sees of a text and what it must predict; shown in a cell.

    Attributes:
        seen: The text of each token that it sees.
        predicted: The text of the token to be predicted at each position; `None` where nothing is.
    """

    seen: tuple[str, ...]
    predicted: tuple[str | None, ...]

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            (str(place), seen, target)
            for place, (seen, target) in enumerate(zip(self.seen, self.predicted, strict=True))
            if target is not None
        ]

    def __repr__(self) -> str:
        return f"{visible_line(' '.join(self.seen))}\n\n{text_table([HEADER, *self._rows()])}"

    def _repr_html_(self) -> str:
        from nbllm.core.html import escape, fragment, table

        shown = " ".join(
            escape(seen) if target is None else f"<mark>{escape(seen)}</mark>"
            for seen, target in zip(self.seen, self.predicted, strict=True)
        )
        return fragment(f"<p>{shown}</p>{table(self._rows(), HEADER)}")


def make_example(
    objective: Objective[Any], text: str, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Example:
    """Return a text as an objective whose batches have "inputs" and "targets" gives it to a network.

    Raises:
        UserError: The text has no token.
    """
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if not ids:
        raise UserError("The text has no token.")
    batch = objective.batch(np.array([ids]), np.random.default_rng(seed))

    def word(token: int) -> str:
        return str(tokenizer.decode([token])).strip() or str(tokenizer.convert_ids_to_tokens(token))

    return Example(
        tuple(word(int(token)) for token in batch["inputs"][0]),
        tuple(None if token < 0 else word(int(token)) for token in batch["targets"][0]),
    )
