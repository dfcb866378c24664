"""What a model runner is, and what it is given to compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from nbllm.inference.sequence import Sequence

if TYPE_CHECKING:
    from nbllm.inference.workspace import Workspace
    from nbllm.models.network import GenerativeNetwork
    from nbllm.nn.cache import Cache


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Sequences that share a cache. Contexts of different lengths are padded on the left.

    The same object comes with every step until the sequences, or how they lie in the cache, are others.

    Attributes:
        sequences: A row of the cache each.
        padding: (row,) on the CPU, how many of the cache's first columns are padding.
        cache: What was read of them.
    """

    sequences: list[Sequence]
    padding: Int[Tensor, " row"]
    cache: Cache


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Tokens that are to be read next, as many of each sequence.

    Attributes:
        batch: Whose tokens they are.
        tokens: (row, token) ids. A context that is read into an empty cache is padded with 0. Else it is the newest
            token of each sequence, after which the draft tokens may come.
        draft: The draft tokens at the end of `tokens`; only where the batch has a single sequence.
    """

    batch: Batch
    tokens: list[list[int]]
    draft: list[int] = dataclasses.field(default_factory=list)

    @property
    def num_logits(self) -> int:
        """After how many of the last tokens the logits are wanted."""
        return 1 + len(self.draft)


class ModelRunner(Protocol):
    """Computes steps of one generation."""

    def run(self, step: Step) -> Float[Tensor, "row token vocabulary"]:
        """Read a step's tokens into its batch's cache.

        Returns:
            float32 logits of what follows each of the last `num_logits` tokens; they stand until the next call.
        """


MakeRunner = Callable[["GenerativeNetwork", "Workspace"], ModelRunner]  # called once a generation
