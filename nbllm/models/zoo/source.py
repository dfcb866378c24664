"""What every source of a published model is."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Where a model can be had.

    Attributes:
        sha256: Of what is downloaded, or of the largest file of it: the weights.
        num_bytes: Of the same.
        weights: The dtype of the weights.
    """

    sha256: str
    num_bytes: int
    weights: str

    @property
    @abc.abstractmethod
    def what(self) -> str:
        """What the source is called in a message."""

    @property
    @abc.abstractmethod
    def by_hand(self) -> str:
        """How to bring the model to a machine without a network."""

    @abc.abstractmethod
    def find(self) -> Path | None:
        """Return what `nbllm.load` opens, if it is here; quick, without network or checksum."""

    @abc.abstractmethod
    def fetch(self) -> Path:
        """Return what `nbllm.load` opens, its checksum verified, downloaded if it is not here or damaged.

        Raises:
            FetchError: The source cannot be reached, lacks the model, or what came is not what is pinned.
            CacheError: The cache cannot be written.
        """
