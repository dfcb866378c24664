"""The settings of a LoRA adapter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from nbllm.core.config import PlainConfig, check_positive
from nbllm.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(PlainConfig):
    """Low-rank adaptation: an update of low rank beside the weights of some linear layers, which stay as they are.

    Args:
        rank: Of the update of each layer.
        alpha: The update is multiplied by alpha / rank.
        targets: Which layers have one: their names in the model ("query", "key", "value", "output", "gate", "up",
            "down"), or longer ends of them ("blocks.0.attention.query").
        rank_stabilized: Whether it is multiplied by alpha / sqrt(rank) instead.

    Raises:
        UserError: A value is out of range.

    Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rank-stabilized).
    """

    rank: int = 8
    alpha: float | int = 16
    targets: tuple[str, ...] | list[str] | str = ("query", "value")
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        """Check every range."""
        check_positive(self, "rank")
        number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if not number or not 0 < self.alpha < math.inf:
            raise UserError(f"alpha must be a finite number above 0, not {self.alpha!r}.", where="LoRA")
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        if (
            not targets
            or not isinstance(targets, (list, tuple))
            or not all(isinstance(target, str) for target in targets)
        ):
            raise UserError(f"targets must be names of layers, not {self.targets!r}.", where="LoRA")
        object.__setattr__(self, "targets", tuple(targets))

    def scale(self) -> float:
        """Return what the update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    @classmethod
    def of(cls, value: LoRA | Mapping[str, Any] | None) -> LoRA | None:
        """Return the settings that a value is or holds, such as `to_dict` returned; None for None.

        Raises:
            UserError: It is something else.
        """
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise UserError(f"adapter must be settings such as nb.LoRA(rank=8), not {value!r}.")
        return cls.from_dict(value)
