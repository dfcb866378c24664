"""What every objective must keep, and that one more is one file: a masked one is defined, and trained, here."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.distributed.layout import OneProcess
from nbllm.models import Decoder
from nbllm.nn.linear_cross_entropy import linear_cross_entropy
from nbllm.objectives import OBJECTIVES, Objective
from nbllm.training.objective import make_objective
from nbllm.training.requirements import longest_sequence
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
    """It has the special tokens of all objectives."""
    return nb.objectives.add_tokens(nb.data.train_tokenizer(texts, vocab_size=320), *OBJECTIVES)


@pytest.fixture(scope="module")
def stores(texts, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return [nb.data.pack(texts.select(part), tokenizer, folder=folder) for part in (range(8), range(8, 12))]


@pytest.fixture
def lm(tokenizer):
    return nb.LM.new("llama", tokenizer=tokenizer, **SHAPE)


LEARNERS = {  # a network that can learn what needs a verb; by family and what else it takes
    None: [("llama", {})],
    "score": [("llama", {})],
    "fill": [("bert", {})],
    "denoise": [("t5", {}), ("llama", {"network": "prefix_decoder"})],
    "infill": [
        ("gpt2", {"network": "prefix_decoder"}),
        ("gpt2", {"network": "prefix_decoder", "positions": "learned_2d"}),
    ],
}
OF_TEXT = [name for name in OBJECTIVES if not OBJECTIVES[name].only_examples]
PAIRS = [(name, *learner) for name in OF_TEXT for learner in LEARNERS[OBJECTIVES[name].needs]]


def make_model(family, tokenizer, **changes):
    return nb.LM.new(family, tokenizer=tokenizer, **SHAPE, **changes)


@pytest.fixture(params=OF_TEXT)
def objective(request, tokenizer):
    return OBJECTIVES[request.param].for_tokenizer(tokenizer)


@pytest.fixture(params=PAIRS, ids=str)
def pair(request, tokenizer):
    """An objective, and a network that can learn it."""
    name, family, changes = request.param
    return OBJECTIVES[name].for_tokenizer(tokenizer), make_model(family, tokenizer, **changes).model


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


def test_the_loss_is_a_sum_over_what_counts(pair, tokenizer):
    """So it adds up over parts of a batch, and so do the counts."""
    objective, network = pair
    batch = objective.batch(windows(objective, tokenizer), np.random.default_rng(1))
    whole, count = objective.loss(network, batch)
    assert whole.shape == ()
    assert whole.dtype == torch.float32
    assert type(count) in (int, float)  # weights of tokens add up to no whole number
    assert 0 < count <= BATCH * LENGTH
    parts = [
        objective.loss(network, {name: tensor[row : row + 1] for name, tensor in batch.items()})
        for row in range(BATCH)
    ]
    assert sum(part for _, part in parts) == count
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-5, atol=1e-4)


def test_windows_that_the_end_of_the_text_cuts_short_are_taken(pair, tokenizer):
    objective, network = pair
    for length in range(objective.overlap + 1, objective.window_length(LENGTH)):
        raw = windows(objective, tokenizer)[:, :length].copy()
        loss, count = objective.loss(network, objective.batch(raw, np.random.default_rng(length)))
        assert torch.isfinite(loss)
        assert count >= 0
        if objective.counts_every_token:
            assert count == BATCH * (length - objective.overlap)


def test_training_on_a_batch_lowers_its_loss(pair, tokenizer):
    objective, network = pair
    batch = objective.batch(windows(objective, tokenizer), np.random.default_rng(1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss, count = objective.loss(network, batch)
        losses.append(float(loss.detach()) / count)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


def test_it_is_shown(objective, tokenizer):
    """As a person reads it; what a text holds is escaped."""
    kind = type(objective)
    if kind.__module__ == __name__:
        return
    text = "A list <b>of</b> items. They are in order. " * 3
    shown, again = (kind.show(text, tokenizer=tokenizer, seed=1) for _ in range(2))
    assert shown == again and len(shown.seen) == len(shown.predicted) and any(shown.predicted)
    assert "predict" in repr(shown)
    html = shown._repr_html_()
    assert "<b>of" not in html and "&lt;" in html
    with pytest.raises(UserError, match="at least"):
        kind.show("", tokenizer=tokenizer)


def test_a_tokenizer_that_lacks_its_tokens_is_refused_and_can_be_given_them(objective, texts):
    kind = type(objective)
    bare = nb.data.train_tokenizer(texts, kind="byte")
    if kind.special_tokens:
        with pytest.raises(UserError, match=r"lacks|has no .*\n.*nb\.objectives\.add_tokens"):
            kind.for_tokenizer(bare)
        names = [name for name in OBJECTIVES if OBJECTIVES[name] is kind]
        size = len(nb.objectives.add_tokens(bare, *names))
        assert size == 257 + len(kind.special_tokens) == len(nb.objectives.add_tokens(bare, *names))
    kind.for_tokenizer(bare)


@pytest.mark.parametrize(
    ("name", "family", "changes"), [pair for pair in PAIRS if not pair[0].startswith("test_")], ids=str,
)  # fmt: skip
def test_it_trains_in_a_run_validates_and_is_replayed(name, family, changes, tokenizer, stores, tmp_path):
    """Two steps, back to the first, and two others; in the longest sequences for which there are positions."""
    model = make_model(family, tokenizer, **changes)
    objective = OBJECTIVES[name].for_tokenizer(tokenizer)
    training, held_out = stores
    run = nb.train(
        model, training, validation=held_out, folder=tmp_path, name="run", objective=name, steps=3, batch_size=3,
        sequence_length=longest_sequence(objective, model.config), validation_interval=1, validation_tokens=100,
        sample_interval=0, checkpoint_interval=1, precision="float32", num_threads=1,
    )  # fmt: skip
    run.wait(progress=False)
    assert run.state == "finished" and not run.events("warning")
    assert np.isfinite(run.history("loss")[1]).all()
    for event in run.events("evaluation"):
        assert np.isfinite(event["loss"]) and event["tokens"] > 0
        assert ("bits_per_byte" in event) == objective.counts_every_token
    assert nb.replay(run, progress=False).identical


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES[name].needs is not None])
def test_a_network_that_it_makes_no_sense_for_is_refused_with_the_reason(name, tokenizer, stores, tmp_path):
    needs = OBJECTIVES[name].needs
    for family, changes in (pair for learners in LEARNERS.values() for pair in learners):
        model = make_model(family, tokenizer, **changes)
        if needs not in model.model.can:
            refused = re.escape(f"cannot be trained with objective={name!r}: it is {model.model.kind}.")
            with pytest.raises(UserError, match=refused):
                nb.train(model, stores[0], folder=tmp_path, objective=name, sequence_length=32)
    assert not (tmp_path / "runs").exists()


def test_a_sequence_that_is_too_long_for_both_texts_together_is_refused(tokenizer, stores, tmp_path):
    for name, longest in (("span_corruption", 52), ("prefix_lm", 64), ("denoising", 32)):
        settings = {"folder": tmp_path, "objective": name}
        prefix = make_model("llama", tokenizer, network="prefix_decoder")
        if longest < 64:
            with pytest.raises(UserError, match=f"for inputs and targets.*\n.*sequence_length={longest} "):
                nb.train(prefix, stores[0], sequence_length=longest + 1, **settings)
        objective = OBJECTIVES[name].for_tokenizer(tokenizer)
        assert longest_sequence(objective, prefix.config) == longest
        assert longest_sequence(objective, make_model("t5", tokenizer).config) == 64
    assert not (tmp_path / "runs").exists()


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
    layout = OneProcess(lm.model)
    assert validation.measure(layout, "cpu") == validation.measure(layout, "cpu")


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


def test_a_decoder_is_trained_from_the_token_that_it_generates_from(texts):
    """T5's begins with the padding token, BART's with the end token, whichever objective trains them."""
    tokenizer = nb.objectives.add_tokens(nb.data.train_tokenizer(texts, vocab_size=300), *OBJECTIVES)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    config = nb.TrainConfig(objective="prefix_lm")
    for family, expected in (("t5", tokenizer.pad_token_id), ("bart", tokenizer.eos_token_id)):
        lm = make_model(family, tokenizer)
        start = lm.decoder_tokens.decoder_start_token_id
        objective = make_objective(config, tokenizer, start=start)
        batch = objective.batch(windows(objective, tokenizer), np.random.default_rng(0))
        assert start == expected and (batch["decoder_inputs"][:, 0] == expected).all()


def test_a_denoising_run_goes_back_branches_resumes_and_is_replayed(tokenizer, stores, tmp_path):
    """What is drawn for a batch depends on seed and position alone, wherever the run has been."""
    model = make_model("t5", tokenizer)
    run = nb.train(
        model, stores[0], validation=stores[1], folder=tmp_path, name="run", objective="mixture_of_denoisers",
        steps=1_000_000, batch_size=2, sequence_length=32, schedule="constant", warmup_steps=1, validation_interval=3,
        validation_tokens=100, sample_interval=4, sample_tokens=4, checkpoint_interval=2, precision="float32",
        num_threads=1,
    )  # fmt: skip
    run.wait(step=5, progress=False)
    run.rewind(2)
    run.stop()
    run.wait(progress=False)
    run.resume()
    run.set(steps=run.step + 4)
    run.wait(progress=False)
    assert run.state == "finished" and run.events("sample")
    assert nb.replay(run, progress=False).identical
    fork = run.fork("fork", step=2, steps=5).wait(progress=False)
    assert fork.state == "finished"
    whole = nb.train(
        make_model("t5", tokenizer), stores[0], validation=stores[1], folder=tmp_path, name="whole", **{
            name: value for name, value in fork.config.items() if value is not None
        },
    ).wait(progress=False)  # fmt: skip
    assert whole.events("end")[-1]["digest"] == fork.events("end")[-1]["digest"]
