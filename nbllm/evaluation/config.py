"""What an evaluation is told before it starts."""

from __future__ import annotations

import dataclasses

from nbllm.core.config import Config, check_positive
from nbllm.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """Configuration of `evaluate`.

    Args:
        stride: Tokens by which the window moves over a document longer than the context; `None` is half the
            context. Smaller gives every token more context and takes longer.
        max_documents: Measure only the first so many documents; `None` is all.
        confidence: Of the intervals, between 0 and 1.
        resamples: Bootstrap resamples of the documents, for the intervals.
        seed: Of the bootstrap.
        batch_tokens: About how many tokens one forward pass takes; bounds memory, changes no figure.
    """

    stride: int | None = None
    max_documents: int | None = None
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        """Check every range."""
        check_positive(self, "resamples", "batch_tokens")
        for name in ("stride", "max_documents"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if not 0 < self.confidence < 1:
            raise UserError(
                f"confidence must be between 0 and 1, not {self.confidence!r}.", where="EvaluationConfig"
            )
