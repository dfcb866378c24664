"""What every registered metric holds, ours and those of this folder."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from nbllm.core.errors import UserError
from nbllm.evaluation import METRICS, EvaluationConfig, Metric, difference, estimate
from nbllm.evaluation.columns import take, to_arrays, to_columns
from nbllm.evaluation.metrics import PredictionMetric
from tests.contracts import macro_f1  # noqa: F401 (registers itself)
from tests.contracts.prediction_inputs import examples_of, options_of

each_metric = pytest.mark.parametrize("name", list(METRICS))
ROWS = 30


def made(metric, seed=0):
    """Columns that a metric reads, drawn at random: texts, whole numbers, truth values."""
    if isinstance(metric, PredictionMetric):
        inputs = examples_of(type(metric), ROWS, seed)
        return to_arrays(to_columns(metric.rows(*inputs.values(), **options_of(metric.module))))
    generator = np.random.default_rng(seed)
    texts = np.array(
        [" ".join("abcdefgh"[i] for i in generator.integers(8, size=20)) for _ in range(ROWS)], object
    )
    return {
        name: texts
        if name == "text"
        else generator.integers(2, size=ROWS).astype(float)
        if metric.scale == (0, 1)
        else generator.integers(1, 50, size=ROWS).astype(float)
        for name in metric.columns
    }


@each_metric
def test_a_metric_says_what_it_is(name):
    metric = METRICS[name]()
    assert isinstance(metric, Metric) and metric.name == name
    assert metric.label and metric.columns and metric.better in ("lower", "higher", "")
    assert metric.scale[0] < metric.scale[1]
    assert metric.title("") and metric.title("mine").endswith("mine")
    assert set(metric.comparable_by) <= set(metric.columns)
    assert metric.strata in ("", *metric.columns)
    assert type(metric).from_dict(json.loads(json.dumps(metric.to_dict()))) == metric
    with pytest.raises(UserError, match="has no setting 'settting'"):
        type(metric).from_dict({"settting": 1})


@each_metric
def test_the_figure_is_in_its_scale_and_depends_on_its_columns_alone(name):
    metric = METRICS[name]()
    columns = made(metric)
    before = {column: values.copy() for column, values in columns.items()}
    value = metric.compute(columns)
    assert isinstance(value, float) and metric.scale[0] <= value <= metric.scale[1]
    assert metric.compute({**columns, "unread": np.zeros(ROWS)}) == value
    for column in columns:
        np.testing.assert_array_equal(columns[column], before[column])


@each_metric
def test_the_order_of_the_rows_does_not_matter_where_they_are_resampled(name):
    metric = METRICS[name]()
    if metric.resampled:
        columns = made(metric)
        shuffled = take(columns, np.random.default_rng(0).permutation(ROWS))
        assert metric.compute(shuffled) == pytest.approx(metric.compute(columns))


@each_metric
def test_a_resample_is_the_figure_of_its_rows(name):
    metric = METRICS[name]()
    if not metric.resampled:
        assert estimate(metric, made(metric), EvaluationConfig()).interval is None
        return
    columns = made(metric)
    counts = np.random.default_rng(1).multinomial(ROWS, np.full(ROWS, 1 / ROWS), size=5).astype(float)
    found = metric.resample(columns, counts)
    expected = [metric.compute(take(columns, np.repeat(np.arange(ROWS), row.astype(int)))) for row in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@each_metric
def test_rows_of_two_models_are_exchanged(name):
    metric = METRICS[name]()
    one, two = made(metric), made(metric, seed=1)
    two.update(
        {metric.strata: one[metric.strata]} if metric.strata else {}
    )  # of the examples, not of a model
    chosen = np.random.default_rng(2).integers(2, size=(5, ROWS), dtype=bool)
    expected = [
        metric.compute({column: np.where(rows, one[column], two[column]) for column in metric.columns})
        for rows in chosen
    ]
    np.testing.assert_allclose(metric.exchanged(one, two, chosen), expected, rtol=1e-12)


@each_metric
def test_intervals_hold_the_figure_and_a_difference_with_itself_is_none(name):
    metric, config = METRICS[name](), EvaluationConfig(resamples=300)
    columns, other = made(metric), made(metric, seed=1)
    same = difference(metric, columns, columns, config)
    assert same.value == 0 and same.interval == ((0, 0) if metric.resampled else None)
    found = difference(metric, columns, other, config)
    assert found.value == pytest.approx(metric.compute(other) - metric.compute(columns))
    if metric.resampled:
        low, high = estimate(metric, columns, config, clusters=np.arange(ROWS) // 3).interval
        assert metric.scale[0] <= low < high <= metric.scale[1] and not math.isnan(low)
