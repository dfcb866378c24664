"""How probable a model finds given tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.models.batching import batches
from nbllm.models.network import CausalNetwork, Network

# Most logits held at a time, in elements: 64 MB of float32.
LOGITS_AT_ONCE = 1 << 24


@torch.inference_mode()
def token_log_probabilities(
    model: CausalNetwork,
    sequences: Sequence[Sequence[int]],
    *,
    stride: int | None = None,
    max_batch_tokens: int = 4096,
) -> list[Float[Tensor, " token"]]:
    """Return, for each sequence, the log-probability of every token but its first, given those before.

    A sequence longer than the context is read in overlapping windows; each token is counted once, in the
    window that shows it the most context.

    Args:
        model: The model.
        sequences: Token ids.
        stride: By how many tokens the window moves on; half the context when None.
        max_batch_tokens: About how many tokens one forward pass takes.

    Returns:
        Per sequence natural logarithms, a float32 tensor on the CPU, one shorter than the sequence.

    Raises:
        UserError: A sequence holds a token that the model's vocabulary lacks.
    """
    check_tokens(model, sequences)
    context = model.context_length
    step = context // 2 or 1 if stride is None else stride
    assert 0 < step <= context
    out = [torch.zeros(max(len(sequence) - 1, 0)) for sequence in sequences]
    windows = [
        (index, start, first)
        for index, sequence in enumerate(sequences)
        for start, first in _windows(len(sequence), context, step)
    ]

    def length(window: tuple[int, int, int]) -> int:
        return min(context, len(sequences[window[0]]) - 1 - window[1])

    # By length, so that little is padded; padding goes to the right, where a causal model never sees it.
    for batch in batches(sorted(windows, key=length), length, max_batch_tokens):
        rows = [list(sequences[index][start : start + context + 1]) for index, start, _ in batch]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
        found = _next_token_log_probabilities(model, ids).cpu()
        for (index, start, first), row, values in zip(batch, rows, found, strict=True):
            out[index][first : start + len(row) - 1] = values[first - start : len(row) - 1]
    return out


def check_tokens(model: Network, sequences: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` where a sequence holds a token that the model's vocabulary lacks."""
    vocabulary = model.config.vocab_size
    for index, sequence in enumerate(sequences):
        if sequence and max(sequence) >= vocabulary:
            raise UserError(
                f"A text holds a token beyond the model's vocabulary of {vocabulary}.",
                where=f"text {index}",
                hint="Use the tokenizer that belongs to this model; where tokens were added to it, lm.resize().",
            )


def _windows(length: int, context: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield (where the window starts, the first prediction it counts); prediction i is of token i + 1."""
    start = counted = 0
    while counted < length - 1:
        yield start, counted
        counted = min(start + context, length - 1)
        start = min(start + step, max(length - 1 - context, 0))


def _next_token_log_probabilities(model: CausalNetwork, ids: Tensor) -> Tensor:
    """Return (batch, position - 1): the log-probability of each token after the first."""
    hidden = model.hidden(ids[:, :-1]).flatten(0, 1)
    targets = ids[:, 1:].flatten()
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    losses = [
        F.cross_entropy(model.logits(part).float(), target, reduction="none")
        for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return -torch.cat(losses).view(ids.shape[0], -1)
