"""A model's vocabulary: whether a tokenizer's ids fit into it, and giving it another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from nbllm.core.errors import UserError

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


@torch.no_grad()
def resize_vocabulary(model: Network, vocab_size: int) -> None:
    """Give a network's embedding and head, and the head's bias, another number of rows; those that stay are the same.

    New rows are the mean of the others, under which a new token's probability is bounded and the others' hardly change.

    Args:
        model: The network; its `config` becomes one of the new size.
        vocab_size: So many rows; the last ones are dropped where they are fewer.

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
    for module, name in places:
        old = module.get_parameter(name)
        kept = min(len(old), vocab_size)
        new = old.new_empty(vocab_size, *old.shape[1:])
        new[:kept] = old[:kept]
        new[kept:] = old.mean(0, dtype=torch.float32)
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        for size in ("num_embeddings", "out_features"):
            if hasattr(module, size):
                setattr(module, size, vocab_size)
    model.config = model.config.replace(vocab_size=vocab_size)
