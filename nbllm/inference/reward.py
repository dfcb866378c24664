"""The scores of whole texts by a model with a score head: a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.data.chat_template import encode_conversation
from nbllm.data.document_bounds import document_bounds
from nbllm.data.encoding import added_around, added_before, encode_text
from nbllm.inference.chat_prompt import PLAIN_TEMPLATE
from nbllm.models.batching import batches
from nbllm.models.network import Network, check_can
from nbllm.models.scoring import check_tokens

_BATCH_TOKENS = 4096  # about how many one forward pass takes


class Scoring(Protocol):
    """A network with a score head."""

    def scores(self, input_ids: Tensor, lengths: Tensor) -> Float[Tensor, " batch"]:
        """Return the score of each text, of which so many tokens are no padding."""


def encode_whole(
    tokenizer: Any, text: str | Sequence[Mapping[str, Any]], *, both_directions: bool
) -> list[int]:
    """Return the tokens of a text, or of a conversation with its last answer, from beginning to end.

    Args:
        tokenizer: A transformers tokenizer.
        text: A text, which is a document; or messages, which are rendered by the chat template or, where there is none,
            with plain words for the roles.
        both_directions: Whether an encoder reads them, between the tokens that its tokenizer puts around a text.

    Raises:
        UserError: The template cannot render the conversation.
    """
    before, after = added_around(tokenizer) if both_directions else ([], [])
    if isinstance(text, str):
        tokens = encode_text(tokenizer, text)
        if both_directions:
            return [*before, *tokens, *after]
        bounds = document_bounds(tokenizer)
        return [*bounds.start_tokens, *tokens, *bounds.end_tokens]
    if tokenizer.chat_template:
        tokens = encode_conversation(tokenizer, text)
    else:
        tokens = encode_conversation(tokenizer, text, template=PLAIN_TEMPLATE)
        before = before if both_directions else added_before(tokenizer)
    return [*before, *tokens, *after]


@torch.inference_mode()
def score_whole(network: Network, sequences: Sequence[Sequence[int]]) -> Float[Tensor, " text"]:
    """Return the score of each sequence of tokens, float32, on the CPU.

    Args:
        network: A network that can "reward".
        sequences: Token ids, at least one and at most `max_positions` each.

    Raises:
        UserError: The network cannot, or a token is beyond its vocabulary.
    """
    check_can(network, "reward")
    check_tokens(network, sequences)
    for number, sequence in enumerate(sequences):
        if not len(sequence):
            raise UserError("A text has no token.", where=f"text {number}")
    out = torch.empty(len(sequences))
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    for rows in batches(order, lambda row: len(sequences[row]), _BATCH_TOKENS):
        longest = len(sequences[rows[0]])
        padded = [[*sequences[row], *[0] * (longest - len(sequences[row]))] for row in rows]
        ids = torch.tensor(padded, device=network.device)
        lengths = torch.tensor([len(sequences[row]) for row in rows], device=network.device)
        out[rows] = cast(Scoring, network).scores(ids, lengths).cpu()
    return out
