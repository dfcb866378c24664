"""The special tokens that objectives need: looked up in a tokenizer, or added to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbllm.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MASK = "[MASK]"
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))  # T5's


def add_tokens(tokenizer: PreTrainedTokenizerFast, *objectives: str) -> PreTrainedTokenizerFast:
    """Add the special tokens that objectives need and the tokenizer lacks.

    To be done before the model is made; `lm.resize()` gives an older model rows for them.

    Args:
        tokenizer: It is changed.
        objectives: Names in `nbllm.objectives.OBJECTIVES`: "span_corruption", "blank_infilling", ...

    Returns:
        The tokenizer.

    Raises:
        UserError: There is no such objective; the nearest is named.
    """
    from nbllm.objectives.catalogue import OBJECTIVES

    needed = [names for name in objectives for names in OBJECTIVES[name].special_tokens]
    lacking = dict.fromkeys(names[0] for names in needed if _find(tokenizer, names) is None)
    if lacking.pop(MASK, MASK) is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    if lacking:
        extra = {"additional_special_tokens": list(lacking)}
        tokenizer.add_special_tokens(extra, replace_extra_special_tokens=False)
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, objective: str, *names: str) -> int:
    """Return the id of a special token that an objective needs.

    Args:
        tokenizer: The tokenizer.
        objective: The objective's name.
        names: What it may be called; "[MASK]" stands for the tokenizer's own mask token.

    Raises:
        UserError: The tokenizer has none of these.
    """
    found = _find(tokenizer, names)
    if found is None:
        raise _lacks(names[0], objective)
    return found


def sentinel_ids(tokenizer: PreTrainedTokenizerFast, objective: str) -> list[int]:
    """Return the ids of <extra_id_0>, <extra_id_1>, ..., as many as there are.

    Raises:
        UserError: The tokenizer has none.
    """
    known = tokenizer.get_vocab()
    ids: list[int] = []
    while (name := f"<extra_id_{len(ids)}>") in known:
        ids.append(int(known[name]))
    if not ids:
        raise _lacks(SENTINELS[0], objective)
    return ids


def end_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the token that ends a text, or where there is none the separator.

    Raises:
        UserError: The tokenizer has neither.
    """
    found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if found is None:
        raise UserError(
            "The tokenizer has no end-of-text token, which this objective needs.",
            hint='Add one before the model is made: tokenizer.add_special_tokens({"eos_token": "</s>"}).',
        )
    return int(found)


def around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before and after a text, such as [CLS] and [SEP]."""
    alone, text = (
        [int(token) for token in tokenizer.encode("a", add_special_tokens=added)] for added in (True, False)
    )
    before = next((place for place in range(len(alone)) if alone[place : place + len(text)] == text), 0)
    return alone[:before], alone[before + len(text) :]


def length_within(around: tuple[list[int], list[int]], sequence_length: int) -> int:
    """Return how many tokens of a text make a sequence of `sequence_length`, with the tokens around it.

    Raises:
        UserError: There is no room for one.
    """
    before, after = around
    length = sequence_length - len(before) - len(after)
    if length < 1:
        raise UserError(
            f"sequence_length is {sequence_length}; {len(before) + len(after)} of it are the tokens around a text.",
            hint="Use a longer one.",
        )
    return length


def _find(tokenizer: PreTrainedTokenizerFast, names: tuple[str, ...]) -> int | None:
    if MASK in names and tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    known = tokenizer.get_added_vocab()
    return next((int(known[name]) for name in names if name in known), None)


def _lacks(name: str, objective: str) -> UserError:
    what = "mask token" if name == MASK else f"token {name}"
    return UserError(
        f"The tokenizer has no {what}, which {objective} needs.",
        hint=f'Add what it needs before the model is made: nb.objectives.add_tokens(tokenizer, "{objective}"); '
        "lm.resize() gives a model that is there already rows for it.",
    )
