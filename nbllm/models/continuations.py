"""How probable a model finds continuations after their contexts; what several of them begin with is read once.

The contexts of a benchmark share a beginning (worked examples), and the choices of a question share all of it. The
sequences are read as a tree: several in one row, where each token sees its ancestors alone and has the position that it
has in its own sequence. A beginning that many rows share is read once into the cache.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from nbllm.models.batching import batches
from nbllm.models.decoder import Decoder
from nbllm.models.network import CausalNetwork, GenerativeNetwork
from nbllm.models.scoring import LOGITS_AT_ONCE, check_tokens
from nbllm.nn.kv_cache import KVCache
from nbllm.nn.positions import Positions

Tokens = Sequence[int]
# Tokens of a row on the CPU: every token is compared with all others of its row, related or not.
ROW_ON_CPU = 512
# A shared beginning shorter than this is not worth a forward pass of its own.
LEAST_SHARED = 32


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """What a model makes of a continuation.

    Attributes:
        values: (token), natural logarithms in float32 on the CPU.
        greedy: Whether each token is the likeliest one in its place.
    """

    values: Float[Tensor, " token"]
    greedy: bool


@dataclasses.dataclass
class _Read:
    """A sequence to read, and the places whose predictions are wanted: (first place, targets, which pair)."""

    tokens: NDArray[np.int64]
    wanted: list[tuple[int, Tokens, int]]

    @property
    def sharable(self) -> int:
        """How many tokens may come from the cache: the first wanted prediction needs the token that it follows."""
        return min(first for first, _, _ in self.wanted)


@torch.inference_mode()
def continuation_likelihoods(
    model: CausalNetwork, pairs: Sequence[tuple[Tokens, Tokens]], *, max_batch_tokens: int = 4096
) -> list[Likelihoods]:
    """Return how probable the model finds each continuation after its context.

    Args:
        model: The model.
        pairs: Token ids of context and continuation, together at most one more than the model has positions. After an
            empty context the first token of the continuation is not counted: nothing predicts it.
        max_batch_tokens: About how many tokens one forward pass takes.

    Raises:
        UserError: A token is beyond the model's vocabulary.
    """
    check_tokens(model, [[*context, *continuation] for context, continuation in pairs])
    out = [Likelihoods(torch.zeros(0), True) for _ in pairs]
    reads = _reads(pairs)
    rows = (
        _packed(model, reads, max_batch_tokens)
        if _sees_as_told(model)
        else _padded(model, reads, max_batch_tokens)
    )
    for hidden, targets, owners in rows:
        found, likeliest = predictions(model, hidden, torch.tensor(targets, device=model.device))
        begin = 0
        for count, index in owners:
            part = slice(begin, begin + count)
            out[index] = Likelihoods(found[part].clone(), bool(likeliest[part].all()))
            begin += count
    return out


def _reads(pairs: Sequence[tuple[Tokens, Tokens]]) -> list[_Read]:
    """Return the distinct sequences in the order of their tokens, so that alike ones are neighbours."""
    reads: dict[tuple[int, ...], _Read] = {}
    for index, (context, continuation) in enumerate(pairs):
        before, after = (context, continuation) if len(context) else (continuation[:1], continuation[1:])
        if not len(after):
            continue
        key = (*before, *after[:-1])
        read = reads.setdefault(key, _Read(np.array(key, np.int64), []))
        read.wanted.append((len(before) - 1, after, index))
    return [reads[key] for key in sorted(reads)]


_Found = tuple[Tensor, list[int], list[tuple[int, int]]]  # hidden states, targets, (how many, which pair)


def _sees_as_told(model: CausalNetwork) -> bool:
    """Say whether a model takes the keys that each token sees (`visible`), and reads as a causal one without."""
    return isinstance(model, Decoder)


def _can_share_cache(model: Decoder) -> bool:
    """Say whether a cached beginning serves rows whose tokens do not follow it one by one.

    It does where positions enter by the tokens' own rotation or embedding alone: a bias or a window would count the
    keys of a cache in their order.
    """
    plain = type(model.positions).bias is Positions.bias and not model.config.sliding_window
    return plain and type(model.make_cache(1, 1)) is KVCache


def _padded(model: CausalNetwork, reads: Sequence[_Read], max_tokens: int) -> Iterator[_Found]:
    """Yield the hidden states of each batch, one sequence a row, padded at the end, where no token sees it."""
    by_length = sorted(reads, key=lambda read: len(read.tokens))
    for batch in batches(by_length, lambda read: len(read.tokens), max_tokens):
        longest = len(batch[-1].tokens)
        ids = np.zeros((len(batch), longest), np.int64)
        for row, read in zip(ids, batch, strict=True):
            row[: len(read.tokens)] = read.tokens
        hidden = model.hidden(torch.from_numpy(ids).to(model.device))
        places = [
            (row * longest + first, targets, index)
            for row, read in enumerate(batch)
            for first, targets, index in read.wanted
        ]
        rows = [place + i for place, targets, _ in places for i in range(len(targets))]
        yield (
            hidden.flatten(0, 1)[torch.tensor(rows, device=model.device)],
            [target for _, targets, _ in places for target in targets],
            [(len(targets), index) for _, targets, index in places],
        )


class _Row:
    """Sequences in one row, as a tree: each token once, though several sequences begin with it.

    Args:
        base: How many tokens of each are in the cache.
    """

    def __init__(self, base: int) -> None:
        self.base = base
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.path: list[int] = []  # the places in the row of the last sequence's tokens from `base` on
        self.rows: list[int] = []
        self.targets: list[int] = []
        self.owners: list[tuple[int, int]] = []

    def add(self, read: _Read, shared: int) -> None:
        """Add a sequence that has `shared` tokens in common with the one before."""
        self.path = self.path[: max(0, shared - self.base)]
        for token in read.tokens[self.base + len(self.path) :].tolist():
            self.parents.append(self.path[-1] if self.path else -1)
            self.path.append(len(self.ids))
            self.ids.append(token)
        for first, targets, index in read.wanted:
            self.rows += self.path[first - self.base : first - self.base + len(targets)]
            self.targets += targets
            self.owners.append((len(targets), index))

    def visible(self) -> Bool[Tensor, "1 1 position key"]:
        """Return which keys each token sees: those in the cache, its ancestors and itself."""
        count = len(self.ids)
        seen = np.zeros((count, self.base + count), bool)
        seen[:, : self.base] = True
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                seen[place] = seen[parent]
            seen[place, self.base + place] = True
        return torch.from_numpy(seen)[None, None]

    def positions(self) -> Int[Tensor, "1 position"]:
        """Return the place of each token in its own sequence."""
        out = np.zeros(len(self.ids), np.int64)
        for place, parent in enumerate(self.parents):
            out[place] = self.base if parent < 0 else out[parent] + 1
        return torch.from_numpy(out)[None]


def _packed(model: CausalNetwork, reads: Sequence[_Read], max_tokens: int) -> Iterator[_Found]:
    """Yield the hidden states of each row of sequences read as a tree."""
    assert isinstance(model, Decoder)
    size = min(max_tokens, ROW_ON_CPU) if model.device.type == "cpu" else max_tokens
    shared = [0] + [_common(one.tokens, two.tokens) for one, two in itertools.pairwise(reads)]
    longest = max((len(read.tokens) for read in reads), default=0)
    cache = model.make_cache(1, longest + max(size, longest)) if _can_share_cache(model) else None
    held = 0
    start = 0
    while start < len(reads):
        held = min(held, shared[start], reads[start].sharable)
        stop = _end_of_row(reads, shared, start, held, size)
        if cache is not None:
            cache.crop(held)
            if stop < len(reads):  # what the row after this one begins with, too
                common = min(
                    *shared[start + 1 : stop + 1], *(read.sharable for read in reads[start : stop + 1])
                )
                if common - held >= LEAST_SHARED:
                    ids = torch.from_numpy(reads[start].tokens[held:common])[None]
                    model.hidden(ids.to(model.device), cache=cache)
                    held = common
                    stop = _end_of_row(reads, shared, start, held, size)
        row = _Row(held)
        for index in range(start, stop):
            row.add(reads[index], shared[index] if index > start else 0)
        hidden = model.hidden(
            torch.tensor([row.ids], device=model.device),
            cache=cache if held else None,
            positions=row.positions().to(model.device),
            visible=row.visible().to(model.device),
        )
        yield hidden[0][torch.tensor(row.rows, device=model.device)], row.targets, row.owners
        start = stop


def _end_of_row(reads: Sequence[_Read], shared: Sequence[int], start: int, base: int, size: int) -> int:
    """Return where the row that begins with `start` ends: it holds about `size` tokens, and all begin with the base."""
    count, stop = len(reads[start].tokens) - base, start + 1
    while stop < len(reads) and min(shared[stop], reads[stop].sharable) >= base:
        count += len(reads[stop].tokens) - shared[stop]
        if count > size:
            break
        stop += 1
    return stop


def _common(one: NDArray[np.int64], two: NDArray[np.int64]) -> int:
    """Return how many tokens two sequences have in common from their beginning on."""
    length = min(len(one), len(two))
    differ = np.flatnonzero(one[:length] != two[:length])
    return int(differ[0]) if len(differ) else length


def predictions(
    model: GenerativeNetwork, hidden: Float[Tensor, "place hidden"], targets: Int[Tensor, " place"]
) -> tuple[Float[Tensor, " place"], Bool[Tensor, " place"]]:
    """Return the log-probability of each target, and whether it is the likeliest token."""
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    found, likeliest = [], []
    for part, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model.logits(part).float()
        found.append(-F.cross_entropy(logits, target, reduction="none").cpu())
        likeliest.append((logits.argmax(-1) == target).cpu())
    return torch.cat(found), torch.cat(likeliest)
