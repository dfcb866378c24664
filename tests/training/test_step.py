"""An optimizer step of several batches equals one of a single batch that holds them all."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from nbllm.data import WindowSource
from nbllm.distributed import Plan
from nbllm.distributed.layout import OneProcess
from nbllm.models import build, make_config
from nbllm.nn.linear_cross_entropy import linear_cross_entropy
from nbllm.nn.mixture_of_experts import load_balancing_loss, record_routing
from nbllm.objectives import CausalLM
from nbllm.objectives.measures import measure
from nbllm.training.config import TrainConfig
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers.adamw import AdamW
from nbllm.training.step import Padding, Stepper
from nbllm.training.train_state import TrainState
from nbllm.training.validation import Validation


class EveryThird(CausalLM):
    """Counts a part of the targets that differs from batch to batch."""

    def batch(self, windows, rng):
        batch = super().batch(windows, rng)
        dropped = torch.from_numpy(rng.random(batch["targets"].shape) < rng.random())
        return {**batch, "targets": batch["targets"].masked_fill(dropped, -100)}

    def loss(self, network, batch):
        targets = batch["targets"].flatten()
        hidden = network.hidden(batch["inputs"]).flatten(0, 1)
        return linear_cross_entropy(hidden, network.head_weight, targets), int((targets != -100).sum())


@pytest.mark.parametrize("objective", [CausalLM(), EveryThird()])
def test_accumulated_batches_are_one_batch_divided_by_all_that_counts(objective, lm, store):
    config = TrainConfig(batch_size=2, sequence_length=32, schedule="constant", warmup_steps=0)
    values = {**config.values, "accumulation": 3, "clip": 1e6}
    source = WindowSource(store, length=33, overlap=1)
    reference = copy.deepcopy(lm.model)
    stepper = Stepper(objective, Optimizer(OneProcess(lm.model), AdamW), source, config, "cpu")
    result = stepper.step(TrainState(values=values))

    parts = [objective.loss(reference, stepper.batch(position)) for position in (0, 2, 4)]
    loss = sum(part for part, _ in parts) / sum(count for _, count in parts)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()])
    assert result.good
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert (result.state.position, result.state.tokens) == (6, 6 * 32)


class Measuring(EveryThird):
    """Measures the share of targets that are even, and the loss by parity of a row's first token."""

    metrics = ("even", "never")
    sources = ("a", "b")

    def loss(self, network, batch):
        targets = batch["targets"]
        counted = targets != -100
        measure("even", (counted & (targets % 2 == 0)).sum(), counted.sum())
        measure("loss/a", 3.0, 2)
        return super().loss(network, batch)


def test_what_an_objective_measures_is_the_mean_over_all_batches_of_a_step(lm, store):
    config = TrainConfig(batch_size=2, sequence_length=32)
    values = {**config.values, "accumulation": 3}
    source = WindowSource(store, length=33, overlap=1)
    objective = Measuring()
    optimizer = Optimizer(OneProcess(lm.model), AdamW)
    stepper = Stepper(objective, optimizer, source, config, "cpu")
    targets = torch.cat([stepper.batch(position)["targets"] for position in (0, 2, 4)])
    counted = targets != -100
    even = float((counted & (targets % 2 == 0)).sum() / counted.sum())
    result = stepper.step(TrainState(values=values))
    assert result.measured == pytest.approx({"even": even, "loss/a": 1.5})
    measured = Validation(store, objective, config).measure(OneProcess(lm.model), "cpu")
    assert measured["loss/a"] == 1.5 and 0 < measured["even"] < 1 and "never" not in measured


def test_batches_are_made_again_and_their_randomness_is_their_own(lm, store):
    config = TrainConfig(batch_size=2, sequence_length=32)
    source = WindowSource(store, length=33, overlap=1)

    class Draws(CausalLM):
        def batch(self, windows, rng):
            return {"drawn": torch.from_numpy(rng.random(4))}

    def stepper(seed=0):
        optimizer = Optimizer(OneProcess(lm.model), AdamW)
        return Stepper(Draws(), optimizer, source, config.replace(seed=seed), "cpu")

    drawn = [stepper().batch(position)["drawn"] for position in (0, 2, 4)]
    again = stepper()
    assert torch.equal(again.batch(4)["drawn"], drawn[2])
    assert torch.equal(again.batch(0)["drawn"], drawn[0])
    assert len({tuple(d.tolist()) for d in [*drawn, stepper(seed=1).batch(0)["drawn"]]}) == 4


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_of_experts_loads_is_trained_on_and_not_shown(weight, store):
    config = make_config(
        "mixtral", vocab_size=store.vocab_size, hidden_size=32, num_layers=2, num_heads=2, num_experts=4,
        max_positions=32, router_loss_weight=weight,
    )  # fmt: skip
    model, objective = build(config, seed=1), CausalLM()
    training = TrainConfig(batch_size=2, sequence_length=32, schedule="constant", warmup_steps=0)
    optimizer = Optimizer(OneProcess(model), AdamW)
    source = WindowSource(store, length=33, overlap=1)
    stepper = Stepper(objective, optimizer, source, training, "cpu")
    reference = copy.deepcopy(model)
    batches = [stepper.batch(position) for position in (0, 2)]
    found = stepper.step(TrainState(values={**training.values, "accumulation": 2, "clip": 1e6}))
    shown, total = 0.0, 0.0
    for batch in batches:
        with record_routing() as routing:
            loss, count = objective.loss(reference, batch)
        shown += float(loss.detach()) / (2 * count)
        total = total + loss / (2 * count) + weight * load_balancing_loss(routing) / 2
    total.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()])
    assert found.loss == pytest.approx(shown, rel=1e-5)
    assert found.grad_norm == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("sequences", [8, 6, 2])
def test_any_number_of_ranks_draws_the_sequences_of_a_step_once_each(ranks, sequences):
    """Batch 8 of four ranks, taken up on two or three after three steps: sequences 24 to 31, once each."""
    drawn, shares = [], []
    for rank in range(ranks):
        stepper = Stepper.__new__(Stepper)
        stepper.layout = SimpleNamespace(data_rank=rank, data_size=ranks, plan=Plan())
        stepper.config = SimpleNamespace(batch_size=2)
        stepper.batch = lambda position, size=None: {"drawn": list(range(position, position + size))}
        own = stepper._batches(24, sequences)
        shares.append(len(own))
        drawn += [each for batch in own if not isinstance(batch, Padding) for each in batch["drawn"]]
    assert sorted(drawn) == list(range(24, 24 + sequences))
    assert len(set(shares)) == 1  # every rank takes part in every sum
