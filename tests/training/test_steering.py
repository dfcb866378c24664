"""A run in a thread, steered from outside: every action takes effect at the step that is recorded."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import time
import weakref

import pytest
import torch
from safetensors.torch import load_file

import nbllm as nb
from nbllm.core.errors import DataError, RefusedError, RunError, UserError
from nbllm.models.decoder import Decoder
from nbllm.nn.compute import decisions
from nbllm.nn.compute.decisions import PLAIN
from nbllm.nn.compute.profile import MachineProfile
from nbllm.opening import load
from nbllm.runs.commands import send
from nbllm.runs.lock import held_here
from nbllm.training import fork, trainer


@pytest.fixture
def start(lm, store, held_out, config, tmp_path):
    """Start a run in a thread; whatever happens, it is ended with the test."""
    started = []

    def start(**changes):
        run = nb.train(lm, store, validation=held_out, folder=tmp_path, name="run", **{**config, **changes})
        started.append(run)
        return run

    yield start
    for run in started:
        with contextlib.suppress(RunError):  # it may end, or be ending, by itself
            run.stop()


def weights(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters()}


def test_a_run_returns_at_once_and_leaves_a_trained_model(start, lm, config):
    before = weights(lm)
    run = start()
    assert run.step < config["steps"]
    run.wait(progress=False)
    assert run.state == "finished"
    steps, losses = run.history("loss")
    assert list(steps) == list(range(1, 13))
    assert losses[-1] < losses[0]
    assert [e["step"] for e in run.events("evaluation")] == [6, 12]
    assert [e["step"] for e in run.events("sample")] == [6, 12]
    assert [c.step for c in run.checkpoints] == [0, 4, 8, 12]
    # The user's model has the new weights, the same as the last checkpoint's, and says where they come from.
    assert lm.origin == run.name
    stored = load(run.checkpoints[-1].path)
    for name, weight in weights(lm).items():
        assert torch.equal(weight, dict(stored.model.named_parameters())[name])
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(lm).items())


def test_a_run_that_has_ended_holds_no_model_any_more(start):
    def models():
        gc.collect()
        return [thing for thing in gc.get_objects() if type(thing) is Decoder]

    known = weakref.WeakSet(models())  # of this test and others
    start().wait(progress=False)
    deadline = time.monotonic() + 60
    while set(models()) - set(known) and time.monotonic() < deadline:  # its thread may still have to end
        time.sleep(0.1)
    assert not set(models()) - set(known)


def test_two_runs_with_the_same_seed_agree_bit_for_bit(lm, store, config, tmp_path):
    digests = []
    for name in ("one", "two"):
        fresh = nb.LM.new(
            "llama", tokenizer=lm.tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=32
        )
        run = nb.train(fresh, store, folder=tmp_path, name=name, **config).wait(progress=False)
        digests.append(run.events("end")[-1]["digest"])
    assert digests[0] == digests[1]


def test_pause_holds_within_one_step_and_resume_goes_on(start):
    run = start(steps=100_000)
    run.wait(step=3, progress=False)
    outcome = run.pause()
    assert run.state == "paused"
    held = run.step
    assert held == outcome.step
    time.sleep(0.2)
    assert run.step == held
    assert run.checkpoints[-1].step == held  # a paused run can be left alone: nothing is lost
    run.resume()
    run.wait(step=held + 2, progress=False)
    run.stop()
    assert run.wait(progress=False).state == "stopped"


def test_pause_is_answered_at_the_step_after_it_was_asked(start):
    run = start(steps=100_000)
    run.wait(step=3, progress=False)
    asked = run.step
    command = send(run.path, "pause")
    sent = time.time()  # from here on the command lies in the folder
    while run.timeline.answer(command.id) is None:
        time.sleep(0.001)
    pause = run.timeline.answer(command.id)
    later = [e["step"] for e in run.events("step") if e["time"] > sent and e["step"] <= pause.step]
    assert pause.step >= asked
    assert len(later) <= 1  # at most the step that was under way
    assert all(e["step"] <= pause.step for e in run.events("step"))


def test_a_setting_acts_from_the_next_step_with_its_actor(start):
    run = start(steps=100_000, schedule="constant", warmup_steps=0)
    run.wait(step=3, progress=False)
    outcome = run.as_actor("agent:tuner").set(lr=5e-4, weight_decay=0.0)
    run.wait(step=outcome.step + 3, progress=False)
    run.stop()
    steps, rates = run.history("lr")
    assert all(rate == pytest.approx(3e-3) for s, rate in zip(steps, rates, strict=True) if s <= outcome.step)
    assert all(rate == pytest.approx(5e-4) for s, rate in zip(steps, rates, strict=True) if s > outcome.step)
    action = next(e for e in run.events("action") if e["action"] == "set")
    assert (action["actor"], action["outcome"], action["step"]) == ("agent:tuner", "applied", outcome.step)


def test_every_declared_setting_can_be_set(start):
    run = start(steps=100_000)
    values = {s.name: run.config[s.name] for s in run.settings}
    assert set(values) == {"lr", "beta1", "beta2", "eps", "weight_decay", "clip", "accumulation", "steps"}
    outcome = run.set(**{**values, "accumulation": 2, "steps": 50_000})
    run.wait(step=outcome.step + 2, progress=False)
    run.stop()
    tokens = dict(zip(*(list(x) for x in run.history("tokens")), strict=True))
    assert tokens[outcome.step + 2] - tokens[outcome.step + 1] == 2 * 2 * 32


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"lr": -1}, "at least 0"),
        ({"lr": float("nan")}, "must be a number"),
        ({"lr": "fast"}, "must be a number"),
        ({"clip": 0}, "at least"),
        ({"accumulation": 1.5}, "whole number"),
        ({"learning_rate": 1e-3}, "no setting"),
        ({"batch_size": 4}, "no setting"),
        ({}, "Nothing to set"),
    ],
)
def test_a_request_out_of_range_is_refused_with_the_reason(start, values, reason):
    run = start(steps=100_000)
    with pytest.raises(RefusedError, match=reason):
        run.set(**values)


@pytest.mark.parametrize(
    ("action", "args", "reason"),
    [
        ("set", {"lr": 7}, "at most 1"),
        ("set", {"lr": None}, "must be a number"),
        ("set", {"seed": 1}, "no setting 'seed'"),
        ("set", {"steps": 1}, "fewer than"),
        ("freeze", {"patterns": ["nothing.like.it"]}, "matches no parameter"),
        ("freeze", {"patterns": ["*"]}, "nothing would be left"),
        ("freeze", {"patterns": []}, "one or more names"),
        ("unfreeze", {"patterns": ["embedding.*"]}, "nothing is"),
        ("rewind", {"step": -1}, "at least 0"),
        ("rewind", {"step": "x"}, "whole number"),
        ("rewind", {}, "needs step"),
        ("resume", {}, "not paused"),
        ("explode", {}, "no action"),
        ("fork", {"name": "x"}, "no action"),
        ("scale", {"lr": 2}, "no action"),
        ("pause", {"now": True}, "cannot take 'now'"),
        ("unfreeze", {"patterns": None}, "needs patterns"),
        ("unfreeze", {"patterns": 5}, "names of model parts"),
        ("freeze", {"patterns": 5}, "names of model parts"),
        ("freeze", {"patterns": ["ok", {}]}, "names of model parts"),
        ("freeze", {"patterns": ["\ud83d"]}, "half a character"),
        ("stop", {"reason": ["x"]}, "must be a text"),
        ("sample", {"prompt": ["a"] * 150_000}, "must be a text, not a list of 150,000 entries"),
        ("sample", {"prompt": "\ud83d"}, "half a character"),
        ("sample", {"prompt": "x" * 100_001}, "at most 100,000"),
        ("sample", {"max_new_tokens": 10**400}, "whole number"),
        ("sample", {"prompt": 3}, "must be a text"),
        ("sample", {"__class__": 1}, "cannot take"),
        ("sample", {"max_new_tokens": -4}, ""),
    ],
)
def test_the_loop_itself_refuses_what_front_ends_let_through(start, action, args, reason):
    run = start(steps=100_000)
    run.wait(step=2, progress=False)
    command = send(run.path, action, args)
    while (answer := run.timeline.answer(command.id)) is None:
        assert run.is_live, run.reason
        time.sleep(0.005)
    assert answer.outcome == "refused"
    assert reason in answer.reason
    run.wait(step=run.step + 1, progress=False)  # and it goes on
    assert run.is_live


def test_frozen_parts_do_not_move(start):
    run = start(steps=100_000, checkpoint_interval=0)

    def paused_after(num_steps):
        run.resume()
        run.wait(step=run.step + num_steps, progress=False)
        return parameters_at_pause()

    def parameters_at_pause():
        run.pause()
        return dict(load(run.checkpoints[-1].path).model.named_parameters())

    first = parameters_at_pause()
    run.freeze("embedding.*", "blocks.0.*")
    second = paused_after(3)
    run.unfreeze("blocks.0.*")
    third = paused_after(3)
    moved = [{n for n in first if not torch.equal(a[n], b[n])} for a, b in ((first, second), (second, third))]
    frozen = {n for n in first if n.startswith(("embedding.", "blocks.0."))}
    assert moved[0] == set(first) - frozen
    assert moved[1] == set(first) - {"embedding.weight"}


def test_what_is_frozen_from_the_start_does_not_move_and_has_no_moments(start, lm):
    before = weights(lm)
    run = start(freeze=["embedding.*", "*.query.*"]).wait(progress=False)
    frozen = {name for name in before if name.startswith("embedding.") or ".query." in name}
    moved = {name for name, weight in weights(lm).items() if not torch.equal(weight, before[name])}
    assert moved == set(before) - frozen
    state = load_file(run.checkpoints[-1].path / "optimizer.safetensors")
    assert {name.partition(".")[2] for name in state} == moved
    first = dict(load(run.checkpoints[0].path).model.named_parameters())

    def moved_by(fork):
        after = load(fork.wait(progress=False).checkpoints[-1].path).model.named_parameters()
        return {name for name, weight in after if not torch.equal(weight, first[name])}

    assert moved_by(run.fork("same", step=0)) == moved
    assert moved_by(run.fork("thawed", step=0, freeze=["norm.*"])) == set(before) - {"norm.weight"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["nothing.like.it"], "matches no parameter"),
        (["*"], "nothing would be left to train"),
        (5, "freeze must be a text or a list of texts"),
        ([5], "freeze must be a text or a list of texts"),
    ],
)
def test_what_cannot_be_frozen_is_refused_before_a_run_is_made(start, tmp_path, patterns, message):
    with pytest.raises(UserError, match=message):
        start(freeze=patterns)
    assert not (tmp_path / "run").exists()


def test_rewind_restores_everything_and_repeats_exactly(start):
    run = start(steps=100_000, validation_interval=0, sample_interval=0)
    run.wait(step=9, progress=False)
    first = dict(zip(*(list(x) for x in run.history("loss")), strict=True))
    outcome = run.rewind(4)
    assert outcome.args["to"] == 4
    run.wait(step=9, progress=False)
    run.stop()
    steps, losses = run.history("loss")
    assert list(steps) == list(range(1, len(steps) + 1))
    for step, loss in list(zip(steps, losses, strict=True))[:9]:
        assert loss == first[step]  # same data, same weights, same optimizer: the same numbers


def test_sample_answers_a_prompt(start):
    run = start(steps=100_000)
    text = run.sample("The value", max_new_tokens=5)
    assert isinstance(text, str)
    event = next(e for e in run.events("sample") if e["prompt"] == "The value")
    assert (event["text"], event["actor"]) == (text, "person")


def test_fork_goes_on_from_a_checkpoint_with_changes(start, tmp_path):
    run = start().wait(progress=False)
    fork = run.fork("warmer", step=8, lr=1e-2, steps=14)
    fork.wait(progress=False)
    assert fork.parent == {"run": "run", "step": 8, "actor": "person"}
    steps, _ = fork.history("loss")
    assert list(steps) == [9, 10, 11, 12, 13, 14]
    assert fork.config["lr"] == 1e-2
    assert fork.checkpoints[0].step == 8
    with pytest.raises(UserError, match="begins at"):
        run.fork("late", steps=12)
    with pytest.raises(RunError, match="no checkpoint at step 7"):
        run.fork("between", step=7)
    with pytest.raises(UserError, match="no setting 'lrr'"):
        run.fork("typo", step=8, lrr=1)


@pytest.mark.parametrize("lost_in", ["read", "copy"])
def test_a_checkpoint_that_is_deleted_while_it_is_forked(start, monkeypatch, lost_in):
    """A parent that goes on prunes its checkpoints: the newest that is left is taken, and no incomplete run remains."""
    run = start().wait(progress=False)
    newest = run.checkpoints[-1]

    def deleted_first(function):
        def late(*arguments, **options):
            shutil.rmtree(newest.path, ignore_errors=True)
            return function(*arguments, **options)

        return late

    if lost_in == "read":
        monkeypatch.setattr(fork.TrainState, "read", deleted_first(fork.TrainState.read))
    else:
        monkeypatch.setattr(fork.checkpoints, "adopt", deleted_first(fork.checkpoints.adopt))
    child = run.fork("child", steps=14)
    child.wait(progress=False)
    assert child.parent["step"] == 8 and child.state == "finished"
    assert {each.name for each in nb.runs(run.path.parent)} == {"run", "child"}
    with pytest.raises(RunError, match=r"no checkpoint at step 12[\s\S]*There are: 0, 4, 8"):
        run.fork("other", step=12, steps=20)


def test_a_fork_is_whole_without_its_parent(start, lm, texts):
    run = start().wait(progress=False)
    child = run.fork("child", step=4, steps=10)
    child.wait(progress=False)
    run.delete()
    assert not run.path.exists()
    assert child.summary.parent_text == "run (deleted) at 4"
    assert child.history("loss")[0].tolist() == list(range(5, 11))
    assert "fork of run (deleted) at step 4" in str(nb.evaluate(child, data=texts, progress=False))
    assert nb.replay(child, progress=False).identical
    child.rename("renamed")
    grandchild = child.fork("grandchild", step=8, steps=12)
    grandchild.wait(progress=False)
    assert grandchild.parent["run"] == "renamed" and grandchild.state == "finished"


def test_a_stopped_run_resumes_and_ends_as_if_it_had_never_stopped(
    start, tokenizer, store, held_out, config, tmp_path
):
    endless = {"steps": 1_000_000, "schedule": "constant", "warmup_steps": 20}
    run = start(**endless)
    run.wait(step=7, progress=False)
    for more in (5, 0):
        run.stop()
        run.wait(progress=False)
        assert run.state == "stopped"
        if more:
            nb.attach(run.path).resume()
            run.wait(step=run.step + more, progress=False)
    again = nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1
    )
    whole_config = {**config, **endless, "steps": run.step}
    whole = nb.train(again, store, validation=held_out, folder=tmp_path, name="whole", **whole_config)
    whole.wait(progress=False)
    assert run.events("end")[-1]["digest"] == whole.events("end")[-1]["digest"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replay_of_a_steered_run_is_bit_identical(start, precision):
    run = start(steps=100_000, warmup_steps=5, precision=precision)  # it must not end before it is steered
    run.wait(step=5, progress=False)
    run.set(lr=1e-3)
    run.pause()
    run.resume()
    run.wait(step=10, progress=False)
    run.rewind(4)
    run.freeze("embedding.*")
    run.wait(step=20, progress=False)
    run.pause()
    run.set(accumulation=2, clip=0.3, steps=run.step + 30)
    run.unfreeze("embedding.*")
    run.resume()
    run.wait(progress=False)
    result = nb.replay(run, progress=False)
    assert result.identical, result
    assert result.step == run.steps
    assert "bit-identical" in repr(result)
    assert result.run.summary.label == "replayed"
    row = nb.runs(run.path.parent).rows()[0]
    assert row[:2] == ("run-replay", "replayed") and row[4] == "replay of run"
    repeated = [(a.action, a.step) for a in result.run.timeline.state_actions]
    assert repeated == [(a.action, a.step) for a in run.timeline.effective]


def test_replay_begins_where_the_current_branch_does(start):
    """After a rewind to 0 and a save there, the first checkpoint is on a branch that was left."""
    run = start(steps=100_000, checkpoint_interval=4)
    run.wait(step=9, progress=False)
    run.pause()
    run.rewind(0)
    run.set(lr=1e-3, steps=12)
    run.save()
    run.resume()
    run.wait(progress=False)
    assert nb.replay(run, progress=False).identical


def test_a_fork_leaves_the_persons_model_alone(start, lm):
    run = start().wait(progress=False)
    before = weights(lm)
    run.fork("other", step=8, lr=1e-2, steps=14).wait(progress=False)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(lm).items())


def test_a_fork_chooses_anew_what_follows_from_its_changes(start):
    run = start().wait(progress=False)
    fork = run.as_actor("agent:x").fork("low", step=8, precision="bfloat16")
    fork.wait(progress=False)
    assert fork.record["choices"]["precision"] == "bfloat16"
    assert run.record["choices"]["precision"] == "float32"
    assert fork.parent["actor"] == "agent:x"
    with pytest.raises(UserError, match="64 positions"):
        run.fork("long", step=8, sequence_length=1000)
    longer = run.fork("longer", step=8, steps=40)
    assert longer.config["warmup_steps"] == 1  # as the parent's 12 steps had; 40 would have 2
    longer.wait(progress=False)  # it must not go on beside the tests that follow


def test_a_run_that_fails_before_it_begins_says_why(start, store, config, lm, tmp_path):
    run = start().wait(progress=False)
    record = json.loads((run.path / "run.json").read_text())
    record["data"]["train"]["path"] = str(tmp_path / "gone")
    fork = run.fork("fine", step=8)
    fork.wait(progress=False)
    while held_here(fork.path):  # its last event is written, but its thread still holds the lock
        time.sleep(0.01)
    (fork.path / "run.json").write_text(json.dumps({**record, "name": "fine"}))
    for events in (fork.path / "events").iterdir():
        events.unlink()
    again = nb.attach(fork.path)
    with pytest.raises(RunError, match="no token store"):
        again.launcher.start(again.path).wait(timeout=60, progress=False)
    assert again.state == "failed"


def test_a_live_run_cannot_be_replayed(start):
    run = start(steps=100_000)
    with pytest.raises(RunError, match="still going"):
        nb.replay(run)


def test_a_second_trainer_is_refused_with_the_name_of_the_first(start):
    run = start(steps=100_000)
    with pytest.raises(RunError, match="being trained by process"):
        run.launcher.start(run.path)
    assert run.is_live


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, "Did you mean 'steps'"),
        ({"steps": 0}, "at least 1"),
        ({"schedule": "straight"}, "must be one of"),
        ({"precision": "float64"}, "must be one of"),
        ({"sequence_length": 65}, "64 positions"),
        ({"lr": "fast"}, "must be a number"),
        ({"steps": "100"}, "whole number"),
        ({"batch_size": 2.5}, "whole number"),
        ({"clip": float("inf")}, "must be a number"),
        ({"num_threads": 0}, "between 1 and"),
        ({"sample_prompts": [3]}, "list of texts"),
        ({"device": "tpu?"}, "no device"),
        ({"where": "cloud"}, "'thread', 'process' or nb.Launch"),
        ({"beta2": 1.0}, "at least 0 and at most"),
        ({"optimizer": "adamv"}, "Did you mean 'adamw'"),
        ({"optimizer_settings": {"beta3": 1.0}}, "adamw has no setting 'beta3'"),
        ({"lr": 2}, "at most 1"),
        ({"sample_prompts": 1}, "list of texts"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_made(lm, store, config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        nb.train(lm, store, folder=tmp_path / "runs", **{**config, **changes})
    assert not (tmp_path / "runs").exists()


def test_text_too_short_is_refused(lm, tokenizer, texts, config, tmp_path):
    short = nb.data.pack(
        texts.select([0]).map(lambda row: {"text": "short"}), tokenizer, folder=tmp_path / "c"
    )
    with pytest.raises(DataError, match="too few"):
        nb.train(lm, short, folder=tmp_path, **config)


def test_data_that_makes_no_sense_is_refused(lm, texts, config, tmp_path):
    for data, message in (
        ((texts, texts, texts), "3 parts"),
        ({"test": texts}, "no split 'train'"),
    ):
        with pytest.raises(DataError, match=message):
            nb.train(lm, data, folder=tmp_path, **config)
    with pytest.raises(DataError, match="given twice"):
        nb.train(lm, (texts, texts), validation=texts, folder=tmp_path, **config)


def test_tokens_of_another_vocabulary_are_refused(lm, texts, config, tmp_path):
    other = nb.data.train_tokenizer(texts, vocab_size=400)
    store = nb.data.pack(texts, other, folder=tmp_path / "c")
    with pytest.raises(DataError, match="vocabulary of 400"):
        nb.train(lm, store, folder=tmp_path, **config)


def test_a_replay_computes_by_the_record_whatever_the_machine_is_measured_to_be(start, monkeypatch):
    """As on a machine whose profile was measured anew, with other results."""
    used = []
    original = decisions.use_choices
    monkeypatch.setattr(trainer, "use_choices", lambda choices: used.append(choices) or original(choices))
    recorded = PLAIN.replace(float32_matmuls_from=1, onednn_matmuls_from=1, fused_kernels=("float32",))
    monkeypatch.setattr("nbllm.training.run_choices.compute_choices", lambda profile: recorded)
    run = start(precision="bfloat16", steps=4).wait(progress=False)
    assert run.record["choices"]["float32_matmuls_from"] == 1
    assert MachineProfile.from_dict(run.record["profile"]).device == "cpu"
    monkeypatch.setattr("nbllm.training.run_choices.machine_profile", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(decisions, "machine_profile", lambda *_: pytest.fail("measured"))
    assert nb.replay(run, progress=False).identical
    assert used == [recorded, recorded]
