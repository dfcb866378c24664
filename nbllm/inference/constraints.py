"""Which tokens cannot come next, whatever the model predicts."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.inference.config import SamplingConfig
from nbllm.inference.sequence import Sequence

_EXCLUDED = float("-inf")


def constrain(
    logits: Float[Tensor, "row vocabulary"],
    sequences: list[Sequence],
    texts: list[list[int]],
    config: SamplingConfig,
) -> Float[Tensor, "row vocabulary"]:
    """Return logits, or log-probabilities, in which what cannot come next is minus infinity.

    Ruled out are tokens that would repeat an n-gram, end tokens before `min_new_tokens`, and all but a token that is
    forced, which gets 0. They agree with transformers' logits processors of the same names.

    Args:
        logits: (row, vocabulary).
        sequences: Of each row.
        texts: Of each row, what was generated so far.
        config: `no_repeat_ngram_size`, `min_new_tokens`, `max_new_tokens`.

    Raises:
        UserError: Every token of a row is ruled out.
    """
    excluded = [_excluded(*each, config) for each in zip(sequences, texts, strict=True)]
    forced = [_forced(*each, config) for each in zip(sequences, texts, strict=True)]
    if not any(excluded) and all(token is None for token in forced):
        return logits
    logits = logits.clone()
    for row, tokens, only in zip(logits, excluded, forced, strict=True):
        row[torch.tensor(sorted(tokens), dtype=torch.long, device=row.device)] = _EXCLUDED
        if only is not None:
            row[:] = _EXCLUDED
            row[only] = 0.0
    if bool((logits.amax(-1) == _EXCLUDED).any()):
        raise UserError(
            "No token is left: every one would repeat an n-gram of the text.",
            hint="Use a larger no_repeat_ngram_size, or fewer max_new_tokens.",
        )
    return logits


def is_forced_last(sequence: Sequence, count: int, config: SamplingConfig) -> bool:
    """Return whether the token after `count` generated ones is the last, and forced."""
    return sequence.forced_last is not None and count == config.max_new_tokens - 1


def _excluded(sequence: Sequence, text: list[int], config: SamplingConfig) -> set[int]:
    """Return the tokens that one sequence cannot continue with."""
    size = config.no_repeat_ngram_size
    out = _after_same_tokens(sequence.prompt + text, size) if size else set()
    return out | sequence.end_ids if len(text) < config.min_new_tokens else out


def _after_same_tokens(tokens: list[int], size: int) -> set[int]:
    """Return the tokens that followed the last `size - 1` tokens wherever these stood before."""
    last = tokens[len(tokens) - size + 1 :]
    places = range(len(tokens) - size + 1)
    return {tokens[place + size - 1] for place in places if tokens[place : place + size - 1] == last}


def _forced(sequence: Sequence, text: list[int], config: SamplingConfig) -> int | None:
    """Return the only token that one sequence can continue with; None: there are several."""
    if is_forced_last(sequence, len(text), config):
        return sequence.forced_last
    return None if text else sequence.forced_first
