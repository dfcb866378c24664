"""How probable an encoder-decoder finds texts that its decoder could write, given what its encoder reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nbllm.models.batching import batches
from nbllm.models.continuations import Likelihoods, Tokens, predictions
from nbllm.models.encoder_decoder import EncoderDecoder
from nbllm.models.scoring import check_tokens


@torch.inference_mode()
def target_likelihoods(
    model: EncoderDecoder,
    pairs: Sequence[tuple[Tokens, Tokens]],
    *,
    start: int,
    max_batch_tokens: int = 4096,
) -> list[Likelihoods]:
    """Return how probable the model finds each target after its source; a source with several is read once.

    Args:
        model: The model.
        pairs: Token ids of source and target; neither is longer than the positions of a model that has so many.
        start: What the decoder reads before the first token of a target.
        max_batch_tokens: About how many tokens of sources one forward pass takes.

    Raises:
        UserError: A token is beyond the model's vocabulary, or a text longer than the model's positions.
    """
    check_tokens(model, [[*source, *target] for source, target in pairs])
    out = [Likelihoods(torch.zeros(0), True) for _ in pairs]
    targets_of: dict[tuple[int, ...], list[int]] = {}
    for index, (source, target) in enumerate(pairs):
        if len(target):
            targets_of.setdefault(tuple(source), []).append(index)
    for sources in batches(sorted(targets_of, key=len), len, max_batch_tokens):
        indices = [index for source in sources for index in targets_of[source]]
        rows = [row for row, source in enumerate(sources) for _ in targets_of[source]]
        targets = [list(pairs[index][1]) for index in indices]
        hidden = _hidden(model, sources, targets, rows, start)
        wanted = torch.tensor([token for target in targets for token in target], device=model.device)
        found, likeliest = predictions(model, hidden, wanted)
        parts = zip(found.split([*map(len, targets)]), likeliest.split([*map(len, targets)]), strict=True)
        for index, (values, is_likeliest) in zip(indices, parts, strict=True):
            out[index] = Likelihoods(values.clone(), bool(is_likeliest.all()))
    return out


def _hidden(
    model: EncoderDecoder, sources: Sequence[Tokens], targets: list[list[int]], rows: list[int], start: int
) -> Tensor:
    """Return what predicts each token of each target, one after the other; `rows`: the source of each target."""
    longest = max(map(len, targets))
    cache = model.make_cache(len(sources), longest)
    ids, real = _padded(sources)
    first = torch.full((len(sources), 1), start)
    device = model.device
    hidden = model.hidden(
        ids.to(device), first.to(device), attention_mask=real.to(device), cache=cache
    )  # which reads the sources
    cache.gather(torch.tensor(rows))
    hidden = hidden[torch.tensor(rows, device=device)]
    if longest > 1:
        ids, _ = _padded([target[:-1] for target in targets])
        hidden = torch.cat((hidden, model.hidden(None, ids.to(device), cache=cache)), dim=1)
    _, real = _padded(targets)
    return hidden[real.to(device)]


def _padded(sequences: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """Return sequences as (row, position), padded at the end, and where they are not padding."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences])
    real = torch.arange(longest) < torch.tensor([len(sequence) for sequence in sequences])[:, None]
    return ids, real
