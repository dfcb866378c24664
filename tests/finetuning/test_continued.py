"""Domain adaptation: replay, the loss on both kinds of text, and what is forgotten."""

import numpy as np
import pytest

import nbllm as nb
from nbllm.core.errors import DataError, RunError, UserError
from nbllm.data.packing import pack
from nbllm.finetuning import METHODS, forgetting
from nbllm.finetuning.rows import rows_of
from nbllm.training.config import TrainConfig

SETTINGS = {
    "batch_size": 8, "sequence_length": 64, "sample_interval": 0, "checkpoint_interval": 0, "precision": "float32",
    "num_threads": 1, "validation_interval": 0, "schedule": "constant",
}  # fmt: skip


@pytest.fixture(scope="module")
def general():
    return nb.data.load("pydocs").select(range(6))


@pytest.fixture(scope="module")
def domain():
    return [f"{row['input']} {row['output']}" for row in rows_of("reminders")]


def test_rows_hold_every_token_once(lm, tokenizer, general):
    config = TrainConfig(objective="sft", sequence_length=50)
    made = METHODS["continued"](replay=["Some general text."], replay_share=0.25).prepare(general, lm, config)
    store, tokens = made.store, pack(general, tokenizer).read()
    assert store.sources == ("domain", "general") and store.shares == (0.75, 0.25)
    rows = store.columns["sources"] == 0
    inputs, targets = (store.columns[name][rows].ravel() for name in ("inputs", "targets"))
    assert np.array_equal(inputs[: len(tokens) - 1], tokens[:-1])
    assert np.array_equal(targets[targets >= 0], tokens[1:])
    assert "drawn 75% to 25%" in repr(made)
    held = METHODS["continued"]().prepare_validation({"general": general}, lm, config)
    assert held.store.sources == ("general",) and not held.store.shares


def test_replay_keeps_what_a_model_knew(tokenizer, general, domain, tmp_path):
    lm = nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=1, hidden_size=48, num_heads=2, max_positions=64, seed=3
    )
    nb.train(lm, general, folder=tmp_path, name="base", steps=60, lr=1e-2, **SETTINGS).wait(progress=False)
    found = {}
    for name, replay in (("without", None), ("with", general)):
        run = nb.finetune(
            lm.copy(), domain[:200], method="continued", replay=replay, replay_share=0.3,
            validation={"domain": domain[200:], "general": general}, folder=tmp_path, name=name, steps=30, lr=5e-3,
            **SETTINGS,
        )  # fmt: skip
        run.wait(progress=False)
        assert run.state == "finished"
        found[name] = forgetting(run)
        last = run.events("evaluation")[-1]
        assert found[name].after["general"] == pytest.approx(last["loss/general"], abs=1e-5)
    for name in found:
        assert found[name].change("domain") < -0.5
    assert found["without"].change("general") > 2 * found["with"].change("general")
    assert "general" in repr(found["with"]) and "<td>general</td>" in found["with"]._repr_html_()
    assert "loss/general" in run.events("step")[-1]
    assert nb.replay(run, progress=False).identical


def test_bad_calls(lm, tmp_path, domain):
    with pytest.raises(UserError, match="replay_share"):
        nb.finetune(lm, domain, method="continued", replay_share=0, folder=tmp_path)
    with pytest.raises(DataError, match="not 'other'"):
        nb.finetune(lm, domain, method="continued", validation={"other": domain}, folder=tmp_path)
    run = nb.finetune(lm, domain, method="continued", folder=tmp_path, steps=1, **SETTINGS)
    run.wait(progress=False)
    with pytest.raises(RunError, match="no held-out data"):
        forgetting(run)
