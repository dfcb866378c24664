"""What every registered task holds, ours and those of this folder: measured, reported, compared, exported."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from nbllm.core.config import Config
from nbllm.core.errors import DataError, UserError
from nbllm.core.report import Report, Rows
from nbllm.data import train_tokenizer
from nbllm.evaluation import METRICS, TASKS, EvaluationConfig, Source, Task, evaluate, measuring
from nbllm.evaluation.columns import to_arrays
from nbllm.evaluation.examples import load_examples
from nbllm.evaluation.requests import DocumentLikelihood, Generate, Likelihood
from nbllm.lm import LM
from tests.contracts import copying, endings, macro_f1  # noqa: F401 (each registers itself)
from tests.core.pages import foreign_scripts
from tests.evaluation.conftest import perturbed

TEXTS = [
    "the cat sat on a mat and the dog ran to see",
    "naïve 日本 def return if x = 1",
    "the dog sat on the cat </td><script>alert(1)</script>",
]
DATA = {"perplexity": TEXTS}  # a task that is not named here measures data of its own
OTHER = {
    "subjects": ("astronomy",), "convention": "lighteval", "form": "cloze", "normalizer": "bytes", "language": "zh",
    "source_language": "en", "target_language": "de",
}  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=290)
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 32}
    return LM.new("llama", tokenizer=tokenizer, **shape)


@pytest.fixture(scope="module")
def changed(lm):
    return perturbed(lm, 0.3)


def measured(lm, name, **options):
    return evaluate(lm, name, data=DATA.get(name), progress=False, resamples=200, **options)


@pytest.fixture(scope="module")
def reports(lm, changed):
    """For every task the report of a model, and that of another one compared with it."""
    first = {name: measured(lm, name) for name in TASKS}
    return {name: (first[name], measured(changed, name, against=first[name])) for name in TASKS}


each_task = pytest.mark.parametrize("name", list(TASKS))


@each_task
def test_a_task_is_a_frozen_configuration_that_refuses_unknown_settings(name):
    kind = TASKS[name]
    task = kind()
    assert issubclass(kind, Task) and isinstance(task, Config) and task.name == name
    assert task.label and task.noun and task.unit
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.anything = 1
    with pytest.raises(UserError, match="has no setting 'settting'"):
        kind.from_dict({"settting": 1})
    assert kind.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    shared = {field.name for field in dataclasses.fields(EvaluationConfig)}
    assert not shared & set(task.to_dict())  # else evaluate could not tell whose setting it is


@each_task
def test_examples_are_what_json_holds_and_requests_and_rows_do_not_change_them(name, lm):
    task = TASKS[name]()
    examples = load_examples(task, Source(lm, DATA.get(name)), limit=None)
    assert examples.rows and examples.source
    for example in examples.rows:
        before = json.loads(json.dumps(example))
        requests = task.requests(example)
        assert requests and all(isinstance(r, (Likelihood, DocumentLikelihood, Generate)) for r in requests)
        assert task.requests(example) == requests
        assert json.loads(json.dumps(example)) == before
    again = load_examples(task, Source(lm, DATA.get(name)), limit=None)
    assert again.fingerprint == examples.fingerprint
    if len(examples.rows) > 1:
        assert load_examples(task, Source(lm, DATA.get(name)), limit=1).fingerprint != examples.fingerprint


@each_task
def test_nothing_to_measure_is_an_error(name, lm):
    with pytest.raises(DataError, match="to measure"):
        evaluate(lm, name, data=[], progress=False)


@each_task
def test_the_report_holds_each_figure_with_the_rows_it_is_computed_from(name, reports, lm):
    report, task = reports[name][0], TASKS[name]()
    rows = report.rows(name)
    assert len(rows) == rows.num_examples == len(load_examples(task, Source(lm, DATA.get(name)), None).rows)
    columns = to_arrays(rows.columns)
    for metric in task.metrics:
        found = report.metric(metric.name)  # by its registered name
        assert found == report.metric(metric.title(""))
        assert found.subject == rows.subject and found.better == metric.better
        assert dict(found.settings) == metric.to_dict()
        assert metric.scale[0] <= found.value <= metric.scale[1]
        if metric.of_model:
            assert found.value == metric.compute(columns)
    assert task.metrics[0].label in str(report) and report.sections[0].note


@each_task
def test_the_answers_do_not_depend_on_the_batch(name, lm, reports):
    small = measured(lm, name, batch_tokens=1, reuse=False).rows(name).columns
    for column, values in reports[name][0].rows(name).columns.items():
        numbers = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
        if all(isinstance(number, float) for number in numbers):
            np.testing.assert_allclose(
                np.concatenate([np.atleast_1d(value) for value in small[column]]),
                numbers,
                rtol=1e-5,
                atol=1e-5,
            )
        else:
            assert small[column] == values


@each_task
def test_two_models_are_compared_by_every_figure_of_the_model(name, reports):
    before, after = reports[name]
    for metric in TASKS[name]().metrics:
        if not metric.of_model:
            with pytest.raises(UserError, match="no change named"):
                after.change(metric.name)
            continue
        change = after.change(metric.name)
        assert change.before == pytest.approx(before.metric(metric.name).value)
        assert change.after == pytest.approx(after.metric(metric.name).value)
        if metric.resampled:
            assert change.interval[0] <= change.after - change.before <= change.interval[1]
        assert change.better == metric.better


@each_task
def test_the_label_of_a_figure_is_only_shown(name, reports, changed):
    """An earlier report whose figures are worded otherwise is compared all the same."""
    before, after = reports[name]
    worded = copy.deepcopy(before.to_dict())
    for section in worded["sections"]:
        for figure in section.get("measurements", ()):
            figure["name"] = f"formerly {figure['name']}"
    again = measured(changed, name, against=Report.from_dict(worded))
    for metric in TASKS[name]().metrics:
        if metric.of_model:
            assert again.change(metric.name) == after.change(metric.name)


@each_task
@pytest.mark.parametrize("suffix", ["json", "html", "md"])
def test_reports_are_exported_and_hostile_text_stays_text(name, reports, tmp_path, suffix):
    report = reports[name][1]
    text = report.save(tmp_path / f"report.{suffix}").read_text("utf-8")
    assert "Before and after" in text and TASKS[name]().metrics[0].label in text
    if suffix == "json":
        assert Report.load(tmp_path / "report.json") == report
    else:
        assert not foreign_scripts(text)


@each_task
def test_other_settings_are_not_compared(name, reports, changed):
    before = reports[name][0]
    for setting, value in TASKS[name]().to_dict().items():
        kinds = {bool: lambda old: not old, int: lambda old: old + 1, type(None): lambda _: 5}
        other = OTHER[setting] if setting in OTHER else kinds[type(value)](value)
        if setting == "shots" and not TASKS[name].layout.shot_splits:
            continue  # there is nothing to take them from
        shown = {(): "", ("astronomy",): "astronomy"}
        expected = f"with {setting}={shown.get(value, value)}, this one has {shown.get(other, other)}"
        with pytest.raises(UserError, match=expected):
            measured(changed, name, against=before, **{setting: other})


@each_task
def test_interrupting_reports_the_first_examples(name, lm, monkeypatch, reports):
    real, calls = measuring.answer_prepared, []

    def answer(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(measuring, "_groups", lambda sizes, most: [(i, i + 1) for i in range(len(sizes))])
    monkeypatch.setattr(measuring, "answer_prepared", answer)
    report = measured(lm, name)
    assert "interrupted after 2 of" in report.sections[0].note
    whole, part = reports[name][0].rows(name).columns, report.rows(name).columns
    assert len(report.rows(name)) == 2 and part.keys() == whole.keys()


def test_several_tasks_at_once_each_with_its_data_and_settings(lm):
    names, data = list(TASKS), {"perplexity": {"mine": TEXTS[:2], "other": TEXTS[2:]}, "endings": None}
    report = evaluate(lm, names, data=data, stride=3, per_byte=True, limit=2, resamples=50, progress=False)
    kept = {
        (rows.subject.task, rows.subject.data): rows for rows in report.sections if isinstance(rows, Rows)
    }
    others = [name for name in names if name != "perplexity"]
    assert set(kept) == {("perplexity", "mine"), ("perplexity", "other"), *((name, "") for name in others)}
    assert dict(kept["endings", ""].subject.settings) == {"per_byte": True}
    assert dict(kept["perplexity", "mine"].subject.settings) == {"stride": 3}
    assert {key: len(rows) for key, rows in kept.items()} == dict.fromkeys(kept, 2) | {
        ("perplexity", "other"): 1
    }
    facts = dict(report.sections[-1].entries)
    assert (
        facts["endings per byte"] is True
        and facts["perplexity stride"] == 3
        and facts["evaluation limit"] == 2
    )
    with pytest.raises(UserError, match=r"(?s)no setting 'per_bite'.*Did you mean 'per_byte'"):
        evaluate(lm, names, per_bite=True)
    with pytest.raises(
        DataError, match=r"(?s)names the task 'perplexity', and 'ending'.*Did you mean 'endings'"
    ):
        evaluate(lm, names, data={"perplexity": TEXTS, "ending": None})
    with pytest.raises(UserError, match="named twice: copying, copying"):
        evaluate(lm, ["copying", TASKS["copying"](max_new_tokens=2)])
    with pytest.raises(UserError, match="max_new_tokens must be a whole number"):
        evaluate(lm, "copying", max_new_tokens="2")


def test_a_task_of_one_s_own_is_given_as_it_is(lm):
    report = evaluate(lm, TASKS["copying"](max_new_tokens=1), progress=False)
    assert dict(report.rows("copying").subject.settings) == {"max_new_tokens": 1}
    assert report.rows().columns["stopped_by"] == ("length",) * 4
    with pytest.raises(UserError, match="Did you mean 'copying'"):
        report.rows("copyin")


def test_chosen_endings_are_those_of_the_plain_logits(lm, reports):
    rows = reports["endings"][0].rows("endings").columns
    for question, choices, chosen in zip(rows["question"], rows["choices"], rows["predicted"], strict=True):
        scores = []
        for choice in choices:
            ids, begin = lm.tokenizer.encode(f"{question} {choice}"), len(lm.tokenizer.encode(question))
            with torch.no_grad():
                logits = lm.model(torch.tensor([ids]))[0].double().log_softmax(-1)
            scores.append(sum(float(logits[i - 1, ids[i]]) for i in range(begin, len(ids))))
        assert chosen == int(np.argmax(scores))


def test_a_metric_that_is_no_ratio_of_sums_is_resampled_by_cluster_and_compared(lm, reports):
    before, after = reports["endings"]
    rows = before.rows("endings")
    assert rows.cluster == "subject" and rows.unit == "questions"
    pairs = list(zip(rows.columns["predicted"], rows.columns["expected"], strict=True))
    scores = []
    for kind in {value for pair in pairs for value in pair}:
        wrong = sum((kind == predicted) != (kind == expected) for predicted, expected in pairs)
        scores.append(2 * pairs.count((kind, kind)) / (2 * pairs.count((kind, kind)) + wrong))
    expected = sum(scores) / len(scores)
    found = before.metric("macro_f1")
    assert found.value == pytest.approx(expected) and found.interval is not None
    assert "clusters of questions" in str(after) and after.change("macro_f1").interval is not None
    assert METRICS["macro_f1"](empty=1.0).to_dict() == {"empty": 1.0}
