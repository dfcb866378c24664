"""No positions: what tells the order of tokens is the mask or the recurrence alone."""

from __future__ import annotations

from nbllm.nn.hooks import keep_methods
from nbllm.nn.positions.base import Positions


@keep_methods
class NoPositions(Positions):
    """Adds nothing; there is no limit.

    A causal decoder can count without positions, for each token sees as many others as there are before it.

    Source: Kazemnejad et al. 2023, arXiv:2305.19466 ("NoPE").
    """

    @property
    def label(self) -> str:
        """What it is, in words."""
        return "no positions"
