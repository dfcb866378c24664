"""The step that measures how toxic documents are, by a list of words and by a classifier."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.harm.phrases import Phrases, read_phrases
from nbllm.data.pipeline.step import STEPS, Filter, Rule, function_name
from nbllm.data.quality.classifier import QualityClassifier

Judge = Callable[[list[str]], Sequence[float]]  # texts -> how toxic each is, from 0 to 1

WORDS = Path(__file__).with_name("words.txt")
_AT_ONCE = 64  # texts that a classifier is given


@STEPS.register("toxicity")
@dataclasses.dataclass(frozen=True)
class Toxicity(Filter):
    """Measures how toxic documents are; `nb.data.toxicity` makes one.

    Attributes:
        words: Toxic words and phrases.
        classifier: Says how toxic texts are.
        max_share: A document with a larger share of toxic words is dropped; None: none is.
        max_score: A document that the classifier finds more toxic is dropped; None: none is.
    """

    words: tuple[str, ...]
    classifier: QualityClassifier | Judge | None = dataclasses.field(default=None, repr=False)
    max_share: float | None = None
    max_score: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those whose threshold is given: without any, documents are only tagged."""
        limits = [
            ("share of toxic words", "toxicity/share", self.max_share),
            ("score of the classifier", "toxicity/score", self.max_score),
        ]
        return tuple(
            Rule(f"{name}, at most", signal, "at most", limit)
            for name, signal, limit in limits
            if limit is not None
        )

    def describe(self) -> dict[str, Any]:
        """Return the settings; of the words a digest, of the classifier where it is from."""
        digest = hashlib.sha256("\n".join(self.words).encode()).hexdigest()
        words = f"{len(self.words)} ({digest})"
        given = self.classifier
        classifier = given.fingerprint if isinstance(given, QualityClassifier) else function_name(given)
        return {**super().describe(), "words": words, "classifier": classifier}

    @functools.cached_property
    def _phrases(self) -> Phrases:
        return Phrases([self.words])

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return the toxic words of each document, their share of all, and the classifier's score.

        The score of a document without text is not defined.
        """
        counts, words = self._phrases.counts(texts)
        found: dict[str, NDArray[Any]] = {
            "toxicity/words": counts[:, 0],
            "toxicity/share": counts[:, 0] / np.maximum(words, 1),
        }
        if self.classifier is not None:
            found["toxicity/score"] = _scores(self.classifier, texts)
        return found


def _scores(classifier: QualityClassifier | Judge, texts: Texts) -> NDArray[np.float64]:
    scores = np.full(texts.num_documents, np.nan)
    numbers = [number for number in np.flatnonzero(texts.valid).tolist() if texts[number]]
    if isinstance(classifier, QualityClassifier):
        scores[numbers] = classifier.score(texts)[numbers]
        return scores
    for start in range(0, len(numbers), _AT_ONCE):
        some = numbers[start : start + _AT_ONCE]
        given = [cast("bytes", texts[number]).decode("utf-8", "replace") for number in some]
        try:
            made = np.asarray(classifier(given), np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"The classifier of toxicity failed: {error}.",
                hint="It is given a list of texts and must return a number for each.",
            ) from error
        if made.shape != (len(some),):
            raise UserError(
                f"The classifier of toxicity returned {made.shape} for {len(some)} texts.",
                hint="It is given a list of texts and must return a number for each.",
            )
        scores[some] = made
    return scores


def toxicity(
    words: str | os.PathLike[str] | Iterable[str] | None = None,
    *,
    classifier: QualityClassifier | Judge | None = None,
    max_share: float | None = None,
    max_score: float | None = None,
) -> Toxicity:
    """Make the step that measures toxicity. It tags documents; with a limit, it drops those above.

    Toxic words also stand in text that quotes, reports or reclaims them: `nb.data.harm_audit` shows whose text a limit
    removes.

    A classifier is trained in seconds on toxic and harmless text, or brought along:

    >>> trained = nb.data.train_classifier(toxic, harmless)
    >>> nb.data.toxicity(classifier=trained, max_score=0.9)
    >>> scorer = transformers.pipeline("text-classification", model=path, top_k=None)
    >>> nb.data.toxicity(classifier=lambda texts: [each[0]["score"] for each in scorer(texts)])

    Args:
        words: Toxic words and phrases, or a file with one a line; None: a small English list of our own. They are found
            as whole words in any case; in scripts without spaces, wherever their characters stand.
        classifier: One that `train_classifier` returned; or a function that is given a list of texts and returns how
            toxic each is: another classifier, or a language model that judges.
        max_share: Of toxic words among all words: 0 drops every document with one (as C4's rule does).
        max_score: Of the classifier.

    Raises:
        UserError: A limit is no number, or there is one for a classifier that is not there.
        DataError: The file cannot be read, or there is no word.
    """
    if not (classifier is None or callable(classifier) or isinstance(classifier, QualityClassifier)):
        raise UserError(f"classifier must be a function, not {type(classifier).__name__}.")
    for name, limit in (("max_share", max_share), ("max_score", max_score)):
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, int | float) or math.isnan(limit)
        ):
            raise UserError(f"{name} must be a number, not {limit!r}.")
    if max_score is not None and classifier is None:
        raise UserError(
            "max_score is the limit of a classifier, and there is none.", hint="classifier=function"
        )
    return Toxicity(read_phrases(WORDS if words is None else words), classifier, max_share, max_score)
