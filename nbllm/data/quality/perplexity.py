"""Filters by perplexity.

Text that a model of good text finds improbable is broken; text that it finds too probable is repetitive.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.model_digest import model_digest
from nbllm.data.pipeline.step import STEPS, Filter, Rule
from nbllm.data.quality.ngram_model import NgramModel

if TYPE_CHECKING:
    import torch


class Scorer(Protocol):
    """What scores texts: `nbllm.LM`."""

    model: torch.nn.Module

    def score(self, texts: Sequence[str]) -> Sequence[Any]:
        """Return an `nbllm.lm.Score` for each text."""
        ...


def _check(least: float, most: float) -> None:
    if not 0 <= least <= most:
        raise UserError(
            f"min_perplexity is {least!r} and max_perplexity {most!r}; the first is 0 or more, and at most the second."
        )


def _rules(signal: str, least: float, most: float, unit: str) -> tuple[Rule, ...]:
    return (
        Rule("perplexity, at least", signal, "at least", least, unit),
        Rule("perplexity, at most", signal, "at most", most, unit),
    )


@STEPS.register("ngram-perplexity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NgramPerplexity(Filter):
    """Keeps documents whose perplexity by a model of n-grams lies between two limits; those without words, too.

    Attributes:
        model: What `train_ngram_model` returned.
        max_perplexity: By word, at most.
        min_perplexity: By word, at least.
    """

    model: NgramModel = dataclasses.field(repr=False)
    max_perplexity: float = math.inf
    min_perplexity: float = 0.0

    def __post_init__(self) -> None:
        _check(self.min_perplexity, self.max_perplexity)

    def describe(self) -> dict[str, Any]:
        """Return name and limits, and a digest of the model."""
        return super().describe() | {"model": self.model.fingerprint}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it demands."""
        return _rules("perplexity/ngrams", self.min_perplexity, self.max_perplexity, "by word")

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return the perplexity of each document; NaN of one without words."""
        return {"perplexity/ngrams": self.model.perplexity(texts)}


@STEPS.register("model-perplexity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPerplexity(Filter):
    """Keeps documents whose perplexity by a language model lies between two limits; those without tokens, too.

    Documents are scored one at a time, so that what one is given does not depend on the others.

    Attributes:
        lm: An `nbllm.LM` that scores text.
        max_perplexity: By token, at most.
        min_perplexity: By token, at least.
    """

    expensive = True

    lm: Scorer = dataclasses.field(repr=False)
    max_perplexity: float = math.inf
    min_perplexity: float = 0.0

    def __post_init__(self) -> None:
        _check(self.min_perplexity, self.max_perplexity)

    def describe(self) -> dict[str, Any]:
        """Return name and limits, and a digest of the model's weights."""
        return super().describe() | {"lm": model_digest(self.lm.model)}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it demands."""
        return _rules("perplexity/model", self.min_perplexity, self.max_perplexity, "by token")

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return perplexity and bits per byte of each document; NaN where nothing is predicted."""
        perplexities, bits = np.full(texts.num_documents, np.nan), np.full(texts.num_documents, np.nan)
        for document in range(texts.num_documents):
            text = texts.__getitem__(document).decode(errors="replace")
            if not text:
                continue
            (score,) = self.lm.score([text])
            if score.num_tokens:
                mean = -score.log_probability / score.num_tokens
                perplexities[document] = math.exp(min(mean, 700))
                bits[document] = score.bits_per_byte
        return {"perplexity/model": perplexities, "perplexity/bits_per_byte": bits}
