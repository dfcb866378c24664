"""What every method of fine-tuning must keep."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.finetuning import METHODS, Method
from nbllm.finetuning.alignment.kto import KahnemanTversky
from nbllm.finetuning.start import finetune
from nbllm.objectives import OBJECTIVES
from nbllm.training.config import TrainConfig
from nbllm.training.objective import make_objective
from nbllm.training.optimizers import OPTIMIZERS

ALL = list(METHODS)
ROWS = [
    {"prompt": "What is it?", "chosen": f" It is {word}, of course.", "rejected": f" No {word}."}
    for word in ("a list", "red", "two numbers")
]
OF_PREFERENCES = ("dpo", "ipo", "orpo", "simpo", "kto", "reward")


@pytest.fixture(scope="module")
def lm():
    tokenizer = nb.data.train_tokenizer(nb.data.load("pydocs").select(range(2)), vocab_size=300)
    return nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64
    )


@pytest.mark.parametrize("name", ALL)
def test_it_says_what_it_is_and_takes_no_name_twice(name):
    kind = METHODS[name]
    assert issubclass(kind, Method) and inspect.getdoc(kind)
    objective = OBJECTIVES[kind.objective]
    own = {field.name for field in dataclasses.fields(kind)}
    settings = {setting.name for setting in objective.settings}
    of_objective = [*settings, *objective.options]
    taken = [field.name for field in dataclasses.fields(TrainConfig)] + list(
        inspect.signature(finetune).parameters
    )
    of_optimizers = {setting.name for each in OPTIMIZERS for setting in OPTIMIZERS[each].settings}
    assert len(set(of_objective)) == len(of_objective) == len(objective.settings) + len(objective.options)
    assert not own & settings  # an option may be recorded for an argument, as a reward function's name is
    assert not (own | set(of_objective)) & (set(taken) | of_optimizers)
    for setting in objective.settings:
        assert (
            setting.default is not None and setting.help and setting.check(setting.default) == setting.default
        )
    assert all(0 < rate < 1 for rate in kind.learning_rates) and kind.batch_tokens > 0
    assert len(set(objective.metrics)) == len(objective.metrics)


@pytest.mark.parametrize("name", ALL)
def test_its_defaults_make_an_objective_and_survive_the_record(name, lm):
    config = TrainConfig(objective=METHODS[name].objective)
    again = TrainConfig.from_dict(config.to_dict())
    assert again == config and dict(make_objective(again, lm.tokenizer).values) == config.objective_settings
    for wrong in ({"objective_settings": 5}, {"objective_settings": {"no_such": 1.0}}, {"no_such": 1.0}):
        with pytest.raises(UserError):
            TrainConfig.from_dict({"objective": METHODS[name].objective, **wrong})


def prepared(name, lm):
    config = TrainConfig(
        objective=METHODS[name].objective, sequence_length=48, precision="float32", device="cpu"
    )
    method = METHODS[name]()
    trained = method.trained(lm)
    return make_objective(config, lm.tokenizer), trained.model, method.prepare(ROWS, trained, config).store


@pytest.mark.parametrize("name", OF_PREFERENCES)
def test_a_batch_follows_from_its_rows_and_the_loss_is_a_sum_over_them(name, lm):
    """So that accumulation and ranks change nothing; but for KTO's divergence, which is the batch's."""
    objective, network, store = prepared(name, lm)
    rows = store.take(list(range(store.num_rows)))
    before = {column: values.copy() for column, values in rows.items()}
    one, two = (objective.batch(rows, np.random.default_rng(seed)) for seed in (1, 2))
    assert all(torch.equal(one[each], two[each]) and len(one[each]) == store.num_rows for each in one)
    assert all(np.array_equal(rows[column], before[column]) for column in rows)
    whole, count = objective.loss(network, one)
    assert whole.shape == () and whole.dtype == torch.float32 and count == store.num_rows
    if isinstance(objective, KahnemanTversky):
        return
    parts = []
    for row in range(store.num_rows):  # each is padded less
        part = objective.batch(store.take([row]), np.random.default_rng(0))
        parts.append(objective.loss(network, part))
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-5, atol=1e-5)
    assert sum(part for _, part in parts) == pytest.approx(count)
