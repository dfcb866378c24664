"""The tokens before and after a document in a model's training: one rule for packing, scoring and generation."""

from __future__ import annotations

import dataclasses
from typing import Any

from nbllm.core.errors import UserError

# Tokens of chat formats that begin or end a turn. No document of a pre-training began or ended with one, though a chat
# model's tokenizer calls them its beginning and end of text.
TURN_TOKENS = frozenset(
    {"<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>"}
)
# What ended documents in the pre-training of families whose chat models name another token as their end of text: Qwen,
# SmolLM, Phi, OLMo, StarCoder and Falcon, which took it over from GPT-2; and Llama 3.
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")

_SETTING = "document_start"  # among the tokenizer's settings, which are saved with it


@dataclasses.dataclass(frozen=True)
class DocumentBounds:
    """The tokens around a document.

    Attributes:
        start: The id of the token before its first; `None` where there is none.
        end: The id of the token after its last; `None` where there is none. It may be the same: then one token stands
            between two documents.
        start_token: The text of `start`; "" where there is none.
        reason: Why it is this one: "the tokenizer's beginning-of-text token".
    """

    start: int | None
    end: int | None
    start_token: str
    reason: str

    @property
    def start_tokens(self) -> list[int]:
        """What the first token of a document is predicted from: one token id, or none."""
        return [] if self.start is None else [self.start]

    @property
    def end_tokens(self) -> list[int]:
        """What is predicted after the last token of a document: one token id, or none."""
        return [] if self.end is None else [self.end]


def document_bounds(tokenizer: Any) -> DocumentBounds:
    """Return the tokens around a document.

    The end is the tokenizer's end-of-text token, or where there is none its separator (BERT's [SEP]). A chat model's
    may be the end of a turn instead (`TURN_TOKENS`); then the end is what ended documents in the pre-training
    (`DOCUMENT_ENDS`), if the vocabulary has that. The start is what a person named (`name_document_start`), else the
    beginning-of-text token unless that begins a turn, else the end, which stands before the next document too.

    Args:
        tokenizer: A transformers tokenizer.

    Raises:
        UserError: The token that was named is not in the vocabulary.
    """
    added = {str(token): int(number) for token, number in tokenizer.get_added_vocab().items()}
    bos = _named(tokenizer, "bos_token")
    eos = _named(tokenizer, "eos_token") or _named(tokenizer, "sep_token")
    start, end, reason = eos, eos, "the tokenizer's end-of-text token, which separates documents in training"
    separator = next((token for token in DOCUMENT_ENDS if token in added), None)
    if eos is not None and eos[0] in TURN_TOKENS and separator is not None:
        start = end = separator, added[separator]
        reason = "what separated documents in the pre-training of such models"
    if bos is not None and bos[0] not in TURN_TOKENS:
        start, reason = bos, "the tokenizer's beginning-of-text token"
    named = getattr(tokenizer, "init_kwargs", {}).get(_SETTING)
    if named is not None:
        start, reason = (named, _id_of(tokenizer, named)), "named for this model"
    return DocumentBounds(
        start=None if start is None else start[1],
        end=None if end is None else end[1],
        start_token="" if start is None else start[0],
        reason="" if start is None else reason,
    )


def name_document_start(tokenizer: Any, token: str | None) -> None:
    """Name the token that documents begin with; it is saved among the tokenizer's settings. `None` restores the rule.

    Raises:
        UserError: The token is not in the vocabulary.
    """
    if token is None:
        tokenizer.init_kwargs.pop(_SETTING, None)
        return
    _id_of(tokenizer, token)
    tokenizer.init_kwargs[_SETTING] = token


def _named(tokenizer: Any, name: str) -> tuple[str, int] | None:
    """Return a special token's text and id."""
    token, number = getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")
    return None if token is None or number is None else (str(token), int(number))


def _id_of(tokenizer: Any, token: object) -> int:
    number = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else None
    if number is None or tokenizer.convert_ids_to_tokens(number) != token:  # the unknown token stands for it
        raise UserError(
            f"The vocabulary has no token {token!r} for documents to begin with.",
            hint='Name one as the tokenizer writes it, such as "<|endoftext|>".',
        )
    return int(number)
