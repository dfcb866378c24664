"""Vectors of texts, made of the hidden states of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.models.batching import batches
from nbllm.models.network import Network, check_can

POOLINGS = ("mean", "cls", "last")
_BATCH_TOKENS = 4096  # about how many tokens one forward pass takes


class _Reader(Protocol):
    """What a network that can embed has."""

    def hidden(self, input_ids: Tensor, *, attention_mask: Tensor | None, **options: Any) -> Tensor: ...


@torch.inference_mode()
def embed_tokens(
    network: Network, sequences: Sequence[Sequence[int]], *, pooling: str, normalize: bool
) -> Float[Tensor, "text hidden"]:
    """Return a vector for each sequence of tokens.

    Sequences of similar length are read together, so that little is padded; padding changes nothing.

    Args:
        network: A network that can "embed".
        sequences: Token ids, at least one and at most `max_positions` each.
        pooling: "mean" of all tokens, the first one ("cls"), or the "last".
        normalize: Whether each vector is divided by its Euclidean norm.

    Returns:
        (text, hidden), float32, on the CPU.

    Raises:
        UserError: The network cannot embed, there is no such pooling, or it makes no sense for the network.
    """
    check_can(network, "embed")
    if pooling not in POOLINGS:
        raise UserError(f"There is no pooling {pooling!r}.", hint=f"Known: {', '.join(POOLINGS)}.")
    if pooling == "cls" and "generate" in network.can:
        raise UserError(
            f"The first token says nothing of a text here: this is {network.kind}.",
            hint='Use pooling="last" or "mean".',
        )
    out = torch.empty(len(sequences), network.config.hidden_size)
    for rows, hidden, mask in _read(network, sequences):
        out[rows] = _pool(hidden.float(), mask, pooling).cpu()
    return F.normalize(out, dim=-1) if normalize else out


@torch.inference_mode()
def token_states(
    network: Network, sequences: Sequence[Sequence[int]], *, num_layers: int | None = None
) -> list[Float[Tensor, "token hidden"]]:
    """Return the hidden state of each token of each sequence, after the first `num_layers` blocks.

    Args:
        network: An encoder.
        sequences: Token ids, at least one and at most `max_positions` each.
        num_layers: How many blocks have been read, 0 for the embeddings; `None` is all.

    Returns:
        For each sequence (token, hidden), float32, on the CPU.

    Raises:
        UserError: The network is no encoder, or has not that many blocks.
    """
    from nbllm.models.encoder import Encoder

    most = network.config.num_layers
    if not isinstance(network, Encoder):
        raise UserError(f"This needs an encoder; the model is {network.kind}.")
    if num_layers is not None and not 0 <= num_layers <= most:
        raise UserError(f"num_layers is {num_layers}; the model has {most}.", where="num_layers")
    out: dict[int, Tensor] = {}
    for rows, hidden, mask in _read(network, sequences, num_layers=num_layers):
        for row, states, length in zip(rows, hidden, mask.sum(1).tolist(), strict=True):
            out[row] = states[:length].float().cpu()
    return [out[row] for row in range(len(sequences))]


def _read(
    network: Network, sequences: Sequence[Sequence[int]], **options: Any
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield the numbers of sequences with their hidden states (text, token, hidden) and masks (text, token)."""
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    for rows in batches(order, lambda row: len(sequences[row]), _BATCH_TOKENS):
        ids, mask = _pad([sequences[row] for row in rows], _padding_token(network))
        mask = mask.to(network.device)
        yield (
            rows,
            cast(_Reader, network).hidden(ids.to(network.device), attention_mask=mask, **options),
            mask,
        )


def _pad(rows: Sequence[Sequence[int]], padding: int) -> tuple[Int[Tensor, "text token"], Tensor]:
    """Return tokens with padding to their right, and which of them are real."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(longest) < lengths[:, None]


def _padding_token(network: Network) -> int:
    return max(network.config.position_offset - 1, 0)


def _pool(hidden: Tensor, mask: Tensor, pooling: str) -> Any:
    if pooling == "cls":
        return hidden[:, 0]
    counts = mask.sum(1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), counts - 1]
    return (hidden * mask[..., None]).sum(1) / counts[:, None]
