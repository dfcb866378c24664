"""The tokens that an encoder-decoder begins and ends its text with, as the files of a model state them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError
from nbllm.core.terminal import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderTokens:
    """What a decoder's text begins and ends with, by transformers' names.

    Attributes:
        decoder_start_token_id: What the decoder reads before its first token.
        forced_bos_token_id: The first token that it writes, whatever it predicts (of a language, in mBART); None: what
            it predicts.
        forced_eos_token_id: The last of `max_new_tokens` tokens that it writes, whatever it predicts (BART); None: what
            it predicts.
    """

    decoder_start_token_id: int
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None


NAMES = tuple(field.name for field in dataclasses.fields(DecoderTokens))


def usual_decoder_tokens(tokenizer: PreTrainedTokenizerBase, start: str) -> DecoderTokens:
    """Return those of a model whose files state nothing.

    Args:
        tokenizer: Its tokenizer.
        start: Which of its tokens the decoder begins with, "pad_token_id" (T5) or "eos_token_id" (BART); the other one
            where it lacks that.

    Raises:
        UserError: The tokenizer has neither.
    """
    for name in (start, "pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return DecoderTokens(decoder_start_token_id=int(token))
    raise UserError(
        "The tokenizer has no padding token and no end token, with one of which the decoder's text begins.",
        hint='Add one: tokenizer.add_special_tokens({"pad_token": "<pad>"}), then lm.resize().',
    )


def stated_decoder_tokens(values: Mapping[str, Any], vocab_size: int, where: Path) -> DecoderTokens | None:
    """Return what a configuration states; None where it does not state the first. Warns of what is no token.

    Args:
        values: The configuration.
        vocab_size: Of the model; each token is below it.
        where: The file, for warnings.
    """
    found: dict[str, int] = {}
    for name in NAMES:
        token = values.get(name)
        if type(token) is int and 0 <= token < vocab_size:
            found[name] = token
        elif token is not None:
            text = shorten(repr(token), 100)
            warnings.warn(f"{name} in {where} is left out: {text} is no token of the model.", stacklevel=3)
    return DecoderTokens(**found) if NAMES[0] in found else None
