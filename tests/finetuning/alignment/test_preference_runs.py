"""Runs that learn from pairs: their first loss, what they report, the reference, and that they are exact."""

import numpy as np
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.sample_store import SampleStore
from nbllm.finetuning import METHODS
from nbllm.training.config import TrainConfig
from nbllm.training.objective import make_objective
from tests.finetuning.killing import kill_and_finish

WORDS = ("one", "two", "six", "ten", "red", "bad")
ROWS = [
    {"prompt": [{"role": "user", "content": f"Say {word}"}], "chosen": word * 2, "rejected": f"No {word}!"}
    for word in WORDS
]
SETTINGS = {
    "batch_size": 2, "sequence_length": 48, "checkpoint_interval": 4, "sample_interval": 0, "lr": 1e-2,
    "precision": "float32", "num_threads": 1, "validation_interval": 4, "beta": 0.5, "device": "cpu",
}  # fmt: skip


def test_a_dpo_run_is_steered_rewound_forked_and_replayed(lm, tmp_path):
    base = {name: value.clone() for name, value in lm.model.state_dict().items()}
    run = nb.finetune(
        lm, ROWS, method="dpo", validation=ROWS[:3], adapter=nb.LoRA(rank=4), folder=tmp_path, name="dpo",
        steps=8, **SETTINGS,
    )  # fmt: skip
    run.wait(progress=False)
    first = run.events("step")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert abs(first["reward_chosen"]) < 1e-5 and abs(first["reward_rejected"]) < 1e-5 and first["kl"] < 1e-8
    _, margins = run.history("evaluation.reward_margin")
    _, accuracies = run.history("evaluation.reward_accuracy")
    assert margins[-1] > 0.1 and accuracies[-1] == 1
    assert run.events("step")[-1]["kl"] > 0
    assert all(torch.equal(lm.model.state_dict()[name], value) for name, value in base.items())
    assert "beta" in {setting.name for setting in run.settings}
    assert nb.replay(run, progress=False).identical

    fork, other = (run.fork(name, step=4, beta=beta) for name, beta in (("same", 0.5), ("other", 0.1)))
    weights = []
    for each in (run, fork, other):
        each.wait(progress=False)
        weights.append(nb.load(each).model(torch.tensor([[3, 7, 5]])).detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])

    again = nb.attach(run.path).fork("rewound", step=8, steps=2000)
    again.wait(step=16, timeout=60, progress=False)
    again.pause()
    assert again.set(beta=0.25).outcome == "applied"
    assert again.rewind(12).outcome == "applied"
    again.resume()
    again.wait(step=again.step + 3, timeout=60, progress=False)
    again.stop()
    again.wait(timeout=60, progress=False)
    assert nb.replay(again, progress=False).identical


def test_in_bfloat16_too_nothing_is_lost_or_won_before_the_first_step(tokenizer, tmp_path):
    """Though answers are in batches of another width than where the reference read them."""
    lm = nb.LM.new("llama", tokenizer=tokenizer, num_layers=2, hidden_size=64, num_heads=2, max_positions=256)
    rows = [
        {
            "prompt": "Say it.",
            "chosen": f" {word} and" * (3 + 7 * place),
            "rejected": f" no {word}" * (9 - place),
        }
        for place, word in enumerate(WORDS)
    ]
    settings = SETTINGS | {
        "precision": "bfloat16",
        "sequence_length": 200,
        "validation_interval": 0,
        "beta": 50,
    }
    run = nb.finetune(
        lm, rows, method="dpo", adapter=nb.LoRA(rank=2), folder=tmp_path, steps=1, **settings
    ).wait(progress=False)
    first = run.events("step")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert abs(first["reward_chosen"]) < 1e-5 and abs(first["reward_rejected"]) < 1e-5


def test_an_adapter_that_was_on_stays_on_in_the_reference(lm, tmp_path):
    """What it learnt by supervised fine-tuning is part of the reference, though training goes on with it."""
    adapter = lm.attach(nb.LoRA(rank=2))
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter += 0.1
    run = nb.finetune(lm, ROWS, method="dpo", folder=tmp_path, steps=4, **SETTINGS)
    run.wait(progress=False)
    losses = [event["loss"] for event in run.events("step")]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5) and losses[-1] < 0.69
    store = SampleStore.open(run.record["data"]["train"]["path"])
    tokens, length = store.columns["chosen"][0], int(store.columns["chosen_length"][0])
    first = nb.load(run, at_step=0)
    for model, is_reference in ((first, True), (lm, False)):
        scores = model.score_tokens([tokens[:length].tolist()])[0]
        counted = store.columns["chosen_targets"][0][1:length] != -100
        found = float(scores[torch.from_numpy(counted)].sum())
        assert (abs(found - float(store.columns["reference_chosen"][0])) < 1e-4) == is_reference


@pytest.mark.parametrize("method", ["ipo", "orpo", "simpo", "kto"])
def test_each_method_learns_which_answers_are_better(lm, tmp_path, method):
    settings = {key: value for key, value in SETTINGS.items() if key != "beta"}
    run = nb.finetune(
        lm, ROWS, method=method, validation=ROWS, folder=tmp_path, steps=12, **settings | {"lr": 3e-3}
    ).wait(progress=False)
    _, accuracies = run.history("evaluation.reward_accuracy")
    assert run.state == "finished" and accuracies[-1] > 0.8
    objective = make_objective(TrainConfig.from_dict(run.config), lm.tokenizer)
    assert set(objective.metrics) <= run.events("step")[-1].keys()


@pytest.mark.parametrize("method", ["dpo", "ipo", "orpo", "simpo", "kto"])
def test_a_batch_of_which_all_is_cut_is_finite(lm, method):
    config = TrainConfig(objective=method, sequence_length=48, precision="float32", device="cpu")
    store = METHODS[method]().prepare(ROWS, lm, config).store
    columns = store.take([0, 1])
    for name in columns:
        if name.endswith("_targets"):
            columns[name] = np.full_like(columns[name], -100)
    objective = make_objective(config, lm.tokenizer)
    loss, count = objective.loss(lm.model, objective.batch(columns, np.random.default_rng(0)))
    loss.backward()
    assert count == 2 and loss.isfinite()
    assert all(each.grad.isfinite().all() for each in lm.model.parameters() if each.grad is not None)


def test_what_cannot_learn_so_is_refused(tokenizer, lm, tmp_path):
    bert = nb.LM.new("bert", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64)
    with pytest.raises(UserError, match="cannot"):
        nb.finetune(bert, ROWS, method="dpo", folder=tmp_path, steps=2)
    for wrong, said in (
        ({"beta": 0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"gamma": 1.0}, "gamma"),
    ):
        with pytest.raises(UserError, match=said):
            nb.finetune(lm, ROWS, method="dpo", folder=tmp_path, steps=2, **SETTINGS | wrong)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(lm, tmp_path):
    run = nb.finetune(
        lm, ROWS, method="dpo", adapter=nb.LoRA(rank=2), folder=tmp_path, name="killed", where="process",
        steps=200, **SETTINGS | {"checkpoint_interval": 50, "validation_interval": 0},
    )  # fmt: skip
    kill_and_finish(run, step=60)
