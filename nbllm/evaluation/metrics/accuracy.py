"""Accuracy: the share of examples that are right, over all of them or as the mean over groups."""

from __future__ import annotations

import numpy as np

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, Metric, RatioOfSums


@METRICS.register("accuracy")
class Accuracy(RatioOfSums):
    """The share of examples that are right; a tie among several choices counts for its share."""

    name = "accuracy"
    label = "accuracy"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("correct",)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the credit of each example, and one for each."""
        return columns["correct"], np.ones(len(columns["correct"]))


@METRICS.register("macro_accuracy")
class MacroAccuracy(Metric):
    """The mean of the accuracies of the subjects, each of which counts alike however many examples it has.

    It is not resampled: a subject that is drawn twice cannot be told from one that is drawn once.
    """

    name = "macro_accuracy"
    label = "macro-averaged accuracy"
    note = "the mean over subjects"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("correct", "subject")
    resampled = False

    def compute(self, columns: Columns) -> float:
        """Return the mean over the subjects."""
        by_subject: dict[object, list[float]] = {}
        for subject, correct in zip(columns["subject"], columns["correct"], strict=True):
            by_subject.setdefault(subject, []).append(correct)
        return float(np.mean([np.mean(each) for each in by_subject.values()]))
