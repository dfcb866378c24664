"""What every objective must keep, and that one more is one file: a masked one is defined, and trained, here."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.models import Decoder
from nbllm.nn.linear_cross_entropy import linear_cross_entropy
from nbllm.objectives import OBJECTIVES, Objective
from nbllm.training.validation import Validation

LENGTH = 16
BATCH = 4
SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 64, "seed": 1}


@OBJECTIVES.register("test_masked")
class Masked(Objective[Decoder]):
    """A quarter of the tokens, drawn at random, is replaced by the end-of-text token; only those count."""

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id

    @classmethod
    def for_tokenizer(cls, tokenizer):
        return cls(tokenizer.eos_token_id)

    def batch(self, windows, rng):
        masked = torch.from_numpy(rng.random(windows.shape) < 0.25)
        tokens = torch.from_numpy(windows)
        return {
            "inputs": torch.where(masked, self.mask_id, tokens),
            "targets": torch.where(masked, tokens, -100),
        }

    def loss(self, network, batch):
        targets = batch["targets"].flatten()
        count = int((targets != -100).sum())
        hidden = network.hidden(batch["inputs"]).flatten(0, 1)
        return linear_cross_entropy(hidden, network.head_weight, targets), count


@pytest.fixture(scope="module")
def texts():
    return nb.data.load("pydocs").select(range(12))


@pytest.fixture(scope="module")
def tokenizer(texts):
    """It has a mask token, which some objectives need."""
    tokenizer = nb.data.train_tokenizer(texts, vocab_size=320)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


@pytest.fixture(scope="module")
def stores(texts, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return [nb.data.pack(texts.select(part), tokenizer, folder=folder) for part in (range(8), range(8, 12))]


@pytest.fixture
def lm(tokenizer):
    return nb.LM.new("llama", tokenizer=tokenizer, **SHAPE)


@pytest.fixture(params=list(OBJECTIVES))
def objective(request, tokenizer):
    return OBJECTIVES[request.param].for_tokenizer(tokenizer)


@pytest.fixture
def network(objective, tokenizer):
    """One that can learn the objective."""
    family = {"fill": "bert"}.get(objective.needs, "llama")
    return nb.LM.new(family, tokenizer=tokenizer, **SHAPE).model


def windows(objective, tokenizer, length=LENGTH):
    shape = BATCH, objective.window_length(length)
    return np.random.default_rng(0).integers(0, len(tokenizer), shape)


def test_a_batch_is_tensors_by_name_one_row_a_window(objective, tokenizer):
    batch = objective.batch(windows(objective, tokenizer), np.random.default_rng(1))
    assert batch
    for name, tensor in batch.items():
        assert isinstance(name, str)
        assert tensor.shape[0] == BATCH
        assert tensor.device.type == "cpu"


def test_a_batch_follows_from_windows_and_generator_alone(objective, tokenizer):
    raw = windows(objective, tokenizer)
    before = raw.copy()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one, two = (objective.batch(raw, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(raw, before)
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_loss_is_a_sum_over_what_counts(objective, tokenizer, network):
    """So it adds up over parts of a batch, and so do the counts."""
    batch = objective.batch(windows(objective, tokenizer), np.random.default_rng(1))
    whole, count = objective.loss(network, batch)
    assert whole.shape == ()
    assert whole.dtype == torch.float32
    assert type(count) is int
    assert 0 < count <= BATCH * LENGTH
    parts = [
        objective.loss(network, {name: tensor[row : row + 1] for name, tensor in batch.items()})
        for row in range(BATCH)
    ]
    assert sum(part for _, part in parts) == count
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-5, atol=1e-4)


def test_windows_that_the_end_of_the_text_cuts_short_are_taken(objective, tokenizer, network):
    for length in range(objective.overlap + 1, objective.window_length(LENGTH)):
        raw = windows(objective, tokenizer)[:, :length].copy()
        loss, count = objective.loss(network, objective.batch(raw, np.random.default_rng(length)))
        assert torch.isfinite(loss)
        assert count >= 0
        if objective.counts_every_token:
            assert count == BATCH * (length - objective.overlap)


def test_training_on_a_batch_lowers_its_loss(objective, tokenizer, network):
    batch = objective.batch(windows(objective, tokenizer), np.random.default_rng(1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss, count = objective.loss(network, batch)
        losses.append(float(loss.detach()) / count)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture
def train(lm, stores, tmp_path):
    def train(name, **changes):
        config = {
            "objective": "test_masked", "steps": 12, "batch_size": 2, "sequence_length": 32, "accumulation": 3,
            "lr": 3e-3, "validation_interval": 4, "validation_tokens": 200, "sample_interval": 0,
            "checkpoint_interval": 4, "precision": "float32", "num_threads": 1,
        }  # fmt: skip
        training, held_out = stores
        fresh = nb.LM.new("llama", tokenizer=lm.tokenizer, **SHAPE)
        config |= changes
        return nb.train(fresh, training, validation=held_out, folder=tmp_path, name=name, **config)

    return train


def test_the_masked_objective_trains_validates_and_is_replayed(train):
    run = train("masked", steps=100_000, schedule="constant", warmup_steps=0)
    run.wait(step=9, progress=False)
    run.rewind(4)
    run.set(accumulation=2, steps=run.step + 12)
    run.wait(progress=False)
    losses = run.history("loss")[1]
    assert losses[-1] < losses[0]
    evaluations = run.events("evaluation")
    assert evaluations
    for event in evaluations:
        assert 0 < event["tokens"] < 200  # about a quarter of 200 was masked
        assert "bits_per_byte" not in event
    assert nb.replay(run, progress=False).identical


def test_the_masked_objective_resumes_bit_for_bit(train):
    endless = {"steps": 1_000_000, "schedule": "constant", "warmup_steps": 2}
    run = train("part", **endless)
    run.wait(step=6, progress=False)
    run.stop()
    run.wait(progress=False)
    run.resume()
    run.wait(step=run.step + 3, progress=False)
    run.stop()
    run.wait(progress=False)
    whole = train("whole", **{**endless, "steps": run.step}).wait(progress=False)
    assert run.events("end")[-1]["digest"] == whole.events("end")[-1]["digest"]


def test_what_validation_draws_is_the_same_at_every_measurement(lm, stores):
    config = nb.TrainConfig(sequence_length=32, batch_size=2, validation_tokens=200)
    validation = Validation(stores[1], Masked.for_tokenizer(lm.tokenizer), config)
    assert validation.measure(lm.model, "cpu") == validation.measure(lm.model, "cpu")


def test_a_step_in_which_nothing_counts_is_skipped_and_said(train, monkeypatch):
    real = Masked.batch
    rows = []

    def sometimes(self, windows, rng):
        rows.append(1)
        batch = real(self, windows, rng)
        return {**batch, "targets": torch.full_like(batch["targets"], -100)} if 4 <= len(rows) < 7 else batch

    monkeypatch.setattr(Masked, "batch", sometimes)
    run = train("empty", validation_interval=0).wait(progress=False)
    assert run.state == "finished"
    assert [warning["step"] for warning in run.events("warning")] == [2]


def test_a_rule_about_bits_per_byte_is_refused_where_they_are_not_measured(train):
    rule = nb.rules.Rule(name="bits", when="evaluation.bits_per_byte < 2", do=nb.rules.stop())
    with pytest.raises(UserError, match="does not report"):
        train("ruled", rules=[rule])


def test_an_unknown_objective_is_refused_and_the_nearest_is_named(train):
    with pytest.raises(UserError, match="causal_lm"):
        train("unknown", objective="causal_lmm")
