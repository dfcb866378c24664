"""What every metric of predictions holds as an `evaluate.Metric`, whatever it computes."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import evaluate
import numpy as np
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import METRICS, metric as metric_of
from nbllm.evaluation.columns import to_arrays, to_columns
from nbllm.evaluation.metrics import MODULES, PredictionMetric
from tests.contracts.prediction_inputs import examples_of, options_of

each_module = pytest.mark.parametrize("name", list(MODULES))
COUNT = 12


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Nothing is left in the folder where `evaluate` keeps files."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    yield
    assert not list(tmp_path.iterdir())


def metric(name, **settings):
    """A metric with a tiny model where it needs one."""
    return metric_of(name, **options_of(name), **settings)


def inputs_of(name, count=COUNT, seed=0):
    return examples_of(MODULES[name][0], count, seed)


def plain(value):
    """A result as JSON holds it: only Python's own numbers and lists."""
    return json.loads(json.dumps(value))


@each_module
def test_it_is_a_metric_of_evaluate_and_says_what_it_is(name):
    made = metric(name)
    assert isinstance(made, evaluate.Metric) and made.name == name and len(made) == 0
    assert set(made._feature_names()) == set(MODULES[name][0].inputs)
    assert made.description and made.inputs_description and name in repr(made)
    for kind in MODULES[name]:
        assert issubclass(kind, PredictionMetric) and METRICS[kind.name] is kind
        assert kind.module == name and kind.key and kind.source and kind.note and kind.better
        assert kind().signature() and "\n" not in kind().signature()


@each_module
def test_results_are_plain_and_in_their_scale(name):
    made = metric(name)
    found = made.compute(**inputs_of(name))
    assert plain(found) == found and all(isinstance(key, str) for key in found)
    for kind in MODULES[name]:
        low, high = kind.scale
        assert low <= np.mean(found[kind.key]) <= high * (1 + 1e-6)


@each_module
def test_results_are_those_of_the_metrics_of_a_report(name):
    inputs = inputs_of(name)
    found = metric(name).compute(**inputs)
    for kind in MODULES[name]:
        figure = kind()
        examples = metric(name)._read(inputs).values()
        columns = to_arrays(to_columns(figure.rows(*examples, **options_of(name))))
        assert figure.compute(columns) == pytest.approx(np.mean(found[kind.key]), rel=1e-12)
        assert set(kind.columns) <= set(columns)


@each_module
def test_examples_may_come_one_by_one_or_in_batches(name):
    inputs, made = inputs_of(name), metric(name)
    whole = made.compute(**inputs)
    for first in range(0, COUNT, 5):
        made.add_batch(**{key: values[first : first + 5] for key, values in inputs.items()})
    assert len(made) == COUNT and made.compute() == whole and len(made) == 0
    for index in range(COUNT):
        made.add(**{key.removesuffix("s"): values[index] for key, values in inputs.items()})
    assert made.compute() == whole
    made.add_batch(**{key: values[:5] for key, values in inputs.items()})
    assert made.compute(**{key: values[5:] for key, values in inputs.items()}) == whole


@each_module
def test_every_result_has_a_signature_that_names_what_it_depends_on(name):
    made = metric(name)
    before = made.signature
    made.compute(**inputs_of(name))
    assert "version:" in made.signature and "version:" in before
    pairs = [pair.split(":", 1) for pair in made.signature.split("|")]
    assert all(len(pair) == 2 and all(pair) for pair in pairs)
    assert len({key for key, _ in pairs}) == len(pairs)
    for setting, value in MODULES[name][0]().to_dict().items():
        if isinstance(value, bool) and setting not in ("force", "rescale_with_baseline"):
            # The first silences a warning, the second needs a baseline.
            assert metric(name, **{setting: not value}).signature != before


@each_module
def test_nothing_to_compute_is_refused(name):
    for inputs in ({}, {key: [] for key in inputs_of(name)}):
        with pytest.raises(DataError, match="(?s)There are no examples.*hint"):
            metric(name).compute(**inputs)


@each_module
def test_missing_and_unequal_inputs_are_named(name):
    inputs = inputs_of(name)
    for key in inputs:
        if len(inputs) > 1:
            with pytest.raises(DataError, match=f"The {key} are missing"):
                metric(name).compute(**{other: values for other, values in inputs.items() if other != key})
            with pytest.raises(DataError, match=f"{COUNT - 1} {key}"):
                metric(name).compute(**{**inputs, key: inputs[key][:-1]})
        for one in ("abc", 3, iter(inputs[key])):
            with pytest.raises(DataError, match=f"(?s)The {key} are of type .*Give a list"):
                metric(name).compute(**{**inputs, key: one})
        for bad in (None, object(), [None], math.nan):
            with pytest.raises(DataError, match=rf"(?s){key}\[3\] .*Each of the {key} is"):
                metric(name).compute(**{**inputs, key: [*inputs[key][:3], bad, *inputs[key][4:]]})


@each_module
def test_unknown_settings_and_inputs_are_refused_and_what_was_added_is_kept(name):
    made, inputs = metric(name), inputs_of(name)
    made.add_batch(**inputs)
    with pytest.raises(UserError, match="has no argument 'settting'"):
        made.compute(settting=1)
    with pytest.raises(UserError, match="has no input 'weights'"):
        made.add_batch(**inputs, weights=[1] * COUNT)
    assert len(made) == COUNT and made.compute() == metric(name).compute(**inputs)
    with pytest.raises(UserError, match="has no argument 'settting'"):
        metric(name, settting=1)


@each_module
def test_numpy_arrays_and_columns_of_data_sets_are_read(name):
    from datasets import Dataset

    inputs = inputs_of(name)
    whole = metric(name).compute(**inputs)
    data = Dataset.from_dict(inputs)
    assert metric(name).compute(**{key: data[key] for key in inputs}) == whole
    arrays = {
        key: np.array(values) if isinstance(values[0], (int, float)) else values
        for key, values in inputs.items()
    }
    assert metric(name).compute(**arrays) == whole


@each_module
def test_it_combines_with_another(name):
    other = "exact_match" if name != "exact_match" else "token_f1"
    both = evaluate.combine([metric(name), metric(name)])
    found = both.compute(**inputs_of(name))
    whole = metric(name).compute(**inputs_of(name))
    assert found == {f"{name}_{i}_{key}": value for i in range(2) for key, value in whole.items()}
    if MODULES[name][0].inputs == MODULES[other][0].inputs:
        texts = evaluate.combine({"one": metric(name), "two": metric(other)}, force_prefix=True)
        found = texts.compute(**inputs_of(name))
        assert {key for key in found if key.startswith("one_")} == {f"one_{key}" for key in whole}


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'sacrebleu'"):
        metric_of("sacreblue")
    with pytest.raises(UserError, match="(?s)'bleu' is a figure.*'sacrebleu' returns it"):
        metric_of("bleu")
    with pytest.raises(UserError, match="'bits_per_byte' is computed of a task's rows"):
        metric_of("bits_per_byte")


def test_several_processes_compute_over_the_examples_of_all(tmp_path_factory):
    """As in `evaluate`: each adds its own, the first computes; then nothing is left. (Threads stand for processes.)"""
    folder = tmp_path_factory.mktemp("shared")
    examples = [(["a", "b"], ["a", "b"]), (["c", "d"], ["c", "x"])]

    def work(rank):
        made = metric("exact_match", num_process=2, process_id=rank, experiment_id="one", cache_dir=folder)
        predictions, references = examples[rank]
        return made.compute(predictions=predictions, references=references)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [{"exact_match": 0.75}, None]
    assert not list(folder.rglob("*.arrow"))
    with pytest.raises(UserError, match="Give all of them the same cache_dir"):
        metric("exact_match", num_process=2)
