"""An evaluation against an earlier report: what changed, and when the two cannot be compared."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.core.report import Changes, Measurement, Measurements, Report, Rows, Subject
from nbllm.data import train_tokenizer
from nbllm.evaluation import EvaluationConfig, comparison_section, evaluate, measuring
from nbllm.lm import LM
from tests.core.pages import foreign_scripts
from tests.evaluation.conftest import perturbed

HOSTILE = "</td><script>alert(1)</script>"


@pytest.fixture(scope="module")
def changed(lm):
    return perturbed(lm, 0.02)


@pytest.fixture(scope="module")
def data(texts):
    return {"mine": texts[:7], HOSTILE: texts[7:]}


@pytest.fixture(scope="module")
def before(lm, data):
    return evaluate(lm, data=data, progress=False)


@pytest.fixture(scope="module")
def after(changed, data, before):
    return evaluate(changed, data=data, against=before, progress=False)


def the_table(report):
    (table,) = [section for section in report.sections if section.title == "Before and after"]
    assert isinstance(table, Changes)
    return table


def test_each_figure_of_the_model_is_told_before_and_after(lm, changed, data, before, after):
    table = the_table(after)
    assert after.sections.index(table) == 1
    assert [change.name for change in table.changes] == [
        f"{figure} on {name}" for name in data for figure in ("bits per byte", "perplexity per token")
    ]
    for name, texts in data.items():
        # By `LM.score`, which shares no code with the report but the model's forward pass.
        ends = [bits_per_byte(model, texts) for model in (lm, changed)]
        change = next(change for change in table.changes if change.name == f"bits per byte on {name}")
        assert (change.before, change.after) == pytest.approx(ends, rel=1e-5)
        assert change.before == pytest.approx(before.metric(change.name).value)
        assert change.after == pytest.approx(after.metric(change.name).value)


def bits_per_byte(model, texts):
    """Bits per byte, each document between two end-of-text tokens, from the plain logits of one window."""
    nats = num_bytes = 0.0
    end, context = model.tokenizer.eos_token_id, model.config.max_positions
    for text in texts:
        ids = [end, *model.tokenizer.encode(text), end]
        start = counted = 0
        while counted < len(ids) - 1:
            window = ids[start : start + context + 1]
            with torch.no_grad():
                logits = model.model(torch.tensor([window[:-1]]))[0].double().log_softmax(-1)
            for position in range(counted - start, len(window) - 1):
                nats -= float(logits[position, window[position + 1]])
            counted = start + len(window) - 1
            start = min(start + context // 2, max(len(ids) - 1 - context, 0))
        num_bytes += len(text.encode())
    return nats / math.log(2) / num_bytes


def test_the_interval_is_that_of_drawing_the_same_documents_for_both(before, after):
    change = the_table(after).changes[0]
    kept = [report.rows("perplexity").columns for report in (before, after)]
    num_bytes = kept[0]["num_bytes"]
    assert num_bytes == kept[1]["num_bytes"] and len(num_bytes) == 7
    chooser = random.Random(1)
    changes = []
    for _ in range(20_000):
        drawn = chooser.choices(range(7), k=7)
        old, new = (sum(part["nats"][i] for i in drawn) / math.log(2) for part in kept)
        changes.append((new - old) / sum(num_bytes[i] for i in drawn))
    low, high = np.quantile(changes, [0.025, 0.975])
    assert change.confidence == 0.95
    assert change.interval == pytest.approx((low, high), abs=0.1 * (high - low))


def test_it_is_told_in_words_and_a_change_that_may_be_chance_is_said_to_be(after, lm, data, before):
    table = the_table(after)
    old, new = table.changes[0].before, table.changes[0].after
    verb = "rose" if new > old else "fell"
    share = abs(new / old - 1)
    assert f"Bits per byte on mine {verb} from {old:.3f}" in table.note and f"by {share:.1%}" in table.note
    subject = Subject(task="perplexity", data="", fingerprint="0")

    def report(bits):
        columns = {"nats": [math.log(2) * each for each in bits], "num_bytes": (1,) * 4}
        figure = Measurement(name="bits per byte", value=1, metric="bits_per_byte", subject=subject)
        return Report("r").add(
            Measurements(measurements=(figure,)), Rows(subject=subject, columns=columns, num_examples=4)
        )

    def note(one, two):
        return comparison_section(report(one), report(two), EvaluationConfig()).note

    assert "includes zero" in note((1, 1, 1, 1), (0.5, 1.6, 0.4, 1.4))
    assert note((2, 2, 2, 2), (1, 1.1, 0.9, 1)).endswith("fell from 2.000 to 1.000, by 50.0%.")
    assert note((2, 2, 2, 2), (2, 2, 2, 2)).endswith("Bits per byte did not change.")


@pytest.mark.parametrize("suffix", ["html", "md", "json"])
def test_it_is_in_every_format_and_hostile_names_are_text(after, tmp_path, suffix):
    path = after.save(tmp_path / f"report.{suffix}")
    text = path.read_text("utf-8")
    for word in (
        "Before and after",
        "paired difference",
        "draws the same documents for both",
        "alert(1)",
    ):
        assert word in text
    if suffix == "json":
        assert Report.load(path) == after
    else:
        assert not foreign_scripts(text)
    if suffix == "md":
        assert "<script" not in text and "num_bytes" not in text  # every document's row is in the JSON


def test_a_report_read_back_serves_as_well(changed, data, before, after, tmp_path):
    again = Report.load(before.save(tmp_path / "before.json"))
    found = evaluate(changed, data=data, against=again, progress=False)
    assert the_table(found) == the_table(after)


def test_an_interrupted_measurement_is_compared_on_what_both_measured(
    changed, texts, before, interrupt_after
):
    data, whole = {"mine": texts[:7]}, before.rows("perplexity")
    first = Report("first", [section for section in before.sections if HOSTILE not in repr(section)])
    interrupt_after(3)
    table = the_table(evaluate(changed, data=data, against=first, progress=False))
    assert "compared on the first 3 documents" in table.note
    bits = sum(whole.columns["nats"][:3]) / math.log(2)
    assert table.changes[0].before == pytest.approx(bits / sum(whole.columns["num_bytes"][:3]))


def test_models_of_other_tokens_are_compared_by_byte_alone(texts, before, data):
    tokenizer = train_tokenizer(texts, vocab_size=280)
    small = LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=16)
    table = the_table(evaluate(small, data=data, against=before, progress=False))
    assert [change.name for change in table.changes] == [f"bits per byte on {name}" for name in data]
    assert "Perplexity per token on mine is left out" in table.note


REFUSED = {
    "no report": (lambda report: "before.json", {}, "must be a report, not str"),
    "nothing measured": (lambda report: Report("empty"), {}, "holds nothing that was measured"),
    "other texts": (
        lambda report: report, {"data": ["a text"]}, "(?s)measured perplexity on .*is to measure perplexity"),
    "other documents": (
        lambda report: report, {"data": {"mine": ["a text"], HOSTILE: ["b"]}}, "examples of the data 'mine' are not"),
    "fewer documents": (lambda report: report, {"limit": 3}, "(?s)are not those.*same limit"),
    "another stride": (lambda report: report, {"stride": 3}, "(?s)with stride=None, this one has 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_before_anything_is_measured(lm, data, before, case, monkeypatch):
    def must_not(*_, **__):
        raise AssertionError("measured")

    monkeypatch.setattr(measuring, "answer_prepared", must_not)
    spoil, options, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        evaluate(lm, **{"data": data, "against": spoil(before), "progress": False, **options})


def test_another_task_is_refused(lm, data, before):
    record = json.dumps(before.to_dict()).replace('"task": "perplexity"', '"task": "mmlu"')
    with pytest.raises(UserError, match="measured mmlu on .*is to measure perplexity on"):
        evaluate(lm, data=data, against=Report.from_dict(json.loads(record)), progress=False)
