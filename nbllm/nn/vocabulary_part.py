"""A part of the vocabulary: the rows of embedding and head that one of several processes holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class VocabularyPart(NamedTuple):
    """Which tokens of the vocabulary a process has the rows of, and the processes that have the others.

    Attributes:
        first: The first token.
        size: How many tokens.
        group: The processes that hold the whole vocabulary together.
    """

    first: int
    size: int
    group: ProcessGroup

    def rows_of(
        self, tokens: Int[Tensor, " *shape"]
    ) -> tuple[Int[Tensor, " *shape"], Bool[Tensor, " *shape"]]:
        """Return the row of each token in this part, 0 for those of other parts, and which tokens are of this part."""
        rows = tokens - self.first
        inside = (rows >= 0) & (rows < self.size)
        return rows.masked_fill(~inside, 0), inside

    def maximum(self, x: Tensor) -> Tensor:
        """Replace x by the greatest of all processes, element by element, and return it."""
        torch.distributed.all_reduce(x, torch.distributed.ReduceOp.MAX, group=self.group)
        return x

    def sum(self, x: Tensor) -> Tensor:
        """Replace x by its sum over all processes, and return it."""
        torch.distributed.all_reduce(x, group=self.group)
        return x

    def logsumexp(self, logits: Float[Tensor, "token part"]) -> Float[Tensor, " token"]:
        """Return the logarithm of the sum of exp(logits) over the whole vocabulary."""
        top = self.maximum(logits.amax(-1))
        return self.sum((logits - top[:, None]).exp_().sum(-1)).log_().add_(top)

    def pick(
        self, logits: Float[Tensor, "token part"], tokens: Int[Tensor, " token"]
    ) -> Float[Tensor, " token"]:
        """Return the element of each row that belongs to its token, whichever process has it."""
        rows, inside = self.rows_of(tokens)
        return self.sum(logits.gather(1, rows[:, None])[:, 0].masked_fill_(~inside, 0.0))


def split_vocabulary(weight: Tensor) -> VocabularyPart | None:
    """Return which rows this process has of a matrix with a row for each token; None: all of them.

    Args:
        weight: (vocabulary, ...), a plain tensor, or a DTensor whose rows are split over the processes of a mesh.
    """
    if type(weight) is Tensor or not hasattr(weight, "device_mesh"):
        return None
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(weight, DTensor)
    mesh = weight.device_mesh
    assert mesh.ndim == 1, "parameters are gathered over the data ranks before they are read"
    if not weight.placements[0].is_shard(0):
        return None
    size, first = Shard.local_shard_size_and_offset(weight.shape[0], mesh.size(), mesh.get_local_rank())
    return VocabularyPart(int(first), int(size), mesh.get_group())


def rows_here(weight: Tensor) -> Tensor:
    """Return the rows that this process has of a matrix, as a plain tensor; differentiable."""
    if type(weight) is Tensor or not hasattr(weight, "to_local"):
        return weight
    out: Tensor = weight.to_local()
    return out
