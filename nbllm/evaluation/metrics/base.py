"""The contract of a metric: a figure computed from columns with one row an example."""

from __future__ import annotations

import abc
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from nbllm.core.config import PlainConfig
from nbllm.core.registry import Registry
from nbllm.evaluation.columns import Array, Columns, Row, take
from nbllm.evaluation.metrics.inputs import TEXT, TEXTS, Input

METRICS: Registry[type[Metric]] = Registry("metric")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric(PlainConfig, abc.ABC):
    """A function from columns to one figure. Subclasses are registered in `METRICS`; their fields are settings.

    Attributes:
        name: The name it is registered by; comparisons find it by this.
        label: Its name in a report.
        unit: "" for none.
        note: How it is read, in a few words.
        better: "lower" or "higher"; "" where neither is better.
        scale: The lowest and highest value that it can have.
        columns: The columns that it reads.
        of_model: Whether it depends on the model, so that two models are compared by it.
        comparable_by: Columns that two models must agree in, row by row, for the figure to compare them: a figure
            per token compares only models that cut the text into as many tokens.
        resampled: Whether an interval is computed by resampling rows.
        strata: A column whose values are groups that are fixed, not a sample, as the subjects that a macro average
            runs over: rows are drawn within each. "" for none.
        package: The distribution that computes it, whose version stands in the signature.
        source: Where it is published.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    unit: ClassVar[str] = ""
    note: ClassVar[str] = ""
    better: ClassVar[Literal["lower", "higher", ""]]
    scale: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    columns: ClassVar[tuple[str, ...]]
    of_model: ClassVar[bool] = True
    comparable_by: ClassVar[tuple[str, ...]] = ()
    resampled: ClassVar[bool] = True
    strata: ClassVar[str] = ""
    package: ClassVar[str] = "nbllm"
    source: ClassVar[str] = ""

    def title(self, data: str) -> str:
        """Return the label with the name of the data, "" for none: "bits per byte on pydocs"."""
        return f"{self.label} on {data}" if data else self.label

    def conventions(self, columns: Columns | None = None) -> dict[str, object]:
        """Return by name what the figure depends on besides the rows; `None` where that is not known.

        Args:
            columns: The rows it is computed from, where there are any yet.
        """
        return self.to_dict()

    def signature(self, columns: Columns | None = None) -> str:
        """Return how the figure is made, in the manner of sacrebleu: "metric:ter|nrefs:1|...|version:2.6.0".

        Args:
            columns: The rows it is computed from, where there are any yet.

        Source: Post 2018, "A Call for Clarity in Reporting BLEU Scores", arXiv:1804.08771, section 4.
        """
        return signature_text(
            {
                "metric": self.name,
                **self.conventions(columns),
                "version": f"{self.package}-{version(self.package)}",
            }
        )

    @abc.abstractmethod
    def compute(self, columns: Columns) -> float:
        """Return the figure; not a number where there is none (nothing to divide by).

        Args:
            columns: By name, each (row).
        """

    def resample(self, columns: Columns, counts: Array) -> Array:
        """Return the figure of each of many resamples: (resample).

        Args:
            columns: By name, each (row).
            counts: (resample, row), how often each row is drawn.
        """
        read = {name: columns[name] for name in self.columns}
        indices = np.arange(counts.shape[1])
        drawn = (np.repeat(indices, times.astype(np.intp)) for times in counts)
        return np.array([self.compute(take(read, rows)) for rows in drawn], np.float64)

    def outcomes(self, columns: Columns) -> Array | None:
        """Return what the figure is the share of, 0 or 1 for each row; `None` where it is not a proportion of rows.

        The figure is the share times the upper end of its scale, 1 or 100.
        """
        return None

    def exchanged(self, one: Columns, two: Columns, chosen: NDArray[np.bool_]) -> Array:
        """Return the figure of each of many mixtures of two models' rows: (trial).

        Args:
            one: Columns of one model, each (row).
            two: Of the other, of the same examples.
            chosen: (trial, row), whether the row is the first model's; else it is the second's.
        """
        return np.array(
            [
                self.compute({name: np.where(rows, one[name], two[name]) for name in self.columns})
                for rows in chosen
            ],
            np.float64,
        )


class FunctionOfSums(Metric):
    """A figure that is a function of sums over rows, as BLEU is of counts of n-grams.

    Resamples and exchanges of rows cost one matrix multiplication each.
    """

    @abc.abstractmethod
    def statistics(self, columns: Columns) -> Array:
        """Return what each row adds to the sums: (row, statistic)."""

    @abc.abstractmethod
    def figures(self, sums: Array) -> Array:
        """Return the figure of each set of sums: (resample).

        Args:
            sums: (resample, statistic).
        """

    def sums(self, columns: Columns) -> Array:
        """Return the sums over all rows: (statistic)."""
        total: Array = self.statistics(columns).sum(axis=0)
        return total

    def compute(self, columns: Columns) -> float:
        """Return the figure over all rows."""
        return float(self.figures(self.sums(columns)[None])[0])

    def resample(self, columns: Columns, counts: Array) -> Array:
        """Return the figure of each resample: (resample)."""
        return self.figures(counts @ self.statistics(columns))

    def exchanged(self, one: Columns, two: Columns, chosen: NDArray[np.bool_]) -> Array:
        """Return the figure of each mixture of two models' rows: (trial)."""
        first, second = self.statistics(one), self.statistics(two)
        return self.figures(chosen.astype(np.float64) @ first + (~chosen).astype(np.float64) @ second)


class RatioOfSums(FunctionOfSums):
    """A figure that is a function of the ratio of two sums over rows.

    The ratio of sums, not the mean of ratios, is what a corpus is measured by: a long document counts for more.
    """

    @abc.abstractmethod
    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return numerators and denominators, each (row); denominators are not negative."""

    def finish(self, ratio: Array) -> Array:
        """Return the figure of a ratio, elementwise: a monotonic function."""
        return ratio

    def statistics(self, columns: Columns) -> Array:
        """Return the terms of each row: (row, 2)."""
        return np.stack(self.terms(columns), axis=1)

    def figures(self, sums: Array) -> Array:
        """Return the figure of each pair of sums; where there is nothing to divide by, not a number."""
        return self.finish(quotient(sums[:, 0], sums[:, 1]))

    def outcomes(self, columns: Columns) -> Array | None:
        """Return the numerators where the figure is their plain mean and each is 0 or 1."""
        numerators, denominators = self.terms(columns)
        plain = type(self).finish is RatioOfSums.finish
        if plain and (denominators == 1).all() and np.isin(numerators, (0, 1)).all():
            return numerators
        return None


class MacroAverage(RatioOfSums):
    """The mean over groups (`strata`) of each group's ratio, so that a small group counts as much as a large one.

    The groups are fixed, so the error is that of the rows within each: no group would be left out if the benchmark were
    run again.
    """

    def statistics(self, columns: Columns) -> Array:
        """Return numerators and denominators of each group: (row, 2 x group), the row's own group filled."""
        _, group = np.unique(columns[self.strata].astype(str), return_inverse=True)
        out = np.zeros((len(group), int(group.max(initial=-1)) + 1, 2))
        out[np.arange(len(group)), group] = np.stack(self.terms(columns), axis=1)
        return out.reshape(len(group), -1)

    def figures(self, sums: Array) -> Array:
        """Return the mean over the groups that have rows, of each set of sums."""
        parts = sums.reshape(len(sums), -1, 2)
        ratios = self.finish(quotient(parts[..., 0], parts[..., 1]))
        present = np.isfinite(ratios)
        return quotient(np.where(present, ratios, 0).sum(-1), present.sum(-1))

    def outcomes(self, columns: Columns) -> None:
        """Return `None`: a mean of shares is not a share of rows."""


class MeanOfRows(RatioOfSums):
    """The mean of the first of the columns, times the upper end of the scale: scores of 0 to 1 as 0 to 100."""

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the scores, and one for each row."""
        scores = columns[self.columns[0]]
        return scores, np.ones(len(scores))

    def finish(self, ratio: Array) -> Array:
        """Return the mean on the metric's scale."""
        return ratio * self.scale[1]

    def outcomes(self, columns: Columns) -> Array | None:
        """Return the scores where each is 0 or 1."""
        scores, _ = self.terms(columns)
        return scores if np.isin(scores, (0, 1)).all() else None


class PredictionMetric(Metric):
    """A metric of predictions, mostly beside references, which makes its own columns of them.

    Several that read the same columns, as ROUGE-1 and ROUGE-L do, have the same `module`: `metric(module)` computes
    all of them at once.

    Attributes:
        module: The name of the `evaluate` module that returns it.
        key: Its key in what the module returns.
        inputs: What the module takes, by name.
    """

    module: ClassVar[str]
    key: ClassVar[str]
    inputs: ClassVar[Mapping[str, Input]] = MappingProxyType({"predictions": TEXT, "references": TEXTS})

    @abc.abstractmethod
    def row(self, *example: Any, **options: Any) -> Row:
        """Return the columns of one example.

        Args:
            *example: What `inputs` names, in that order; of a text that may be several, also the text alone.
            **options: Further ones, where the metric has any.
        """

    def rows(self, *examples: Any, **options: Any) -> list[Row]:
        """Return the columns of each example.

        Args:
            *examples: What `inputs` names, in that order, each (row).
            **options: Arguments of the module that belong to the examples, not to the figure.
        """
        return [self.row(*example) for example in zip(*examples, strict=True)]

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return what the `evaluate` module returns of this metric, by its keys.

        Where a metric has further keyword parameters here, they are arguments of the module that choose what it
        returns.
        """
        return {self.key: self.compute(columns)}


def options_of(method: Callable[..., Any]) -> set[str]:
    """Return the names of the keyword-only parameters of `rows` or `results`: arguments that are no settings."""
    parameters = inspect.signature(method).parameters.values()
    return {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


def signature_text(conventions: Mapping[str, object]) -> str:
    """Return conventions as one line: "case:mixed|stemmer:no"; those that are `None` are left out."""
    return "|".join(f"{name}:{_word(value)}" for name, value in conventions.items() if value is not None)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ",".join(map(_word, value))
    return str(getattr(value, "__qualname__", value)).replace("|", "/").replace("\n", " ")


def quotient(numerators: Array, denominators: Array, otherwise: float = math.nan) -> Array:
    """Return the ratios, elementwise; where there is nothing to divide by, `otherwise`."""
    ratios: Array = np.full(np.shape(numerators), otherwise)
    np.divide(numerators, denominators, out=ratios, where=np.asarray(denominators) > 0)
    return ratios
