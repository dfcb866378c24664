"""The whole of `nb.evaluate`, on a run written as a trainer writes it."""

import json
import math
import re

import datasets
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.core.report import Chart, KeyValues, Measurements, Report, Samples, Table, Text
from nbllm.data import pack
from nbllm.evaluation import EvaluationConfig, evaluate, run_sections
from nbllm.evaluation.examples import fingerprint
from nbllm.evaluation.metrics import xz_bits_per_byte
from nbllm.runs.events import EventWriter
from nbllm.runs.run import Run
from nbllm.runs.store import create
from tests.core.pages import foreign_scripts

HOSTILE = "</pre><script>alert(1)</script>"


def loss_at(step):
    return 6 * math.exp(-step / 30) + 2


@pytest.fixture
def make_run(tmp_path):
    def make(steps=100, **record):
        facts = {
            "config": {"steps": 100, "lr": 1e-3, "sample_prompts": ["a", "b"]},
            "machine": {"cpu": "two cores", "memory": {"total": 2e9}},
            "versions": {"torch": "2.13.0"},
            "choices": {"precision": "float32"},
        }
        path = create(tmp_path / "runs", "tour", {**facts, **record})
        writer = EventWriter(path)
        writer.write("start", 0, from_step=0, pid=1, host="elsewhere")
        for step in range(1, steps + 1):
            writer.write(
                "step", step, loss=loss_at(step), lr=1e-3, grad_norm=1.0, tokens=step * 100,
                tokens_per_second=50.0, seconds=step * 2.0,
            )  # fmt: skip
            if step % 25 == 0:
                writer.write("evaluation", step, loss=loss_at(step) + 0.1, bits_per_byte=2.0, tokens=10)
                writer.write("sample", step, prompt="The", text=f" cat {step} {HOSTILE}", actor="schedule")
            if step == 40:
                act(writer, step, "set", {"lr": 5e-4}, "person", "applied", None)
                act(writer, step, "set", {"lr": 99.0}, "agent:x", "refused", "lr must be at most 1")
        writer.write("end", steps, state="finished", reason=None, digest="0")
        return Run(path)

    return make


def act(writer, step, action, args, actor, outcome, reason):
    writer.write(
        "action", step, id=f"{action}{outcome}", action=action, args=args, actor=actor, outcome=outcome,
        reason=reason,
    )  # fmt: skip


def rows(texts):
    return [{"text": text} for text in texts]


def titles(report):
    return [section.title for section in report.sections if section.title]


def test_a_report_of_a_run_has_its_parts_in_the_order_of_reading(lm, texts, make_run):
    report = evaluate(lm, ["perplexity"], data=texts, run=make_run(), progress=False)
    assert titles(report) == [
        "Summary", "The model", "How it was trained", "What was done while it ran", "Samples",
        "Prediction of held-out text", "Settings", "Reproduction",
    ]  # fmt: skip
    assert report.title == "A GPT-2 language model of 22.1 thousand parameters: the run tour"
    summary = report.sections[0]
    assert isinstance(summary, Measurements) and summary.prominent
    assert [each.name for each in summary.measurements] == [
        "bits per byte", "xz -9 on the same text", "perplexity per token", "training steps", "training time",
        "parameters",
    ]  # fmt: skip
    assert report.metric("training time").value == 3.3 and report.metric("training steps").value == 100


def test_the_figures_are_those_of_the_model_and_the_yardstick_of_the_text(lm, texts, one_by_one):
    report = evaluate(lm, data=texts, progress=False)
    nats = sum(one_by_one(text, 8) for text in texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    figure = report.metric("bits per byte")
    assert figure.value == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert figure.interval[0] < figure.value < figure.interval[1] and figure.confidence == 0.95
    assert report.metric("xz -9 on the same text").value == xz_bits_per_byte(texts)
    assert f"{figure.value:.4g}"[:4] in report.sections[0].note


def test_the_run_is_told_from_its_events(make_run):
    sections = run_sections(make_run())
    course, curve, rate, actions, samples = sections
    assert isinstance(course, Text) and "took 100 steps and is finished" in course.text
    assert "10,000 tokens in 3 min 20 s of training, 50 tokens a second" in course.text
    assert isinstance(curve, Chart) and [line.name for line in curve.lines] == ["training", "held-out"]
    assert curve.lines[0].x[-1] == 100 and curve.lines[0].y[-1] == pytest.approx(loss_at(100), rel=1e-5)
    assert [(event.x, event.label) for event in curve.events] == [(40, "lr=0.0005")]
    assert isinstance(rate, Chart) and rate.minor
    assert isinstance(actions, Table) and [row[:4] for row in actions.rows] == [
        (40, "lr=0.0005", "person", "applied"),
        (40, "lr=99", "agent:x", "refused: lr must be at most 1"),
    ]
    assert isinstance(samples, Samples) and [s.label[:7] for s in samples.samples] == [
        "step 25", "step 50", "step 75", "step 10",
    ]  # fmt: skip


def test_samples_that_a_rewind_left_behind_are_marked(make_run):
    run = make_run()
    writer = EventWriter(run.path)
    act(writer, 100, "rewind", {"to": 60}, "person", "applied", None)
    writer.write("sample", 75, prompt="The", text=" dog", actor="person")
    labels = [sample.label for sample in run_sections(run)[-1].samples]
    assert [label.replace(", asked by schedule", "") for label in labels] == [
        "step 25", "step 50", "step 75, superseded by a rewind", "step 100, superseded by a rewind",
        "step 75, asked by person",
    ]  # fmt: skip


def test_what_a_run_was_trained_on_is_told(lm, make_run):
    text = {
        "source": f"input.txt {HOSTILE}",
        "path": "/home/somebody",
        "fingerprint": "f00",
        "num_tokens": 1200,
    }
    run = make_run(
        data={"train": text, "validation": None},
        base="smollm2-135m",
        parent={"run": "demo", "step": 40},
        config={"steps": 100, "freeze": ["blocks.0.*"]},
    )
    act(EventWriter(run.path), 50, "freeze", {"patterns": ["embedding.*"]}, "person", "applied", None)
    section = run_sections(run, lm)[0]
    assert isinstance(section, KeyValues) and section.title == "What it was trained on"
    facts, total = dict(section.entries), lm.num_parameters
    assert facts["training text"] == text["source"] and facts["training text, fingerprint"] == "f00"
    assert facts["training text, size"] == "1,200 tokens" and facts["base model"] == "smollm2-135m"
    assert facts["fork of"] == "demo at step 40" and "/home" not in str(section)
    frozen = sum(p.numel() for p in (*lm.model.blocks[0].parameters(), *lm.model.embedding.parameters()))
    assert facts["trained"].startswith(f"{total - frozen:,} of {total:,} parameters (")
    assert facts["trained"].endswith("frozen: blocks.0.*, embedding.*")
    assert "<script" not in Report("r").add(section)._repr_html_()


def test_a_run_that_nobody_steered_and_that_has_no_steps_is_told_too(make_run):
    sections = run_sections(make_run(steps=0))
    assert [section.title for section in sections] == ["How it was trained", "What was done while it ran"]
    assert "was not steered" in sections[1].text


def test_a_long_run_makes_a_small_report(make_run):
    report = Report("r").add(*run_sections(make_run(steps=5000)))
    assert len(json.dumps(report.to_dict())) < 200_000
    assert report.sections[1].lines[0].y[-1] == pytest.approx(loss_at(5000), rel=1e-5)


def test_saved_in_every_format_and_escaped(lm, texts, make_run, tmp_path):
    report = evaluate(lm, data=[*texts, HOSTILE], run=make_run(), progress=False)
    page = report.save(tmp_path / "report.html").read_text("utf-8")
    assert (
        not foreign_scripts(page) and "alert(1)" in page and page.count("<svg") == 4
    )  # two charts, wide and narrow
    assert "<script" not in re.sub(
        r"(?ms)^```text$.*?^```$", "", report.save(tmp_path / "r.md").read_text("utf-8")
    )
    assert Report.load(report.save(tmp_path / "report.json")) == report


def test_what_is_needed_to_get_the_same_again(lm, texts, make_run):
    run = make_run(data={"train": {"path": "/home/somebody/secret", "fingerprint": "f00"}})
    section = evaluate(lm, data=texts, run=run, progress=False, seed=5).sections[-1]
    assert isinstance(section, KeyValues)
    facts = dict(section.entries)
    assert facts["held-out text, SHA-256"] == fingerprint(rows(texts)) != fingerprint(rows(texts[::-1]))
    assert facts["evaluation seed"] == 5 and facts["version of torch"] == "2.13.0"
    assert facts["data train fingerprint"] == "f00" and facts["machine memory total"] == 2e9
    assert "/home/somebody" not in str(section)


def test_without_a_run_the_machine_is_this_one(lm, texts):
    facts = dict(evaluate(lm, data=texts, progress=False).sections[-1].entries)
    assert any(name.startswith("version of torch") for name in facts)
    assert any(name.startswith("machine ") for name in facts)


def test_texts_come_in_every_form(lm, texts, tokenizer, tmp_path, make_run):
    dataset = datasets.Dataset.from_dict({"text": texts})
    store = pack(dataset, tokenizer, folder=tmp_path / "store")
    run = make_run(data={"validation": {"path": str(store.path), "fingerprint": store.fingerprint}})
    saved = tmp_path / "held-out.jsonl"
    dataset.to_json(saved)
    forms = [
        {"data": dataset},
        {"data": datasets.DatasetDict(train=dataset.select([0]), test=dataset)},
        {"data": store},
        {"data": None, "run": run},
        {"data": iter(texts)},
        {"data": saved},
    ]
    values = [evaluate(lm, progress=False, **form).metric("bits per byte").value for form in forms]
    assert values == pytest.approx([values[0]] * len(forms))


def test_texts_are_measured_by_name_each_on_its_own(lm, texts, one_by_one):
    named = {"mine": texts[:5], HOSTILE: texts[5:]}
    report = evaluate(lm, data=named, progress=False)
    for name, part in named.items():
        bits = sum(one_by_one(text, 8) for text in part) / math.log(2)
        value = report.metric(f"bits per byte on {name}").value
        assert value == pytest.approx(bits / sum(len(text.encode()) for text in part), rel=1e-5)
        assert report.metric(f"xz -9 on {name}").value == xz_bits_per_byte(part)
        assert f"Prediction of {name}" in titles(report)
        assert dict(report.sections[-1].entries)[f"{name}, SHA-256"] == fingerprint(rows(part))
    assert report.sections[0].note.count("The model needs") == 2
    assert "<script" not in report._repr_html_() and "alert(1)" in report._repr_html_()


def test_by_default_it_measures_the_held_out_tenth_of_pydocs(untrained):
    report = evaluate(untrained, limit=1, progress=False)
    assert "pydocs, its held-out tenth" in dict(report.sections[-1].entries)["held-out text"]
    assert report.metric("bits per byte").interval is None  # one document says nothing of their spread


def test_a_setting_may_differ_by_task(untrained):
    report = evaluate(untrained, ["copa", "piqa"], shots={"copa": 1}, limit=2, resamples=20, progress=False)
    entries = dict(report.sections[-1].entries)
    assert (entries["copa shots"], entries["piqa shots"]) == (1, 0)


def test_an_interruption_is_said_first_of_all(lm, texts, interrupt_after):
    interrupt_after(4)
    report = evaluate(lm, data=texts, progress=False)
    assert "interrupted after 4 of 12 documents" in report.sections[0].note
    assert report.metric("xz -9 on the same text").value == xz_bits_per_byte(texts[:4])  # the same text


BAD = {
    "task": (
        dict(tasks=["perplexty"]), UserError, "(?s)no task named 'perplexty'.*Did you mean 'perplexity'"),
    "no task": (dict(tasks=[]), UserError, "(?s)no task to measure.*perplexity"),
    "setting": (dict(strid=4), UserError, "(?s)no setting 'strid'.*Did you mean 'stride'"),
    "a setting of no task": (
        dict(stride={"perplexty": 4}), UserError, "(?s)stride names 'perplexty'.*Did you mean 'perplexity'"),
    "stride": (dict(stride=0), UserError, "stride must be greater than 0"),
    "long stride": (dict(stride=99), UserError, "stride of 99 skips tokens"),
    "confidence": (dict(confidence=95), UserError, "confidence must be between 0 and 1, not 95"),
    "no such file": (dict(data="./text"), DataError, "no file, folder or embedded source"),
    "empty": (dict(data=[]), DataError, "no held-out text to measure"),
    "no name": (dict(data={}), DataError, "no text to measure"),
    "an empty name": (dict(data={" ": ["a"]}), DataError, "' ' names no text"),
    "a name of nothing": (dict(data={"mine": None}), DataError, "'mine' names no text"),
    "no text": (dict(data=[1]), DataError, "holds int where text should be"),
    "no column": (dict(data=datasets.Dataset.from_dict({"n": [1]})), DataError, "no column 'text'"),
    "no held-out split": (
        dict(data=datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]}))), DataError,
        "Of the splits train none is held out"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_clearly(lm, texts, case):
    options, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        evaluate(lm, **{"data": texts, "progress": False, **options})


def test_config_is_checked():
    with pytest.raises(UserError, match="resamples"):
        EvaluationConfig(resamples=0)
