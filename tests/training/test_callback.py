"""Runs of transformers' Trainer: recorded, steered by people and rules, rewound by the Trainer's own resuming."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time

import numpy as np
import pytest
import torch

from nbllm.core.errors import RefusedError, RunError, UserError
from nbllm.runs.commands import send
from nbllm.runs.lock import held_here
from nbllm.runs.rules import Rule, evaluate, pause, rewind, sample, save, scale, set as set_value, stop
from nbllm.runs.run import Run

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")


class Rows(torch.utils.data.Dataset):
    """Forty texts of sixteen random tokens."""

    def __init__(self, num=40):
        self.ids = torch.randint(0, 64, (num, 16), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


@pytest.fixture
def make(tmp_path, tokenizer):
    """Make a Trainer of a tiny GPT-2 with dropout; twelve steps in three epochs."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    def make(callbacks=(), folder="out", text=True, **changes):
        torch.manual_seed(1)
        shape = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2)
        usual = {
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_steps": 4,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 3,
        }
        return Trainer(
            model=GPT2LMHeadModel(shape),
            args=TrainingArguments(str(tmp_path / folder), **{**usual, **changes}),
            train_dataset=Rows(),
            eval_dataset=Rows(8),
            processing_class=tokenizer if text else None,
            callbacks=list(callbacks),
        )

    return make


@pytest.fixture
def recorder(tmp_path):
    """A callback whose run is in the test's folder."""
    from nbllm.training import RunCallback

    return lambda name="mine", **given: RunCallback(name, folder=tmp_path / "runs", **given)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def agree(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def actions(run):
    return [(a.step, a.action, a.outcome) for a in run.timeline.actions]


def test_a_trainer_becomes_a_run_and_trains_the_same(make, recorder, tmp_path):
    evaluating = {"eval_strategy": "steps", "eval_steps": 6}
    plain = make(folder="plain", **evaluating)
    plain.train()
    follower = recorder()
    with pytest.raises(RunError, match="no run yet"):
        _ = follower.run
    trainer = make([follower], **evaluating)
    result = trainer.train()
    run = follower.run
    assert result.global_step == 12
    assert (run.state, run.step, run.steps) == ("finished", 12, 12)
    logged = [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e]
    assert list(zip(*map(list, run.history("loss")), strict=True)) == logged
    assert set(run.history("lr")[1]) == {1e-2}
    assert np.isfinite(run.history("grad_norm")[1]).all()
    evaluated = [(e["step"], e["eval_loss"]) for e in trainer.state.log_history if "eval_loss" in e]
    assert list(zip(*map(list, run.history("evaluation.loss")), strict=True)) == evaluated
    assert [c.step for c in run.checkpoints] == [4, 8, 12]
    assert agree(weights(plain), weights(trainer))
    assert not list(run.path.rglob("*.bin"))  # no pickle among the copies
    assert run.events("warning") == []


def test_a_rewind_repeats_exactly_what_came(make, recorder):
    """Weights, optimizer, schedule, data order within an epoch and dropout are all restored."""
    plain = make(folder="plain", lr_scheduler_type="cosine")
    plain.train()
    follower = recorder(rules=[Rule(name="back", when="step == 7", do=rewind(1), limit=1)])
    trainer = make([follower], lr_scheduler_type="cosine")
    trainer.train()
    run = follower.run
    assert [e["step"] for e in run.events("step")] == [*range(1, 8), *range(5, 13)]
    losses = [e["loss"] for e in plain.state.log_history if "loss" in e]
    assert list(run.history("loss")[1]) == losses
    assert agree(weights(plain), weights(trainer))
    assert (run.state, run.timeline.session.number) == ("finished", 1)


def test_a_rate_set_lasts_through_schedule_and_rewind(make, recorder):
    """The rate is halved at step 3, saved at 4, and halved again after a rewind from 6 to 4: both must last."""
    rules = [
        Rule(name="first", when="step == 3", do=scale(lr=0.5), limit=1),
        Rule(name="second", when="step == 6", do=[rewind(1), scale(lr=0.5, clip=0.1)], limit=1),
    ]
    from transformers import TrainerCallback

    used = {}

    class Looks(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **parts):
            used[state.global_step + 1] = optimizer.param_groups[0]["lr"]

    follower = recorder(rules=rules)
    trainer = make([follower, Looks()], lr_scheduler_type="linear")
    trainer.train()
    run = follower.run
    assert actions(run) == [(3, "set", "applied"), (6, "rewind", "applied"), (4, "set", "applied")]
    linear = [1e-2 * (12 - step) / 12 for step in range(12)]
    factors = [1] * 3 + [0.5] + [0.25] * 8
    assert list(run.history("lr")[1]) == pytest.approx([a * b for a, b in zip(linear, factors, strict=True)])
    assert list(run.history("lr")[1]) == pytest.approx([used[step] for step in range(1, 13)])
    assert run.settings.values == {"lr": pytest.approx(2.5e-3), "clip": pytest.approx(0.1)}
    assert trainer.args.max_grad_norm == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"learning_rate": 0.0}, "began with a rate of 0"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 3},
            "no base rate",
        ),
    ],
)
def test_a_rate_that_cannot_be_set_is_refused_and_ends_no_training(make, recorder, changes, reason):
    """Before a rewind and after it."""
    asked = [set_value(lr=0.1), set_value(clip=0.5), rewind(1), set_value(lr=0.1), set_value(clip=0.1)]
    follower = recorder(rules=[Rule(name="all", when="step == 6", do=asked, limit=1)])
    trainer = make([follower], **changes)
    trainer.train()
    run = follower.run
    assert actions(run) == [
        (6, "set", "refused"),
        (6, "set", "applied"),
        (6, "rewind", "applied"),
        (4, "set", "refused"),
        (4, "set", "applied"),
    ]
    assert all(reason in a.reason for a in run.timeline.actions if a.outcome == "refused")
    assert (run.state, run.step) == ("finished", 12)
    assert run.settings.values == {"lr": changes.get("learning_rate", 1e-2), "clip": 0.1}
    assert trainer.args.max_grad_norm == 0.1


def test_a_rewind_restores_the_clipping_too(make, recorder):
    asked = [set_value(clip=0.01), rewind(1)]
    follower = recorder(rules=[Rule(name="b", when="step == 6", do=asked, limit=1)])
    trainer = make([follower])
    trainer.train()
    assert follower.run.settings.values["clip"] == trainer.args.max_grad_norm == 1


def test_rules_ask_for_all_that_a_trainer_can(make, recorder):
    asked = [save(), evaluate(), sample("The"), stop()]
    follower = recorder(rules=[Rule(name="all", when="step == 6 and loss > 0", do=asked)])
    trainer = make([follower], eval_strategy="steps", eval_steps=100)
    trainer.train()
    run = follower.run
    assert [a[1:] for a in actions(run)] == [(d["action"], "applied") for d in asked]
    assert [e["step"] for e in run.events("evaluation")] == [6]
    assert [c.step for c in run.checkpoints] == [4, 6]
    assert [(e["step"], e["prompt"], e["actor"]) for e in run.events("sample")] == [(6, "The", "rule:all")]
    assert run.events("sample")[0]["text"]
    assert (run.state, run.step, trainer.state.global_step) == ("stopped", 6, 6)
    assert "rule:all" in run.reason


def test_sampling_leaves_no_trace_in_the_training(make, recorder):
    plain = make(folder="plain")
    plain.train()
    follower = recorder(rules=[Rule(name="s", when="step > 0", do=sample("a"), cooldown=0, limit=99)])
    trainer = make([follower])
    trainer.train()
    assert len(follower.run.events("sample")) == 12
    assert agree(weights(plain), weights(trainer))


def test_a_person_steers_it_from_outside(make, recorder):
    follower = recorder()
    trainer = make([follower], max_steps=100_000, save_steps=100_000)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while follower._run is None or follower.run.step < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run = follower.run
        run.pause()
        held = run.step
        while [c.step for c in run.checkpoints] != [held]:  # the Trainer saves on its way to the pause
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
        assert (run.state, run.step) == ("paused", held)
        run.set(lr=2e-3)
        with pytest.raises(RefusedError, match="between steps"):
            run.save()
        run.resume()
        run.wait(step=held + 2, timeout=60, progress=False)
        assert run.history("lr")[1][held] == pytest.approx(2e-3)
        with pytest.raises(RefusedError, match="eval_strategy"):
            run.evaluate()
        with pytest.raises(RefusedError, match="at most 10"):
            run.set(lr=100)
        run.pause()
        assert run.rewind(held).args["to"] == held
        assert run.settings.values["lr"] == 1e-2  # as it was when that checkpoint was saved
        time.sleep(0.1)
        assert (run.state, run.step) == ("paused", held)  # it waits there
        run.resume()
        run.wait(step=held + 2, timeout=60, progress=False)
        assert run.history("lr")[1][held] == pytest.approx(1e-2)
    finally:
        with contextlib.suppress(RunError):
            follower.run.stop()
        thread.join(60)
    assert not thread.is_alive()
    assert run.state == "stopped"
    assert run.checkpoints[-1].step == run.step


def test_a_pause_by_a_rule_waits_for_a_person(make, recorder):
    follower = recorder(rules=[Rule(name="hold", when="step == 5", do=pause())])
    trainer = make([follower])
    thread = threading.Thread(target=trainer.train)
    thread.start()
    deadline = time.monotonic() + 60
    while follower._run is None or follower.run.state != "paused":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert follower.run.step == 5
    send(follower.run.path, "resume")
    thread.join(60)
    assert follower.run.state == "finished"


def test_a_loss_that_is_not_finite_is_acted_on_where_the_trainer_shows_it(make, recorder):
    from nbllm.runs.rules import nan

    follower = recorder(rules=[nan()])
    trainer = make([follower], logging_nan_inf_filter=False)
    compute = trainer.compute_loss

    def spoiled(model, inputs, **more):
        loss = compute(model, inputs, **more)
        hot = trainer.optimizer.param_groups[0]["lr"] > 6e-3
        return loss * (float("nan") if trainer.state.global_step == 6 and hot else 1.0)

    trainer.compute_loss = spoiled
    trainer.train()
    run = follower.run
    assert actions(run) == [(7, "rewind", "applied"), (4, "set", "applied")]
    assert run.state == "finished"
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())


def test_an_error_is_the_runs_failure_and_the_next_training_is_a_run_of_its_own(make, recorder):
    follower = recorder()
    trainer = make([follower])
    compute, broken = trainer.compute_loss, [True]

    def fail(model, inputs, **more):
        if broken[0] and trainer.state.global_step == 5:
            raise ZeroDivisionError("oh")
        return compute(model, inputs, **more)

    trainer.compute_loss = fail
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    first = follower.run
    assert (first.state, first.step) == ("failed", 5)
    assert first.reason.startswith("ZeroDivisionError: oh")
    assert not held_here(first.path)
    broken[0] = False
    trainer.train()
    assert [follower.run.name, follower.run.state] == ["mine-2", "finished"]


def test_a_trainer_stops_when_the_folder_of_its_run_is_deleted(make, recorder):
    follower = recorder()
    trainer = make([follower], max_steps=1000, save_steps=3)
    compute = trainer.compute_loss

    def lose_the_folder(model, inputs, **more):
        if trainer.state.global_step == 5:
            shutil.rmtree(follower.run.path)
        return compute(model, inputs, **more)

    trainer.compute_loss = lose_the_folder
    trainer.train()
    assert trainer.state.global_step == 6
    assert not follower.run.path.exists()
    assert not held_here(follower.run.path)


def test_an_interrupted_trainer_has_stopped(make, recorder):
    follower = recorder()
    trainer = make([follower])

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    trainer.compute_loss = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (follower.run.state, follower.run.reason) == ("stopped", "interrupted in the step after 0")


def test_a_smaller_batch_after_running_out_of_memory_is_a_run_of_its_own(make, recorder):
    """With `auto_find_batch_size` the Trainer begins again by itself; what ran out of memory has failed."""
    follower, tried = recorder(), []
    trainer = make([follower], auto_find_batch_size=True)
    compute = trainer.compute_loss

    def fail_once(model, inputs, **more):
        tried.append(len(inputs["input_ids"]))
        if len(tried) == 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return compute(model, inputs, **more)

    trainer.compute_loss = fail_once
    trainer.train()
    assert tried[0] > tried[1]
    runs = [Run(follower.run.path.parent / name) for name in ("mine", "mine-2")]
    assert [run.state for run in runs] == ["failed", "finished"]
    assert "without reporting an end" in runs[0].reason
    assert not any(held_here(run.path) for run in runs)


def test_an_error_before_the_first_step_leaves_no_run(make, recorder, tmp_path):
    trainer = make([recorder()])
    with pytest.raises(ValueError, match="nothing"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nothing"))
    assert not (tmp_path / "runs").exists()


def test_a_trainer_without_a_recorder_trains_as_before(make, recorder, tmp_path):
    recorder()  # which wraps Trainer.train
    trainer = make()
    assert trainer.train().global_step == 12
    assert not (tmp_path / "runs").exists()
    with pytest.raises(TypeError, match="unexpected"):
        trainer.train(nonsense=1)


def test_what_train_is_given_reaches_the_trainer(make, recorder):
    make([recorder("first")]).train()
    follower = recorder("second")
    trainer = make([follower], max_steps=16)
    checkpoint = f"{trainer.args.output_dir}/checkpoint-8"
    assert trainer.train(checkpoint, ignore_keys_for_eval=["x"]).global_step == 16
    assert [e["from_step"] for e in follower.run.events("start")] == [8]


def test_losses_that_are_logged_more_rarely_stand_at_their_steps(make, recorder):
    follower = recorder()
    trainer = make([follower], logging_steps=5)
    trainer.train()
    steps, losses = follower.run.history("loss")
    assert list(steps) == list(range(1, 13))
    assert [int(s) for s, loss in zip(steps, losses, strict=True) if np.isfinite(loss)] == [5, 10]
    by_epoch = recorder("epochs")
    make([by_epoch], folder="e", logging_strategy="epoch", max_steps=-1, num_train_epochs=2).train()
    steps, losses = by_epoch.run.history("loss")
    assert [int(s) for s, loss in zip(steps, losses, strict=True) if np.isfinite(loss)] == [5, 10]
    assert by_epoch.run.state == "finished"


def test_what_a_trainer_cannot_do_is_said(make, recorder):
    follower = recorder()
    make([follower], text=False, save_only_model=True).train()
    always = {"start_again", "fork", "replay", "freeze", "unfreeze"}
    assert set(follower.run.cannot) == always | {"rewind", "evaluate", "sample"}
    assert "save_only_model" in follower.run.cannot["rewind"]
    assert "processing_class" in follower.run.cannot["sample"]


def test_it_can_be_added_later_and_refuses_several_processes(make, recorder, monkeypatch):
    from transformers import TrainingArguments

    follower = recorder()
    trainer = make()
    trainer.add_callback(follower)
    trainer.train()
    assert follower.run.state == "finished"
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(UserError, match="one process"):
        follower.on_train_begin(trainer.args, trainer.state, trainer.control)
