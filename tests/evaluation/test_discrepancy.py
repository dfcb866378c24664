"""One model by several conventions of one benchmark, each part of the difference measured on its own."""

from __future__ import annotations

import dataclasses

import pytest

from nbllm.core.errors import UserError
from nbllm.core.report import Report, Table
from nbllm.data import train_tokenizer
from nbllm.evaluation import TASKS, evaluate
from nbllm.evaluation.answering import answer
from nbllm.evaluation.discrepancy import discrepancy
from nbllm.evaluation.examples import Source, load_examples
from nbllm.lm import LM
from tests.evaluation.conftest import make_texts

CONVENTIONS = {
    "harness": {"convention": "harness"},
    "lighteval": {"convention": "lighteval"},
    "cloze": {"convention": "harness", "form": "cloze"},
    "cloze by bytes": {"convention": "harness", "form": "cloze", "normalizer": "bytes"},
}


@pytest.fixture(scope="module")
def model():
    """A model whose context holds the questions; its answers are those of chance, and that is all one here."""
    tokenizer = train_tokenizer(make_texts(30), vocab_size=300)
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 512}
    return LM.new("llama", tokenizer=tokenizer, **shape)


@pytest.fixture(scope="module")
def report(model):
    return discrepancy(model, "mmlu", CONVENTIONS, resamples=100, progress=False, reuse=False)


def changes(report, name):
    (table,) = [section for section in report.sections if isinstance(section, Table)]
    (row,) = [row for row in table.rows if row[0] == name]
    return [float(cell.split(" ")[0]) for cell in row[1:]]


def test_each_convention_has_the_figure_that_evaluate_gives(report, model):
    for name, settings in CONVENTIONS.items():
        alone = evaluate(model, TASKS["mmlu"](**settings), resamples=100, progress=False, reuse=False)
        first = next(alone.measurements())
        found = report.metric(name)
        assert found.value == pytest.approx(first.value) and found.interval == first.interval
        assert f"convention:{settings['convention']}" in found.signature
        assert f"convention: {settings['convention']}" in found.note and "(" not in found.note


def test_the_parts_add_up_to_the_whole(report):
    base = report.metric("harness").value
    for name in list(CONVENTIONS)[1:]:
        *parts, whole = changes(report, name)
        assert sum(parts) == pytest.approx(whole, abs=3e-3)
        assert whole == pytest.approx(report.metric(name).value - base, abs=1e-3)


def test_only_what_differs_has_a_part(report):
    assert changes(report, "lighteval")[1:3] == [0, 0]  # another prompt, the same letters
    assert changes(report, "cloze")[0] != 0 or changes(report, "cloze")[1] != 0


def test_the_part_of_the_prompt_is_that_of_exchanging_it_alone(report, model):
    harness, cloze = (TASKS["mmlu"](**CONVENTIONS[name]) for name in ("harness", "cloze"))
    examples = load_examples(harness, Source(model), None).rows
    right = []
    for example in examples:
        requests = [
            dataclasses.replace(each, context=str(cloze.prompt(example)))
            for each in harness.requests(example)
        ]
        scores = [each.log_probability for each in answer(model, requests)]
        right.append(max(range(4), key=scores.__getitem__) == example["answer"])
    expected = sum(right) / len(right) - report.metric("harness").value
    assert changes(report, "cloze")[0] == pytest.approx(expected, abs=1e-3)


def test_it_is_saved_like_any_report(report, tmp_path):
    assert Report.load(report.save(tmp_path / "a.json")) == report
    assert "Where the differences come from" in report.save(tmp_path / "a.md").read_text("utf-8")


def test_what_cannot_be_compared_is_refused(model):
    with pytest.raises(UserError, match="needs two conventions"):
        discrepancy(model, "mmlu", {"one": {}})
    with pytest.raises(UserError, match="not a task of choices"):
        discrepancy(model, "perplexity", {"one": {}, "two": {}})
    with pytest.raises(UserError, match="needs two conventions, not 0"):
        discrepancy(model, "mmlu")
    with pytest.raises(UserError, match="has no setting 'convetion'"):
        discrepancy(model, "mmlu", {"one": {}, "two": {"convetion": "harness"}})
    with pytest.raises(UserError, match="'two' does not measure the questions of 'one'"):
        discrepancy(model, "mmlu", {"one": {}, "two": {"subjects": ["astronomy"]}})
