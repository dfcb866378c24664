"""A linear classifier of documents on hashed n-grams of words, trained in seconds.

It tells text one wants from text one does not: reference works from the web at large, instructive pages from others.

Source: Joulin et al. 2016, "Bag of tricks for efficient text classification", arXiv:1607.01759 (fastText), of which
this is the linear model without a hidden layer; used for quality in Brown et al. 2020, arXiv:2005.14165, appendix A,
and Li et al. 2024, "DataComp-LM", arXiv:2406.11794. AdaGrad: Duchi et al. 2011.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.html import fragment, table
from nbllm.core.io import atomic_file
from nbllm.core.progress import progress
from nbllm.core.proportions import Interval, wilson
from nbllm.core.text_table import text_table
from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import STEPS, Filter, Rule
from nbllm.data.quality.characters import character_table
from nbllm.data.quality.inputs import read_texts
from nbllm.data.quality.limits import MOST_UNITS

CONFIDENCE = 0.95
SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclasses.dataclass(frozen=True)
class Measured:
    """How well documents that were not trained on are told apart at a threshold.

    Attributes:
        threshold: What the probability of a document that is kept is, at least.
        precision: Share of kept documents that are wanted; NaN where none is kept.
        precision_interval: Wilson's 95 % interval.
        recall: Share of wanted documents that are kept.
        recall_interval: Wilson's 95 % interval.
    """

    threshold: float
    precision: float
    precision_interval: Interval
    recall: float
    recall_interval: Interval


@dataclasses.dataclass(frozen=True, eq=False)
class QualityClassifier:
    """What `train_classifier` returns.

    Attributes:
        parameters: float32 (buckets + 1,), the weights and, last, the bias.
        order: Words of the longest n-gram.
        held_out_scores: float32 (held-out documents,), their probabilities.
        held_out_targets: bool (held-out documents,), whether each is wanted.
    """

    parameters: NDArray[np.float32]
    order: int
    held_out_scores: NDArray[np.float32]
    held_out_targets: NDArray[np.bool_]

    def score(self, texts: Texts) -> NDArray[np.float64]:
        """Return (documents,) the probability that each is wanted; of one without words, that of the bias."""
        from nbllm.data.kernels import word_features as kernels

        result = np.empty(texts.num_documents)
        space = kernels.Space(self.order, self.parameters.size - 1, MOST_UNITS)
        kernels.classify(texts, character_table(), space, self.parameters, result)
        return result

    def measure(self, threshold: float = 0.5) -> Measured:
        """Return precision and recall on the held-out documents, with intervals."""
        kept = self.held_out_scores >= threshold
        right = int(np.sum(kept & self.held_out_targets))
        both = int(kept.sum()), int(self.held_out_targets.sum())
        (precision, precision_interval), (recall, recall_interval) = (
            _share(right, number) for number in both
        )
        return Measured(threshold, precision, precision_interval, recall, recall_interval)

    @property
    def fingerprint(self) -> str:
        """Digest of what it computes."""
        return hashlib.sha256(self.parameters.tobytes() + bytes([self.order])).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a safetensors file."""
        from safetensors.numpy import save_file

        with atomic_file(Path(path)) as file:
            save_file(
                {
                    "parameters": self.parameters,
                    "order": np.array([self.order], np.int64),
                    "held_out_scores": self.held_out_scores,
                    "held_out_targets": self.held_out_targets,
                },
                file,
                {"format": "nbllm quality classifier"},
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QualityClassifier:
        """Read what `save` wrote.

        Raises:
            UserError: the file is not such a one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            held = load_file(path)
            parameters, (order,) = held["parameters"], held["order"].tolist()
            loaded = cls(parameters, order, held["held_out_scores"], held["held_out_targets"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"This is no quality classifier: {error}.", where=path) from error
        buckets = parameters.size - 1
        if (
            parameters.dtype != np.float32
            or parameters.ndim != 1
            or not _is_power(buckets)
            or not 1 <= order <= 5
        ):
            raise UserError("The parameters of this quality classifier are damaged.", where=path)
        return loaded

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = []
        for measured in map(self.measure, SHOWN):
            precision, recall = (
                f"{value:.3f} [{low:.3f}, {high:.3f}]"
                for value, (low, high) in (
                    (measured.precision, measured.precision_interval),
                    (measured.recall, measured.recall_interval),
                )
            )
            rows.append((f"{measured.threshold:g}", precision, recall))
        return rows

    def _title(self) -> str:
        return f"quality classifier, measured on {self.held_out_scores.size:,} held-out documents"

    def __repr__(self) -> str:
        return self._title() + "\n" + text_table([("threshold", "precision", "recall"), *self._rows()])

    def _repr_html_(self) -> str:
        shown = table(self._rows(), ("threshold", "precision, 95 %", "recall, 95 %"), caption=self._title())
        return fragment(shown)


def _share(part: int, whole: int) -> tuple[float, Interval]:
    return (part / whole, wilson(part, whole, CONFIDENCE)) if whole else (float("nan"), (0.0, 1.0))


def _is_power(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def train_classifier(
    wanted: Any,
    unwanted: Any,
    *,
    order: int = 2,
    buckets: int = 1 << 18,
    epochs: int = 5,
    held_out: float = 0.2,
    seed: int = 0,
) -> QualityClassifier:
    """Train a classifier that tells two sets of documents apart, and measure it on documents held out.

    Args:
        wanted: Documents as one wants them: a list, or anything that `nbllm.data.load` takes.
        unwanted: Documents as one does not want them.
        order: Words of the longest n-gram, 1 to 5.
        buckets: How many features n-grams are hashed into, a power of two.
        epochs: How often each document is seen.
        held_out: Share of the documents of each set that are measured on, not trained on.
        seed: Which are held out, and the order.

    Returns:
        The classifier; it shows precision and recall, with intervals.

    Raises:
        UserError: a set has fewer than two documents, or a setting is out of range.
    """
    from nbllm.data.kernels import word_features as kernels

    if not 1 <= order <= 5 or not _is_power(buckets) or epochs < 1 or not 0 < held_out < 1:
        raise UserError(
            "order is 1 to 5, buckets a power of two, epochs at least 1, held_out a share between 0 and 1.",
            where=f"order={order}, buckets={buckets}, epochs={epochs}, held_out={held_out}",
        )
    sets = (read_texts(unwanted, "unwanted documents"), read_texts(wanted, "wanted documents"))
    rng = np.random.default_rng(seed)
    parts = []
    for texts in sets:
        if texts.num_documents < 2:
            raise UserError("A set has one document; one is needed to train on, and one to measure on.")
        mixed = rng.permutation(texts.num_documents)
        cut = min(max(round(held_out * mixed.size), 1), mixed.size - 1)
        parts.append((mixed[cut:], mixed[:cut]))
    both = _joined(*sets)
    targets = np.repeat(np.array([0, 1], np.float32), [texts.num_documents for texts in sets])
    behind = sets[0].num_documents
    train, measured = (np.concatenate([parts[0][i], parts[1][i] + behind]) for i in (0, 1))
    parameters, squares = np.zeros(buckets + 1, np.float32), np.zeros(buckets + 1, np.float32)
    space = kernels.Space(order, buckets, MOST_UNITS)
    with progress("training the classifier", epochs, " epochs") as bar:
        for _ in range(epochs):
            kernels.train_pass(
                both, character_table(), space, rng.permutation(train), targets, parameters, squares, 0.5
            )
            bar.update(1)
    scores = np.empty(both.num_documents)
    kernels.classify(both, character_table(), space, parameters, scores)
    return QualityClassifier(parameters, order, scores[measured].astype(np.float32), targets[measured] > 0.5)


def _joined(first: Texts, second: Texts) -> Texts:
    """Return the documents of both."""
    import pyarrow as pa

    documents = [texts[i] for texts in (first, second) for i in range(texts.num_documents)]
    return Texts.of(pa.array(documents, pa.large_binary()))


@STEPS.register("quality-classifier")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classified(Filter):
    """Keeps documents that a classifier finds wanted.

    Attributes:
        classifier: What `train_classifier` returned.
        threshold: Probability, at least.
    """

    classifier: QualityClassifier = dataclasses.field(repr=False)
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold!r}; a probability lies between 0 and 1.")

    def describe(self) -> dict[str, Any]:
        """Return name and threshold, and a digest of the classifier."""
        return super().describe() | {"classifier": self.classifier.fingerprint}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it demands."""
        return (
            Rule(
                "probability of being wanted, at least", "classifier/probability", "at least", self.threshold
            ),
        )

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return the probability of each document."""
        return {"classifier/probability": self.classifier.score(texts)}
