"""What every evaluation is told before it starts; what concerns one task alone is a setting of that task."""

from __future__ import annotations

import dataclasses

from nbllm.core.config import PlainConfig, check_choice, check_positive
from nbllm.core.errors import UserError

TRUNCATIONS = ("shots", "left", "error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(PlainConfig):
    """Configuration of `evaluate`.

    Args:
        limit: Measure only `limit` examples of each data set: the first ones, or where they are clustered (by subject,
            by document), as many of each cluster as of the others; `None` is all.
        confidence: Of the intervals, between 0 and 1.
        resamples: Bootstrap resamples of the examples, for the intervals.
        seed: Of the bootstrap.
        batch_tokens: About how many tokens one forward pass takes; bounds memory, changes no figure.
        truncation: What becomes of a prompt that is longer than the context. "shots": its worked examples are left out,
            the last one first, and where that is not enough its beginning is cut off; "left": its beginning is cut off,
            as by lm_eval; "error": it is refused.
        reuse: Whether answers that this model gave before are read from the disk, and new ones kept there. False
            computes all anew.
    """

    limit: int | None = None
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    batch_tokens: int = 4096
    truncation: str = "shots"
    reuse: bool = True

    def __post_init__(self) -> None:
        """Check every range."""
        check_positive(self, "resamples", "batch_tokens")
        check_choice(self, "truncation", TRUNCATIONS)
        if self.limit is not None:
            check_positive(self, "limit")
        if not 0 < self.confidence < 1:
            raise UserError(
                f"confidence must be between 0 and 1, not {self.confidence!r}.", where="EvaluationConfig"
            )
