"""One text as an objective gives it to a network, for people to look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllm.core.errors import UserError
from nbllm.core.terminal import visible_line
from nbllm.core.text_table import text_table
from nbllm.objectives.base import Objective
from nbllm.objectives.special_tokens import MASK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HEADER = ("position", "seen", "to predict")
BOTH_WAYS, ONE_WAY = "Read in both directions", "Read from left to right"
TO_PREDICT = "To predict, token by token"


@dataclasses.dataclass(frozen=True)
class Example:
    """What a network sees of a text and what it must predict; shown in a cell.

    Attributes:
        seen: The text of each token that it sees: of an encoder-decoder those of the encoder, then the decoder's.
        predicted: The text of the token to be predicted at each position; `None` where nothing is.
        num_both_ways: How many of the first tokens all see each other; those after them see what is before.
        positions: The position of each token, where the objective numbers them itself: "3", or "3, 1" with a second
            number inside its span.
        special: The special tokens that the objective puts into a text; they stand out.
    """

    seen: tuple[str, ...]
    predicted: tuple[str | None, ...]
    num_both_ways: int = 0
    positions: tuple[str, ...] = ()
    special: frozenset[str] = frozenset()

    def _parts(self) -> list[tuple[str, range]]:
        parts = ((BOTH_WAYS, range(self.num_both_ways)), (ONE_WAY, range(self.num_both_ways, len(self.seen))))
        return [(name, places) for name, places in parts if places]

    @property
    def _in_order(self) -> bool:
        """Whether what is predicted are the next tokens, of which the order says where."""
        return not self.positions and not any(
            target is not None for target in self.predicted[: self.num_both_ways]
        )

    def _predicted(self) -> str:
        return " ".join(target for target in self.predicted if target is not None)

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            (self.positions[place] if self.positions else str(place), seen, target)
            for place, (seen, target) in enumerate(zip(self.seen, self.predicted, strict=True))
            if target is not None
        ]

    def __repr__(self) -> str:
        parts = [
            f"{name}: {visible_line(' '.join(self.seen[places.start : places.stop]))}"
            for name, places in self._parts()
        ]
        if self._in_order:
            return "\n\n".join([*parts, f"{TO_PREDICT}: {visible_line(self._predicted())}"])
        return "\n\n".join([*parts, text_table([HEADER, *self._rows()])])

    def _repr_html_(self) -> str:
        from nbllm.core.html import escape, fragment, table

        def shown(place: int) -> str:
            text, is_hidden = escape(self.seen[place]), place < self.num_both_ways and self.predicted[place]
            return f"<mark>{text}</mark>" if is_hidden or self.seen[place] in self.special else text

        parts = [f"<p><b>{name}:</b> {' '.join(map(shown, places))}</p>" for name, places in self._parts()]
        last: str = table(self._rows(), HEADER)
        if self._in_order:
            last = f"<p><b>{TO_PREDICT}:</b> {escape(self._predicted())}</p>"
        return fragment("".join(parts) + last)


def make_example(
    objective: Objective[Any],
    text: str,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    behind: Sequence[int] = (),
) -> Example:
    """Return a text as an objective gives it to a network; its batches have the names that ours use.

    Args:
        objective: The objective.
        text: The text.
        tokenizer: What turns it into tokens.
        seed: Of what is drawn at random.
        behind: Tokens that stand behind the text in the window.

    Raises:
        UserError: The text has too few tokens.
    """
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if len(ids) <= objective.overlap:
        raise UserError(f"The text has {len(ids)} tokens; at least {objective.overlap + 1} are needed.")
    batch: dict[str, Any] = {
        name: tensor[0].tolist()
        for name, tensor in objective.batch(np.array([[*ids, *behind]]), np.random.default_rng(seed)).items()
    }

    def word(token: int) -> str:
        return str(tokenizer.decode([token])).strip() or str(tokenizer.convert_ids_to_tokens(token))

    first = batch["inputs"]
    second = batch.get("decoder_inputs", [])
    if second:
        both_ways = len(first)
    elif "prefix_lengths" in batch:
        both_ways = batch["prefix_lengths"]
    else:
        both_ways = len(first) if objective.needs == "fill" else 0
    targets = [None] * (len(first) + len(second) - len(batch["targets"])) + batch["targets"]
    return Example(
        tuple(map(word, first + second)),
        tuple(None if token is None or token < 0 else word(token) for token in targets),
        both_ways,
        tuple(
            f"{one}, {two}"
            for one, two in zip(batch.get("positions", ()), batch.get("span_positions", ()), strict=True)
        ),
        frozenset(
            str(tokenizer.mask_token) if name == MASK else name
            for names in objective.special_tokens
            for name in names
        ),
    )
