"""Bars by group and the reliability diagram of what was measured."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from nbllm.core.proportions import wilson
from nbllm.core.report import Bars, Chart
from nbllm.evaluation import MeanOfRows, evaluate
from nbllm.evaluation.breakdowns import confidences
from tests.evaluation.questions import Choosing, ChoosingBySubject, questions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sure(ChoosingBySubject):
    """The same, with the log-probabilities of the choices."""

    def score(self, example, answers):
        logs = tuple(each.log_probability for each in answers)
        return {**super().score(example, answers), "log_probabilities": logs}


@pytest.fixture(scope="module")
def report(lm):
    return evaluate(lm, Sure(), data=questions(200), resamples=50, progress=False)


def test_each_group_has_a_bar_with_its_interval(report):
    (section,) = [part for part in report.sections if isinstance(part, Bars)]
    rows = report.rows().columns
    expected = {}
    for subject, correct in zip(rows["subject"], rows["correct"], strict=True):
        expected.setdefault(subject, []).append(correct)
    assert {bar.name for bar in section.bars} == set(expected) and sum(
        bar.count for bar in section.bars
    ) == 200
    for bar in section.bars:
        values = expected[bar.name]
        assert bar.value == pytest.approx(sum(values) / len(values))
        assert bar.interval == wilson(sum(values), len(values), 0.95)
    assert [bar.value for bar in section.bars] == sorted((bar.value for bar in section.bars), reverse=True)
    assert section.marked == pytest.approx(report.metric("accuracy").value)
    page = report._repr_html_()
    assert "by subject" in page and page.count("<rect") >= 4


def test_the_reliability_diagram_is_of_the_chosen_answers(report):
    (chart,) = [part for part in report.sections if isinstance(part, Chart)]
    rows = report.rows().columns
    sure = []
    for logs in rows["log_probabilities"]:
        weights = [math.exp(each) for each in logs]
        sure.append(max(weights) / sum(weights))
    points = list(zip(chart.lines[0].x, chart.lines[0].y, strict=True))
    bins = np.clip((np.array(sure) * 10).astype(int), 0, 9)
    expected = [
        (np.mean(np.array(sure)[bins == i]), np.mean(np.array(rows["correct"], float)[bins == i]))
        for i in range(10)
        if (bins == i).any()
    ]
    np.testing.assert_allclose(points, expected, atol=1e-9)
    assert "expected calibration error" in chart.caption


def test_without_groups_or_probabilities_there_is_neither(lm):
    report = evaluate(lm, Choosing(), resamples=50, progress=False)
    assert not [part for part in report.sections if isinstance(part, (Bars, Chart))]
    assert confidences({"correct": np.ones(2)}) is None


class Percent(MeanOfRows):
    """The accuracy in percent."""

    name = "percent"
    label = "accuracy"
    better = "higher"
    scale = (0.0, 100.0)
    columns = ("correct",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InPercent(ChoosingBySubject):
    """The same in percent."""

    @property
    def metrics(self):
        return (Percent(),)


def test_bars_of_a_percentage_are_in_percent(lm):
    report = evaluate(lm, InPercent(), data=questions(40), resamples=50, progress=False)
    (section,) = [part for part in report.sections if isinstance(part, Bars)]
    assert section.marked == pytest.approx(report.metric("percent").value) and section.marked > 1
    for bar in section.bars:
        low, high = wilson(bar.value / 100 * bar.count, bar.count, 0.95)
        assert bar.interval == pytest.approx((100 * low, 100 * high))
