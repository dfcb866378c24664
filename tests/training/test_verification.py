"""A plan beside one process: what agrees passes, and what does not is shown."""

from __future__ import annotations

import psutil
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.distributed import Plan
from nbllm.training.verification import Compared, Verification, _small_enough


@pytest.fixture(scope="module")
def text():
    return nb.data.load("pydocs").select(range(6))


@pytest.fixture(scope="module")
def lm(text):
    tokenizer = nb.data.train_tokenizer(text, vocab_size=384)
    return nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64)


def test_a_plan_that_is_right_passes_and_leaves_the_model_as_it_was(lm, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = set(psutil.Process().children())
    before = {name: each.clone() for name, each in lm.model.named_parameters()}
    found = nb.verify(nb.Plan(tensor=2), lm, text, steps=2, num_threads=1)
    assert found and found.passed and found.largest < 1e-4
    assert [row.what for row in found.rows] == ["loss"] * 2 + ["gradient norm"] * 2 + ["weights"]
    assert found.plan == Plan(data=1, tensor=2) and not found.scaled
    assert all(torch.equal(each, before[name]) for name, each in lm.model.named_parameters())
    assert list(tmp_path.iterdir()) == []
    assert psutil.wait_procs(set(psutil.Process().children()) - others, timeout=20)[1] == []
    assert "computes what one process does" in str(found)


def test_what_differs_is_shown():
    rows = [Compared("loss", 1, 2.0, 2.1, 0.05), Compared("weights", 1, 1.0, None, 1e-6)]
    found = Verification(Plan(data=2), rows, 1e-4, "Verified with <b>.")
    assert not found and found.largest == 0.05
    html = found._repr_html_()
    assert "does NOT compute" in str(found) and '<span class="bad">differs' in html
    assert '<span class="good">ok' in html and "<b>" not in html and "&lt;b&gt;" in html


def test_fewer_layers_are_taken_where_memory_is_short(lm, monkeypatch):
    settings = {"batch_size": 2, "sequence_length": 64, "accumulation": 1, "precision": "float32"}
    deep = nb.LM(
        nb.models.build(
            lm.config.replace(num_layers=16, hidden_size=512, head_dim=256, intermediate_size=2048)
        ),
        lm.tokenizer,
    )
    assert _small_enough(Plan(data=2), deep, settings, None) == (deep, "")
    small, said = _small_enough(Plan(data=2), deep, settings, 0.25)
    assert small.config.num_layers == 4 and "4 of 16 layers and new weights." in said
    monkeypatch.setattr("nbllm.training.verification.memory_limit", lambda: int(1.3e9))
    small, said = _small_enough(Plan(data=2), deep, settings, None)
    assert small.config.num_layers < 16 and "does not fit in the memory" in said
    monkeypatch.setattr("nbllm.training.verification.memory_limit", lambda: int(1e8))
    with pytest.raises(UserError, match="Even with 2 layers"):
        _small_enough(Plan(data=1, pipeline=2), deep, {**settings, "accumulation": 2}, None)
    with pytest.raises(UserError, match="scale is 2"):
        _small_enough(Plan(data=2), deep, settings, 2)


def test_a_plan_that_cannot_work_is_refused_before_anything_starts(lm, text):
    with pytest.raises(UserError, match="2 attention heads cannot be split"):
        nb.verify(nb.Plan(tensor=4), lm, text)
