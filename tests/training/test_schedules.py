"""Schedules, checked against transformers'."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from nbllm.training import TrainConfig
from nbllm.training.schedules import schedule_factor


def factors_of(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_cosine_equals_transformers_after_warmup():
    config = TrainConfig(steps=100, warmup_steps=10, min_lr_ratio=0.1, schedule="cosine")
    reference = factors_of(
        lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, 10, 100, min_lr_rate=0.1), 100
    )
    ours = [schedule_factor("cosine", step, config) for step in range(100)]
    assert ours[10:] == pytest.approx(reference[10:])


def test_linear_equals_transformers_after_warmup():
    config = TrainConfig(steps=100, warmup_steps=10, min_lr_ratio=0.0, schedule="linear")
    reference = factors_of(lambda o: get_linear_schedule_with_warmup(o, 10, 100), 100)
    ours = [schedule_factor("linear", step, config) for step in range(100)]
    assert ours[10:] == pytest.approx(reference[10:])
    raised = TrainConfig(steps=100, warmup_steps=10, min_lr_ratio=0.2, schedule="linear")
    assert [schedule_factor("linear", step, raised) for step in (10, 55, 100)] == pytest.approx(
        [1.0, 0.6, 0.2]
    )


def test_warmup_is_transformers_one_step_ahead():
    """Ours begins at 1 / warmup, not at a step that does nothing."""
    config = TrainConfig(steps=100, warmup_steps=10, schedule="constant")
    reference = factors_of(lambda o: get_constant_schedule_with_warmup(o, 10), 101)
    ours = [schedule_factor("constant", step, config) for step in range(100)]
    assert ours == pytest.approx(reference[1:])


def test_wsd_is_stable_and_then_falls_to_the_ratio():
    config = TrainConfig(steps=100, warmup_steps=10, min_lr_ratio=0.2, decay_fraction=0.3, schedule="wsd")
    values = [schedule_factor("wsd", step, config) for step in range(101)]
    assert values[9:71] == [1.0] * 62
    assert all(a > b for a, b in itertools.pairwise(values[71:]))
    assert values[100] == pytest.approx(0.2)
    # Halfway through the decay: 1 - sqrt(1/2) of the way above the ratio (arXiv:2405.18392).
    assert values[85] == pytest.approx(0.2 + 0.8 * (1 - 0.5**0.5))


def test_no_warmup_begins_at_the_peak():
    config = TrainConfig(steps=10, warmup_steps=0)
    assert schedule_factor("cosine", 0, config) == 1.0
