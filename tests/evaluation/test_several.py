"""Several models in one evaluation."""

from __future__ import annotations

import dataclasses

import pytest

from nbllm.core.errors import UserError
from nbllm.core.report import Comparisons, Report, Rows, Table
from nbllm.evaluation import EvaluationConfig, compare_reports, evaluate
from nbllm.evaluation.significance import holm
from tests.core.pages import foreign_scripts
from tests.evaluation.conftest import perturbed
from tests.evaluation.questions import HOSTILE, Choosing, ChoosingBySubject

TASKS = ["perplexity", Choosing(), ChoosingBySubject()]


@pytest.fixture(scope="module")
def models(lm):
    return {"small": lm, HOSTILE: perturbed(lm, 0.3), "third": perturbed(lm, 0.6)}


@pytest.fixture(scope="module")
def report(models, texts):
    return evaluate(models, TASKS, data={"perplexity": texts}, resamples=300, progress=False)


def test_each_model_has_the_figures_that_it_has_alone(report, models, texts):
    for name, lm in models.items():
        alone = evaluate(lm, TASKS, data={"perplexity": texts}, resamples=300, progress=False)
        for metric in ("bits_per_byte", "accuracy", "macro_accuracy"):
            found = report.metric(metric, model=name)
            assert found.model == name and found.value == alone.metric(metric).value
            assert found.interval == alone.metric(metric).interval
        assert report.rows("choosing", model=name).columns == alone.rows("choosing").columns
    with pytest.raises(UserError, match=r"(?s)no model named 'smal'.*Did you mean 'small'"):
        report.metric("accuracy", model="smal")


def test_every_pair_is_compared_by_every_figure_of_the_models(report, models):
    (section,) = [section for section in report.sections if isinstance(section, Comparisons)]
    pairs = [("small", HOSTILE), ("small", "third"), (HOSTILE, "third")]
    figures = ["perplexity: bits per byte", "perplexity: perplexity per token"]
    for task in ("choosing", "choosing_by_subject"):  # both have an accuracy
        figures += [f"{task}: accuracy", f"{task}: macro-averaged accuracy"]
    assert [(each.models, each.name) for each in section.comparisons] == [
        (pair, name) for pair in pairs for name in figures
    ]
    for each in section.comparisons:
        assert each.values == tuple(report.metric(each.metric, model=name).value for name in each.models)
        assert each.interval[0] <= each.difference <= each.interval[1]
        assert each.p_corrected >= each.p_values[each.test]
        assert ("mcnemar" in each.p_values) == (each.metric == "accuracy")
        assert (each.test == "mcnemar") == (each.metric == "accuracy" and each.subject.task == "choosing")
    first = [each for each in section.comparisons if each.metric in ("bits_per_byte", "accuracy")]
    expected = holm([each.p_values[each.test] for each in first])  # of three tasks and three pairs
    assert [each.p_corrected for each in first] == pytest.approx(expected)
    found = report.comparison("bits_per_byte", models=(HOSTILE, "third"))
    assert found.needed > 0 and found.effect * found.difference > 0


def test_how_each_interval_was_found_is_said(report):
    text = str(report)
    assert "Intervals are percentiles of 300 bootstrap resamples of the documents." in text
    assert "Intervals of proportions are Wilson's, for answers clustered by subject." in text
    assert (
        "Those of other figures are percentiles of 300 bootstrap resamples of the questions within each subject."
        in text
    )


def test_flips_are_listed_with_both_answers(report):
    found = report.comparison("accuracy")
    right = [report.rows("choosing", model=name).columns["correct"] for name in found.models]
    assert found.flips == tuple(i for i, (one, two) in enumerate(zip(*right, strict=True)) if one != two)
    tables = [part for part in report.sections if isinstance(part, Table) and part.folded]
    assert len(tables) == 2 * sum(bool(report.comparison("accuracy", pair).flips) for pair in PAIRS)
    first = tables[0]
    assert "question" in first.header and f"predicted, {HOSTILE}" in first.header
    assert "predicted, small" in first.header


PAIRS = [("small", HOSTILE), ("small", "third"), (HOSTILE, "third")]


def test_saved_reports_are_compared_without_a_model(models, texts, tmp_path, report):
    kept = {}
    for i, (name, lm) in enumerate(models.items()):
        part = evaluate(lm, TASKS, data={"perplexity": texts}, resamples=300, progress=False)
        kept[name] = Report.load(part.save(tmp_path / f"{i}.json"))
    found = compare_reports(kept, EvaluationConfig(resamples=300))
    for pair in PAIRS:
        assert found.comparison("accuracy", pair) == report.comparison("accuracy", pair)


@pytest.mark.parametrize("suffix", ["html", "md", "json"])
def test_it_is_saved_and_hostile_names_are_text(report, tmp_path, suffix):
    text = report.save(tmp_path / f"report.{suffix}").read_text("utf-8")
    assert "Side by side" in text and "Holm" in text
    if suffix == "json":
        assert Report.load(tmp_path / "report.json") == report
    else:
        assert not foreign_scripts(text)


def test_what_belongs_to_one_model_is_refused(lm, report):
    with pytest.raises(UserError, match="against belongs to one model"):
        evaluate({"a": lm, "b": lm}, against=report)
    with pytest.raises(UserError, match="needs two models"):
        compare_reports({"a": report})
    with pytest.raises(UserError, match="is no name of a model"):
        compare_reports({"a": report, "": report})


def test_reports_of_other_examples_are_refused(lm, texts):
    one = evaluate(lm, data=texts[:4], progress=False)
    two = evaluate(lm, data=texts[:5], progress=False)
    with pytest.raises(UserError, match="(?s)'a' and 'b' were not measured alike.*are not those that"):
        compare_reports({"a": one, "b": two})


def test_a_model_beside_itself_does_not_differ(lm, texts):
    found = evaluate({"a": lm, "b": lm}, data=texts, resamples=100, progress=False)
    same = found.comparison("bits_per_byte")
    assert same.difference == 0 and same.interval == (0, 0) and same.winner == "" and same.needed is None
    assert same.p_values == {"bootstrap": 1, "randomization": 1}
    rows = [section for section in found.sections if isinstance(section, Rows)]
    assert [each.model for each in rows] == ["a", "b"]
    assert dataclasses.replace(rows[0], model="b", title=rows[1].title) == rows[1]
