"""A model's vocabulary: whether a tokenizer's ids fit into it, and giving it another size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from nbllm.core.errors import UserError, listed, nearest
from nbllm.core.seeding import generator

INITIALIZATIONS = ("mean", "subtokens", "random")  # of the rows of new tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nbllm.models.network import Network


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows an embedding needs for a tokenizer: one more than its highest id."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise `UserError` where a tokenizer has ids that a model of this vocabulary lacks."""
    needed = num_ids(tokenizer)
    if needed > vocab_size:
        raise UserError(
            f"The tokenizer has {needed} tokens, the model only {vocab_size}: tokens were added.",
            hint="Give the model a row for each of them: lm.resize().",
        )


def check_initialization(initialize: str | Mapping[int, Sequence[int]], rows: int, vocab_size: int) -> None:
    """Raise `UserError` where there is no such initialization, or an id in it is out of range.

    Args:
        initialize: The name of one of `INITIALIZATIONS`, or by id the older ids whose mean a row becomes.
        rows: That there are.
        vocab_size: That there will be.
    """
    if not isinstance(initialize, Mapping):
        if initialize not in INITIALIZATIONS:
            raise UserError(
                f"There is no initialization {initialize!r}.", hint=nearest(str(initialize), INITIALIZATIONS)
            )
        return
    for row, ids in initialize.items():
        if not 0 <= row < vocab_size or not all(0 <= each < rows for each in ids):
            raise UserError(
                f"Row {row} cannot begin as the mean of {listed(ids, most=8)}: there are {rows} rows, and there will "
                f"be {vocab_size}."
            )


def subtokens(tokenizer: PreTrainedTokenizerBase, first_id: int) -> dict[int, list[int]]:
    """Return, for each token that was added with an id from `first_id` on, the older tokens that spell its text.

    Args:
        tokenizer: A tokenizer of `tokenizers`, as transformers opens them.
        first_id: The first id that the model has no row for.
    """
    from tokenizers import Tokenizer

    added = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if number >= first_id and token.content
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not added or backend is None:
        return {}
    saved = json.loads(backend.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["id"] < first_id]
    older = Tokenizer.from_str(json.dumps(saved))
    spelt = {number: older.encode(text, add_special_tokens=False).ids for number, text in added.items()}
    return {number: [token for token in ids if token < first_id] for number, ids in spelt.items()}


@torch.no_grad()
def resize_vocabulary(
    model: Network,
    vocab_size: int,
    *,
    initialize: str = "mean",
    parts: Mapping[int, Sequence[int]] | None = None,
) -> None:
    """Give a network's embedding and head, and the head's bias, another number of rows; those that stay are the same.

    Under new rows that are the mean of the others, and a head without bias, k new tokens on n leave the old ones at
    least n / (n + k) of their probability: the exponential of a mean is at most the mean of the exponentials.

    Args:
        model: The network; its `config` becomes one of the new size.
        vocab_size: So many rows; the last ones are dropped where they are fewer.
        initialize: What new rows are: "mean", the mean of the others, or "random", drawn from a normal distribution
            with the mean and the variance of the others, the same each time.
        parts: Of some ids, older ids whose mean their rows become instead, also where the row is there already.

    Raises:
        UserError: Embedding or head was wrapped, by an adapter for instance.

    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
    """
    places = model.vocabulary_parameters
    for module, name in places:
        if not isinstance(module._parameters.get(name), nn.Parameter):
            raise UserError(
                f"{type(module).__name__} cannot be resized: the embedding or the head was wrapped or replaced.",
                hint="Resize the model first, then wrap it.",
            )
    for number, (module, name) in enumerate(places):
        old = module.get_parameter(name)
        kept = min(len(old), vocab_size)
        new = old.new_empty(vocab_size, *old.shape[1:])
        new[:kept] = old[:kept]
        new[kept:] = old.mean(0, dtype=torch.float32)
        if initialize == "random" and vocab_size > kept:
            drawn = torch.randn(new[kept:].shape, generator=generator(0, "new rows", number))
            new[kept:] += (drawn.to(old.device) * old.float().std(0)).to(old.dtype)
        for row, ids in (parts or {}).items():
            if ids:
                new[row] = old[list(ids)].mean(0, dtype=torch.float32)
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        for size in ("num_embeddings", "out_features"):
            if hasattr(module, size):
                setattr(module, size, vocab_size)
    model.config = model.config.replace(vocab_size=vocab_size)
