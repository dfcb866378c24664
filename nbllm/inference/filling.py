"""What an encoder expects in the place of masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch

from nbllm.core.errors import UserError
from nbllm.core.text_table import text_table
from nbllm.data.encoding import added_around, encode_text
from nbllm.models.network import Network, check_can

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADER = ("mask", "token", "probability", "text")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A token in the place of a mask.

    Attributes:
        token: Its text; that of a piece within a word begins with "##" in WordPiece.
        token_id: Its id.
        probability: By the model, each mask on its own.
        text: The text with this token in the place of the mask, the other masks as they are.
    """

    token: str
    token_id: int
    probability: float
    text: str


class Fill(Sequence[tuple[Candidate, ...]]):
    """The likeliest tokens for each mask of a text, the likeliest first; shown in a cell as a table.

    `fill[0][0].token` is the likeliest token for the first mask.

    Args:
        text: The text with its masks.
        masks: The candidates of each.
    """

    def __init__(self, text: str, masks: Sequence[tuple[Candidate, ...]]) -> None:
        self.text = text
        self._masks = tuple(masks)

    @overload
    def __getitem__(self, index: int) -> tuple[Candidate, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[Candidate, ...], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[Candidate, ...] | tuple[tuple[Candidate, ...], ...]:
        return self._masks[index]

    def __len__(self) -> int:
        return len(self._masks)

    def _rows(self) -> Iterator[tuple[str, str, float, str]]:
        for number, candidates in enumerate(self._masks, 1):
            for each in candidates:
                yield str(number), each.token, each.probability, each.text

    def __repr__(self) -> str:
        rows = [(mask, token, f"{share:.1%}", text) for mask, token, share, text in self._rows()]
        return text_table([HEADER, *rows])

    def _repr_html_(self) -> str:
        from nbllm.core.html import fragment, table

        rows = [(mask, token, f"{share:.1%}", text) for mask, token, share, text in self._rows()]
        return fragment(table(rows, HEADER, caption=self.text))


def fill_masks(network: Network, tokenizer: PreTrainedTokenizerBase, text: str, top: int) -> Fill:
    """Return the `top` likeliest tokens for each mask of a text.

    The text is encoded as in training: of the control tokens that it spells only the mask is one.

    Raises:
        UserError: The network cannot fill masks, the tokenizer has no mask token, the text has none or is too long,
            or `top` is no number of tokens.
    """
    check_can(network, "fill")
    if isinstance(top, bool) or not isinstance(top, int) or not 0 < top <= len(tokenizer):
        raise UserError(f"top must be a whole number from 1 to {len(tokenizer)}, not {top!r}.")
    ids = _encode(tokenizer, text)
    limit = network.context_length
    if len(ids) > limit:
        raise UserError(
            f"The text has {len(ids)} tokens; this model reads {limit}.", hint="Shorten the text."
        )
    places = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
    model: Any = network
    with torch.inference_mode():
        hidden = model.hidden(torch.tensor([ids], device=network.device))[0, places]
        probabilities = model.logits(hidden).float().softmax(-1)[:, : len(tokenizer)].cpu()
    found = probabilities.topk(top)
    pieces = text.split(str(tokenizer.mask_token))
    return Fill(
        text,
        [
            tuple(
                _candidate(tokenizer, pieces, number, int(token), float(share))
                for token, share in zip(found.indices[number], found.values[number], strict=True)
            )
            for number in range(len(places))
        ],
    )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    mask, mask_id = tokenizer.mask_token, tokenizer.mask_token_id
    if mask is None:
        raise UserError(
            "The tokenizer has no mask token.", hint="Set its mask_token, if the model knows one."
        )
    pieces = text.split(str(mask))
    if len(pieces) == 1:
        raise UserError(f"The text has no mask: {text[:60]!r}.", hint=f"Put {mask} where a token is missing.")
    added: Any = getattr(tokenizer, "added_tokens_decoder", {}).get(mask_id)
    before, after = added_around(tokenizer)
    ids = list(before)
    for number, piece in enumerate(pieces):
        if number:
            ids.append(int(mask_id))
            piece = piece.lstrip() if getattr(added, "rstrip", False) else piece
        if number < len(pieces) - 1 and getattr(added, "lstrip", False):
            piece = piece.rstrip()
        ids += encode_text(tokenizer, piece) if piece else []
    return ids + after


def _candidate(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], number: int, token_id: int, probability: float
) -> Candidate:
    token = str(tokenizer.decode([token_id]))
    before, mask = pieces[: number + 1], str(tokenizer.mask_token)
    word = token.removeprefix("##").strip() if before[-1].endswith((" ", "\n")) or not before[-1] else token
    text = mask.join(before) + word.removeprefix("##") + mask.join(pieces[number + 1 :])
    return Candidate(token.strip() or token, token_id, probability, text)
