"""What a report records of how its figures were made, and whether they can be made again."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from nbllm.core.errors import DataError, UserError
from nbllm.core.report import Report
from nbllm.data import train_tokenizer
from nbllm.evaluation import evaluate, model_fingerprint, reproduce
from nbllm.lm import LM
from nbllm.opening import load
from tests.evaluation.conftest import perturbed
from tests.evaluation.questions import Choosing, questions


@pytest.fixture(scope="module")
def report(lm, texts):
    # Not of answers that another test has kept: those of other batches may differ in the last bit.
    settings = {"resamples": 100, "reuse": False, "progress": False}
    return evaluate(lm, ["perplexity", Choosing()], data={"perplexity": texts}, **settings)


def test_the_fingerprint_is_of_weights_and_tokenizer_alone(lm, tmp_path, texts):
    known = model_fingerprint(lm)
    lm.save(tmp_path / "model")
    assert model_fingerprint(load(tmp_path / "model")) == known
    changed = copy.deepcopy(lm.model)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-3
    assert model_fingerprint(LM(changed, lm.tokenizer)) != known
    other = train_tokenizer(texts, vocab_size=len(lm.tokenizer))
    assert model_fingerprint(LM(lm.model, other)) != known
    assert len(known) == 64


def test_the_record_says_what_made_every_figure(report, lm):
    (made,) = report.provenance
    assert made.model_sha256 == model_fingerprint(lm) and made.dtype == "float32" and made.device == "cpu"
    assert [each.task for each in made.tasks] == ["perplexity", "choosing"]
    for each in made.tasks:
        rows = report.rows(each.task)
        assert each.data_sha256 == rows.subject.fingerprint and each.num_examples == rows.num_examples
        assert len(each.prompts_sha256) == 64
    assert made.config["resamples"] == 100 and made.config["seed"] == 0
    assert "torch" in made.versions and made.machine["cores"] and made.seconds > 0


def test_prompts_have_a_digest_of_their_own(lm):
    data = questions()
    first, same, other = (
        evaluate(lm, task, data=data, progress=False, resamples=10).provenance[0].tasks[0]
        for task in (Choosing(), Choosing(), Colon())
    )
    assert first == same and first.data_sha256 == other.data_sha256
    assert first.prompts_sha256 != other.prompts_sha256


class Colon(Choosing):
    """The same questions with a colon."""

    def requests(self, example):
        return [dataclasses.replace(each, context=f"{each.context}:") for each in super().requests(example)]


def test_every_figure_has_a_signature_in_the_manner_of_sacrebleu(report, lm):
    found = report.metric("accuracy").signature.split("|")
    parts = dict(part.split(":", 1) for part in found)
    assert parts["metric"] == "accuracy" and parts["task"] == "choosing" and parts["n"] == "24"
    assert parts["ci"] == "wilson-95" and parts["model"] == model_fingerprint(lm)[:12]
    assert report.rows("choosing").subject.fingerprint.startswith(parts["data"])
    parts = dict(part.split(":", 1) for part in report.metric("bits_per_byte").signature.split("|"))
    assert parts["stride"] == "none" and parts["ci"] == "bootstrap-95"
    assert (
        parts["resamples"] == "100"
        and parts["seed"] == "0"
        and parts["nbllm"]
        and parts["version"].startswith("nbllm-")
    )
    for text in (str(report), report._repr_html_()):
        assert "task:choosing" in text.replace("\\", "")


def test_a_report_is_reproduced_to_the_last_bit(report):
    again = reproduce(report, progress=False)
    assert again.agrees and {each.verdict for each in again.figures} == {"identical"}
    assert len(again.figures) == 6 and not again.changed
    assert str(again) == "The report is reproduced: 6 of 6 figures agree, 6 of them to the last bit."
    assert "Reproduced" in again._repr_html_()


def test_another_model_is_told(report, lm, texts):
    again = reproduce(report, perturbed(lm, 0.5), progress=False)
    assert not again.agrees and "NOT reproduced" in str(again)
    assert [what for what, _, _ in again.changed] == ["weights and tokenizer"]
    verdicts = {each.name: each.verdict for each in again.figures}
    assert verdicts["perplexity: bits per byte"] == "differs"
    assert verdicts["perplexity: bytes per token"] == "identical" and "choosing: accuracy" in verdicts


def test_other_data_are_told(report, lm, texts):
    again = reproduce(report, data={"perplexity": texts[:-1]}, progress=False)
    assert not again.agrees
    assert {what for what, _, _ in again.changed} == {"data of perplexity", "prompts of perplexity"}


def test_a_saved_report_is_run_again_from_what_it_records(lm, tmp_path, monkeypatch):
    lm.save(tmp_path / "tiny")
    (tmp_path / "held.txt").write_text("the cat sat on a mat " * 20)
    monkeypatch.chdir(tmp_path)
    first = evaluate(load("tiny"), data="held.txt", resamples=50, progress=False)
    kept = Report.load(first.save("report.json"))
    assert kept == first and kept.provenance == first.provenance and kept.inputs is None
    assert kept.provenance[0].origin == "tiny" and kept.provenance[0].tasks[0].location == "held.txt"
    again = reproduce(kept, progress=False)
    assert again.agrees and not again.changed


def test_what_a_report_does_not_keep_is_asked_for(report, lm, texts):
    kept = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    with pytest.raises(UserError, match=r"(?s)'choosing', which is not registered.*tasks="):
        reproduce(kept, progress=False)
    with pytest.raises(UserError, match=r"(?s)came from is not recorded.*nb.reproduce\(report, lm\)"):
        reproduce(kept, tasks=[Choosing()], progress=False)
    with pytest.raises(UserError, match=r"(?s)data of 'perplexity' were given as an object.*data="):
        reproduce(kept, lm, tasks=[Choosing()], progress=False)
    again = reproduce(kept, lm, tasks=[Choosing()], data={"perplexity": texts}, progress=False)
    assert again.agrees
    with pytest.raises(UserError, match="str is not a report"):
        reproduce("report.json")
    with pytest.raises(UserError, match="records no evaluation"):
        reproduce(Report("empty"))


def test_several_models_are_reproduced_each(lm, texts):
    models = {"a": lm, "b": perturbed(lm, 0.3)}
    report = evaluate(models, data=texts[:4], resamples=20, progress=False)
    assert [each.model for each in report.provenance] == ["a", "b"]
    assert reproduce(report, progress=False).agrees
    swapped = reproduce(report, {"a": models["b"], "b": models["a"]}, progress=False)
    assert not swapped.agrees
    with pytest.raises(UserError, match="measured the model 'b', and it is not among"):
        reproduce(report, {"a": lm}, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": 3}, "provenance is malformed: tasks"),
        ({"model_sha256": None}, "provenance is malformed: model_sha256"),
        ({"unknown": 1}, "provenance is malformed.*unknown"),
        ({"seconds": "long"}, "provenance is malformed: seconds"),
    ],
)
def test_a_malformed_record_is_refused_by_name(report, change, message):
    record = json.loads(json.dumps(report.to_dict()))
    record["provenance"][0].update(change)
    with pytest.raises(DataError, match=message):
        Report.from_dict(record)
