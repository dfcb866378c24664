"""What every evaluation is told before it starts; what concerns one task alone is a setting of that task."""

from __future__ import annotations

import dataclasses

from nbllm.core.config import PlainConfig, check_positive
from nbllm.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(PlainConfig):
    """Configuration of `evaluate`.

    Args:
        limit: Measure only the first `limit` examples of each data set; `None` is all.
        confidence: Of the intervals, between 0 and 1.
        resamples: Bootstrap resamples of the examples, for the intervals.
        seed: Of the bootstrap.
        batch_tokens: About how many tokens one forward pass takes; bounds memory, changes no figure.
    """

    limit: int | None = None
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        """Check every range."""
        check_positive(self, "resamples", "batch_tokens")
        if self.limit is not None:
            check_positive(self, "limit")
        if not 0 < self.confidence < 1:
            raise UserError(
                f"confidence must be between 0 and 1, not {self.confidence!r}.", where="EvaluationConfig"
            )
