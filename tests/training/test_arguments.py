"""Settings by their names in other libraries; epochs, dtypes and devices."""

import json
import math

import pytest
import torch
from transformers import TrainingArguments

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.loader import WindowSource
from nbllm.training import TrainConfig
from nbllm.training.arguments import INSTEAD, SAME, instead_of, our_names
from nbllm.training.from_file import start_from_file


def test_every_name_leads_to_a_setting():
    ours = {*TrainConfig.names({}), "epochs"}
    assert set(SAME.values()) <= ours
    assert not ours.difference({"epochs"}) & (set(SAME) | set(INSTEAD))
    assert not set(SAME) & set(INSTEAD)


def test_names_of_transformers_mean_the_same(tmp_path):
    """Each is a setting of TrainingArguments, and has the value that it has there."""
    theirs = TrainingArguments(
        output_dir=tmp_path, learning_rate=2e-4, max_steps=70, per_device_train_batch_size=3,
        gradient_accumulation_steps=2, warmup_steps=4, weight_decay=0.05, adam_beta1=0.8, adam_beta2=0.9,
        adam_epsilon=1e-7, max_grad_norm=0.7, lr_scheduler_type="cosine", seed=5, eval_steps=11, save_steps=13,
        save_total_limit=6,
    )  # fmt: skip
    names = {*SAME, "warmup_steps", "weight_decay", "seed"} - {
        "num_train_epochs",
        "optim",
        "train_batch_size",
    }
    values = {name: getattr(theirs, name) for name in names if hasattr(theirs, name)}
    values["lr_scheduler_type"] = theirs.lr_scheduler_type.value
    config = TrainConfig.from_dict(values)
    assert (config.lr, config.steps, config.batch_size, config.accumulation) == (2e-4, 70, 3, 2)
    assert (config.warmup_steps, config.clip, config.schedule, config.seed) == (4, 0.7, "cosine", 5)
    assert config.optimizer_settings == {"beta1": 0.8, "beta2": 0.9, "eps": 1e-7, "weight_decay": 0.05}
    assert (config.validation_interval, config.checkpoint_interval, config.keep_checkpoints) == (11, 13, 6)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("logging_steps", "every step is recorded"),
        ("output_dir", "folder"),
        ("eval_dataset", "validation"),
        ("bf16", 'precision="bfloat16"'),
        ("gradient_checkpointing", "activation_checkpointing"),
        ("epochs", "nb.train(epochs=...)"),
        ("learningrate", "'lr'"),
        ("batchsize", "'batch_size'"),
        ("stps", "'steps'"),
        ("xyzzy", "Known: accumulation"),
    ],
)
def test_other_names_are_answered_by_what_to_write(name, hint):
    with pytest.raises(UserError, match=f"no setting '{name}'") as caught:
        TrainConfig.from_dict({name: 1})
    assert hint in caught.value.hint


def test_values_of_transformers_mean_the_same():
    config = TrainConfig.from_dict(
        {"lr_scheduler_type": "constant_with_warmup", "optim": "adamw_torch_fused"}
    )
    assert (config.schedule, config.optimizer) == ("constant", "adamw")
    assert TrainConfig.from_dict({"lr_scheduler_type": "linear"}).schedule == "linear"
    with pytest.raises(UserError, match="must be one of"):
        TrainConfig.from_dict({"lr_scheduler_type": "polynomial"})
    with pytest.raises(UserError):
        TrainConfig.from_dict({"schedule": ["linear"]})


def test_epoch_is_not_taken_for_eps():
    assert instead_of("epoch", {"eps", "epochs", "lr"}) == "Did you mean 'epochs'?"


def test_one_setting_under_two_names_is_refused():
    with pytest.raises(UserError, match="lr is given more than once: as lr, learning_rate"):
        our_names({"lr": 1e-3, "learning_rate": 1e-3})


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", torch.bfloat16])
def test_dtype_is_a_word(dtype):
    assert TrainConfig.from_dict({"dtype": dtype}).precision == "bfloat16"
    assert TrainConfig.from_dict({"precision": dtype}).precision == "bfloat16"


@pytest.mark.parametrize("dtype", ["float64", torch.float64, "f"])
def test_other_dtypes_are_refused_by_name(dtype):
    with pytest.raises(UserError, match="must be one of 'auto', 'float32', 'bfloat16', 'float16'"):
        TrainConfig.from_dict({"dtype": dtype})


def test_one_text_will_do_for_a_list():
    config = TrainConfig.from_dict({"sample_prompts": "def ", "freeze": "embedding.*"})
    assert (config.sample_prompts, config.freeze) == (("def ",), ("embedding.*",))


@pytest.fixture
def small(config):
    return {
        **{name: value for name, value in config.items() if name not in ("steps", "sequence_length")},
        "sample_interval": 0,
        "validation_interval": 0,
        "checkpoint_interval": 0,
    }


@pytest.mark.parametrize("name", ["epochs", "num_train_epochs"])
def test_epochs_become_steps(lm, store, small, tmp_path, capsys, name):
    options = {**small, "batch_size": 4, "accumulation": 2, "sequence_length": 64}
    run = nb.train(lm, store, folder=tmp_path, name="run", **options, **{name: 0.4}).wait(progress=False)
    windows = WindowSource(store, length=65, overlap=1).windows_per_epoch
    steps = math.ceil(0.4 * windows / 8)
    assert run.config["steps"] == run.step == steps
    assert "epochs" not in run.config
    assert run.config["warmup_steps"] == max(1, steps // 20)
    assert f"epochs=0.4 are {steps} steps of 8 x 64 tokens" in capsys.readouterr().out
    assert 0.4 <= run.events("step")[-1]["tokens"] / store.num_tokens < 0.4 + 8 * 64 / store.num_tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1, "steps": 5}, "epochs and steps are both given"),
        ({"num_epochs": 1, "max_steps": 5}, "epochs and steps are both given"),
        ({"epochs": 1, "num_epochs": 1}, "given more than once"),
        ({"epochs": 0}, "above 0"),
        ({"epochs": math.nan}, "above 0"),
        ({"epochs": "3"}, "above 0"),
        ({"epochs": True}, "above 0"),
    ],
)
def test_epochs_that_cannot_be_counted(lm, store, small, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        nb.train(lm, store, folder=tmp_path / "runs", **small, **changes)
    assert not (tmp_path / "runs").exists()


def test_sequences_are_as_long_as_the_model_and_the_text_allow(lm, store, texts, small, tmp_path, capsys):
    """`lm` has 64 positions."""
    run = nb.train(lm, store, folder=tmp_path, **small, steps=1).wait(progress=False)
    assert run.config["sequence_length"] == 64
    assert "sequence_length" not in capsys.readouterr().out
    short = nb.data.pack([texts["text"][0][:600]], lm.tokenizer, folder=tmp_path / "cache")
    run = nb.train(lm, short, folder=tmp_path, **{**small, "batch_size": 8}, steps=1).wait(progress=False)
    length = run.config["sequence_length"]
    assert length == max(32, short.num_tokens // 8) < 64
    assert f"sequence_length={length}, batch_size=8; the model has 64 positions." in capsys.readouterr().out


def test_the_default_is_bounded_for_models_of_long_context(tokenizer, texts, small, tmp_path, capsys):
    lm = nb.LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=8, num_heads=1, max_positions=5000)
    del small["batch_size"]
    run = nb.train(lm, texts, folder=tmp_path, **small, steps=1).wait(progress=False)
    assert (run.config["sequence_length"], run.config["batch_size"]) == (1024, 2)
    assert "sequence_length=1024, batch_size=2; the model has 5,000 positions." in capsys.readouterr().out
    for length, batch_size in ((64, 8), (256, 8), (500, 4), (3000, 1)):
        options = {**small, "sequence_length": length, "steps": 1}
        run = nb.train(lm, texts, folder=tmp_path, **options).wait(progress=False)
        assert (run.config["sequence_length"], run.config["batch_size"]) == (length, batch_size)
    assert "sequence_length" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("mps", "not on 'mps'"),
        ("xla", "not on 'xla'"),
        ("cuda:99", "but torch sees"),
        ("gpu", "no device 'gpu'"),
    ],
)
def test_devices_that_are_not_here(lm, store, small, tmp_path, device, message):
    with pytest.raises(UserError, match=message):
        nb.train(lm, store, folder=tmp_path / "runs", **small, steps=1, device=device)
    assert not (tmp_path / "runs").exists()


def test_a_fork_takes_the_same_names(lm, store, small, tmp_path):
    run = nb.train(lm, store, folder=tmp_path, name="run", max_steps=2, **small).wait(progress=False)
    fork = run.fork("fork", step=2, learning_rate=1e-4, max_steps=4, block_size=16).wait(progress=False)
    assert (fork.config["lr"], fork.step, fork.config["sequence_length"]) == (1e-4, 4, 16)
    with pytest.raises(UserError) as caught:
        run.fork("other", epochs=2)
    assert "here give steps" in caught.value.hint


def test_a_file_speaks_the_same_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "input.txt").write_text("\n".join(f"Line {n} of a text about {n * n}." for n in range(300)))
    text = """
        [data]
        source = "input.txt"
        [tokenizer]
        vocab_size = 280
        [model]
        family = "gpt2"
        num_layers = 1
        hidden_size = 16
        num_heads = 2
        max_positions = 32
        [train]
        num_train_epochs = 0.01
        learning_rate = 1e-4
        dtype = "float32"
        device = "cpu"
        freeze = "!layers[-1]"
    """
    (tmp_path / "run.toml").write_text(text)
    run = start_from_file(tmp_path / "run.toml", name="run")
    config = json.loads((run.path / "run.json").read_text())["config"]
    assert (config["lr"], config["precision"], config["sequence_length"]) == (1e-4, "float32", 32)
    assert config["freeze"] == ["*", "!layers[-1]"]
    assert f"epochs=0.01 are {config['steps']} steps" in capsys.readouterr().out
    run.wait(progress=False)
    for wrong, hint in (("logging_steps = 5", "every step"), ("epoch = 3", "'epochs'")):
        (tmp_path / "run.toml").write_text(text + wrong)
        with pytest.raises(UserError, match=r"\[train\] has no") as caught:
            start_from_file(tmp_path / "run.toml")
        assert hint in caught.value.hint


def test_a_file_adds_the_tokens_that_its_objective_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "input.txt").write_text("\n".join(f"Line {n} of a text about {n * n}." for n in range(300)))
    (tmp_path / "run.toml").write_text("""
        [data]
        source = "input.txt"
        [tokenizer]
        kind = "byte"
        [model]
        family = "llama"
        network = "prefix_decoder"
        num_layers = 1
        hidden_size = 16
        num_heads = 2
        max_positions = 64
        [train]
        objective = "blank_infilling"
        steps = 1
        sample_interval = 0
    """)
    run = start_from_file(tmp_path / "run.toml", name="run").wait(progress=False)
    tokenizer = nb.load(run).tokenizer
    assert run.state == "finished" and len(tokenizer) == 260 and tokenizer.mask_token == "[MASK]"
