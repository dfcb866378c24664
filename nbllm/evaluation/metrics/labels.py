"""What metrics of labels have in common: a predicted and an expected one, and the weight of the example."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.config import check_choice
from nbllm.core.errors import DataError, UserError
from nbllm.core.quantities import counted
from nbllm.evaluation.columns import Array, Columns, Row
from nbllm.evaluation.metrics.base import PredictionMetric, quotient
from nbllm.evaluation.metrics.inputs import LABEL

Label = int | str
INPUTS = MappingProxyType({"predictions": LABEL, "references": LABEL})
AVERAGES = ("binary", "micro", "macro", "weighted")


def weighted(rows: list[Row], sample_weight: Sequence[float] | None) -> list[Row]:
    """Return rows with the weights of their examples.

    Raises:
        DataError: There are not as many weights as examples, or one is negative.
    """
    if sample_weight is None:
        return rows
    weights = [float(weight) for weight in sample_weight]
    if len(weights) != len(rows):
        raise DataError(f"There are {counted(len(weights), 'weights')} for {counted(len(rows), 'examples')}.")
    for index, weight in enumerate(weights):
        if not weight >= 0:
            raise DataError(f"sample_weight[{index}] is {weight}: a weight is 0 or more.")
    return [{**row, "weight": weight} for row, weight in zip(rows, weights, strict=True)]


def weights_of(columns: Columns, num_rows: int) -> Array:
    """Return the weight of each example, (row): 1 where none were given."""
    found: Array | None = columns.get("weight")
    return np.ones(num_rows) if found is None else found


class WeightedMetric(PredictionMetric):
    """A metric whose examples may have weights; its `row` makes an example's columns without."""

    def rows(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        *,
        sample_weight: Sequence[float] | None = None,
    ) -> list[Row]:
        """Return the columns of each example.

        Args:
            predictions: (row).
            references: (row).
            sample_weight: (row), how much each example counts.
        """
        return weighted(super().rows(predictions, references), sample_weight)


class LabelMetric(WeightedMetric):
    """A metric of predicted and expected labels: whole numbers or texts."""

    inputs = INPUTS

    def row(self, prediction: Label, reference: Label) -> Row:
        """Return the labels of one example, and whether they are the same."""
        return {"predicted": prediction, "expected": reference, "correct": float(prediction == reference)}


def counts_of_classes(counts: Array, codes: NDArray[np.intp], num_classes: int) -> Array:
    """Return how often each class stands in each of many resamples: (resample, class).

    Args:
        counts: (resample, row), how much each row counts.
        codes: (row), the class of each row; -1 for none of them.
        num_classes: How many there are.
    """
    out = np.zeros((len(counts), num_classes))
    order = np.argsort(codes, kind="stable")
    order = order[codes[order] >= 0]
    present, starts = np.unique(codes[order], return_index=True)
    if len(present):
        out[:, present] = np.add.reduceat(counts[:, order], starts, axis=1)
    return out


def coded(columns: Columns) -> tuple[list[Any], NDArray[np.intp], NDArray[np.intp]]:
    """Return the labels that there are, and each row's predicted and expected one as an index of them."""
    predicted, expected = columns["predicted"].tolist(), columns["expected"].tolist()
    known = sorted(set(predicted) | set(expected))
    place = {label: index for index, label in enumerate(known)}
    return (
        known,
        np.array([place[label] for label in predicted], np.intp),
        np.array([place[label] for label in expected], np.intp),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassMetric(LabelMetric):
    """A figure of each class, computed of how often it is predicted, expected and both; and their average.

    Args:
        labels: The classes that are averaged over; `None`: all that are predicted or expected.
        pos_label: The class that counts, of "binary".
        average: "binary" (of two classes, the figure of `pos_label`), "micro" (all classes' counts together), "macro"
            (the mean over classes), "weighted" (the mean over examples of their expected class's figure), or `None`,
            which returns each class's figure.
        zero_division: The figure of a class for which there is nothing to divide by.
    """

    columns = ("predicted", "expected")
    better = "higher"
    scale = (0.0, 1.0)

    labels: tuple[Label, ...] | None = None
    pos_label: Label = 1
    average: str | None = "binary"
    zero_division: float = 0.0

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
        if self.average is not None:
            check_choice(self, "average", AVERAGES)
        if self.zero_division not in (0, 1):
            raise UserError(f"zero_division must be 0 or 1, not {self.zero_division!r}.", where=self.name)

    @abc.abstractmethod
    def of_counts(self, both: Array, predicted: Array, expected: Array) -> tuple[Array, Array]:
        """Return numerator and denominator of each class's figure: (..., class).

        Args:
            both: The weight of the examples for which the class is predicted and expected.
            predicted: For which it is predicted.
            expected: For which it is expected.
        """

    def compute(self, columns: Columns) -> float:
        """Return the average over all rows."""
        return float(self.resample(columns, np.ones((1, len(columns["predicted"]))))[0])

    def resample(self, columns: Columns, counts: Array) -> Array:
        """Return the average of each resample: (resample)."""
        return self._average(*self._counts(columns, counts))

    def _counts(self, columns: Columns, counts: Array) -> tuple[Array, Array, Array]:
        """Return how often each class is predicted and expected, predicted, and expected: each (resample, class)."""
        known, predicted, expected = coded(columns)
        chosen = self._chosen(known)
        numbers = {label: number for number, label in enumerate(chosen)}
        number = np.array([numbers.get(label, -1) for label in known], np.intp)
        predicted, expected = number[predicted], number[expected]
        both = np.where(predicted == expected, predicted, -1)
        counts = counts * weights_of(columns, len(predicted))
        one, two, three = (
            counts_of_classes(counts, each, len(chosen)) for each in (both, predicted, expected)
        )
        return one, two, three

    def _chosen(self, known: Sequence[Any]) -> Sequence[Any]:
        """Return the classes that are averaged over."""
        if self.average != "binary":
            return known if self.labels is None else self.labels
        if len(known) > 2:
            raise UserError(
                f"There are {len(known)} classes, and average is 'binary'.",
                where=self.name,
                hint="Give average='macro', 'micro' or 'weighted'.",
            )
        if self.pos_label not in known and len(known) == 2:
            raise UserError(
                f"pos_label is {self.pos_label!r}, which is neither of the classes {known[0]!r} and {known[1]!r}.",
                where=self.name,
                hint=f"Give pos_label={known[1]!r}, or another average.",
            )
        return [self.pos_label]

    def _average(self, both: Array, predicted: Array, expected: Array) -> Array:
        """Return the average of each set of counts: (resample)."""
        assert self.average is not None, "a figure of each class is no single figure"
        if self.average == "micro":
            counts = (each.sum(axis=1, keepdims=True) for each in (both, predicted, expected))
            return self._ratio(*self.of_counts(*counts))[:, 0]
        each = self._ratio(*self.of_counts(both, predicted, expected))
        if self.average == "weighted":
            weights = expected
        elif self.labels is not None or self.average == "binary":
            weights = np.ones_like(expected)
        else:
            weights = (predicted + expected > 0).astype(np.float64)  # a class may be missing in a resample
        return quotient((weights * each).sum(axis=1), weights.sum(axis=1), 0.0)

    def _ratio(self, numerators: Array, denominators: Array) -> Array:
        return quotient(numerators, denominators, float(self.zero_division))

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return the average, or the figure of each class in the order of the labels."""
        if self.average is not None:
            return {self.key: self.compute(columns)}
        found = self._counts(columns, np.ones((1, len(columns["predicted"]))))
        return {self.key: self._ratio(*self.of_counts(*found))[0].tolist()}
