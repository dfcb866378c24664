"""Whatever happens to a trainer, its run can be resumed, and reaches the same weights."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import RunError
from nbllm.objectives import CausalLM
from nbllm.runs.commands import send
from nbllm.runs.run import Run
from nbllm.training.trainer import Trainer

# Children of a server that has imported torch already start in a moment.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["nbllm.training.trainer", "transformers"])


def train_directory(path: str) -> None:
    Trainer(Path(path), where="process").run()


def start_process(path: Path) -> multiprocessing.Process:
    process = SERVER.Process(target=train_directory, args=(str(path),))
    process.start()
    return process


def start_again(run: Run) -> multiprocessing.Process:
    """Start a process on a run that is not live, and wait until its session has begun."""
    sessions = run.timeline.session.number
    process = start_process(run.path)
    while run.timeline.session.number == sessions:
        assert process.is_alive(), run.reason
        time.sleep(0.005)
    return process


def prepare(lm, store, held_out, folder, name, config) -> Path:
    """Make a run's directory without starting it here."""
    run = nb.train(lm, store, validation=held_out, folder=folder, name=name, where="thread", **config)
    run.stop()
    run.wait(progress=False)
    return run.path


def fresh(tokenizer):
    return nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_at_twenty_random_moments_it_ends_as_if_it_had_never_been(
    tokenizer, store, held_out, config, tmp_path, precision
):
    """Also while checkpoints are written, which at this interval takes most of the time."""
    config |= {"steps": 1_000_000, "schedule": "constant", "checkpoint_interval": 2, "precision": precision}
    config |= {"validation_interval": 50, "sample_interval": 0}
    path = prepare(fresh(tokenizer), store, held_out, tmp_path, "killed", config)
    chance = random.Random(0)
    killed = Run(path)
    during_checkpoint = 0
    for _ in range(20):
        process = start_again(killed)
        killed.wait(step=killed.step + 1, timeout=60, progress=False)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        during_checkpoint += any((path / "checkpoints").glob(".aside-*"))
        assert killed.state == "lost"
    start_again(killed)
    killed.stop()
    killed.wait(progress=False)
    assert during_checkpoint > 0, "no kill fell into the writing of a checkpoint"
    config["steps"] = killed.step
    config["warmup_steps"] = killed.config["steps"] // 20  # as in the run that was killed
    whole = nb.train(fresh(tokenizer), store, validation=held_out, folder=tmp_path, name="whole", **config)
    whole.wait(progress=False)
    assert killed.events("end")[-1]["digest"] == whole.events("end")[-1]["digest"]
    for ours, theirs in zip(killed.history("loss"), whole.history("loss"), strict=True):
        assert list(ours) == list(theirs)


def test_a_steered_run_that_is_killed_repeats_its_actions(tokenizer, store, config, tmp_path):
    """What was asked between the last checkpoint and the kill is not lost."""
    config = {
        **config,
        "steps": 1000,
        "checkpoint_interval": 500,
        "validation_interval": 0,
        "sample_interval": 0,
    }
    path = prepare(fresh(tokenizer), store, None, tmp_path, "killed", config)
    run = Run(path)
    process = start_again(run)
    run.wait(step=110, progress=False)
    lr = run.set(lr=7e-4)
    frozen = run.freeze("embedding.*")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process = start_process(path)
    process.join(120)
    assert run.state == "finished"
    assert 110 <= lr.step <= frozen.step < 500, "the kill must come before the next checkpoint"
    result = nb.replay(run, progress=False)
    assert result.identical
    assert [(a.action, a.step) for a in result.run.timeline.state_actions] == [
        ("set", lr.step),
        ("freeze", frozen.step),
    ]


def test_a_process_run_outlives_its_handle_and_takes_commands(lm, store, config, tmp_path):
    run = nb.train(lm, store, folder=tmp_path, name="far", where="process", **{**config, "steps": 100_000})
    run.wait(step=3, timeout=120, progress=False)
    again = nb.attach(run.path)
    assert again.state == "running"
    assert again.pause().outcome == "applied"
    assert again.checkpoints[-1].step == again.step
    again.resume()
    again.stop()
    assert run.wait(timeout=60, progress=False).state == "stopped"
    assert run.record["where"] == "process"


def test_a_fork_of_an_old_process_run_is_new(lm, store, config, tmp_path):
    run = nb.train(lm, store, folder=tmp_path, name="old", where="process", **config)
    run.wait(timeout=120, progress=False)
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(
        json.dumps({**record, "created": record["created"] - 1e6, "host": "elsewhere"})
    )
    fork = nb.attach(run.path).fork("young", step=8, steps=14)
    assert fork.state == "starting"
    assert fork.record["created"] > record["created"]
    assert fork.wait(timeout=120, progress=False).state == "finished"


def test_a_process_that_is_asked_to_end_saves_first(lm, store, config, tmp_path):
    run = nb.train(lm, store, folder=tmp_path, name="far", where="process", **{**config, "steps": 100_000})
    run.wait(step=3, timeout=120, progress=False)
    os.kill(run.events("start")[-1]["pid"], signal.SIGTERM)
    run.wait(timeout=60, progress=False)
    assert (run.state, run.reason) == ("stopped", "signal SIGTERM")
    assert run.checkpoints[-1].step == run.step


def test_a_process_that_cannot_start_is_said_to_have_failed(lm, store, config, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("raise ImportError('no torch today')\n")
    run = nb.train(lm, store, folder=tmp_path, name="far", where="process", **config)
    with pytest.raises(RunError, match="no torch today"):
        run.wait(timeout=60, progress=False)
    assert run.state == "failed"


def test_a_damaged_checkpoint_is_passed_over_and_said(tokenizer, store, config, tmp_path):
    config |= {"validation_interval": 0, "sample_interval": 0, "schedule": "constant", "warmup_steps": 5}
    endless = {**config, "steps": 1_000_000}
    run = nb.train(fresh(tokenizer), store, folder=tmp_path, name="part", **endless)
    run.wait(step=9, progress=False)
    run.stop()
    run.wait(progress=False)
    weights = run.checkpoints[-1].path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1  # one bit, in the middle of a tensor: it would load silently
    weights.write_bytes(data)
    nb.attach(run.path).resume()
    assert run.timeline.starts[-1]["from_step"] < run.events("end")[0]["step"]
    run.wait(step=run.events("end")[0]["step"] + 5, progress=False)
    run.stop()
    run.wait(progress=False)
    assert any("model.safetensors is damaged" in w["text"] for w in run.events("warning"))
    config["steps"] = run.step
    whole = nb.train(fresh(tokenizer), store, folder=tmp_path, name="whole", **config).wait(progress=False)
    assert run.events("end")[-1]["digest"] == whole.events("end")[-1]["digest"]


def test_no_good_checkpoint_is_an_error_that_says_which(tokenizer, store, config, tmp_path):
    run = nb.train(fresh(tokenizer), store, folder=tmp_path, name="part", **{**config, "steps": 100_000})
    run.stop()
    run.wait(progress=False)
    for info in run.checkpoints:
        (info.path / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="No checkpoint of this run is good"):
        nb.attach(run.path).resume()
    assert run.state == "failed"


class Disk:
    """Lets writes through, or refuses them as a full disk does."""

    def __init__(self, monkeypatch):
        self.full = False
        self.checkpoints_full = False
        write = os.write

        def full_write(descriptor, data):
            if self.full and b'"kind"' in bytes(data)[:200]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", full_write)
        import nbllm.runs.checkpoint as checkpoint

        save_json = checkpoint.write_json

        def full_json(path, value):
            if self.full or self.checkpoints_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save_json(path, value)

        monkeypatch.setattr(checkpoint, "write_json", full_json)


def test_a_full_disk_holds_the_run_and_loses_nothing(lm, store, config, tmp_path, monkeypatch, capsys):
    disk = Disk(monkeypatch)
    run = nb.train(
        lm, store, folder=tmp_path, name="full", **{**config, "steps": 2000, "checkpoint_interval": 50}
    )
    run.wait(step=60, progress=False)
    disk.full = True
    time.sleep(0.3)
    held = run.step
    time.sleep(0.3)
    assert run.step == held  # it waits: what it does must be on record
    assert "No space left" in capsys.readouterr().err
    disk.full = False
    run.wait(step=held + 20, progress=False)
    run.stop()
    run.wait(progress=False)
    steps, _ = run.history("loss")
    assert list(steps) == list(range(1, len(steps) + 1))
    assert nb.replay(run, progress=False).identical


def test_a_checkpoint_that_does_not_fit_is_a_warning_and_leaves_no_rest(
    lm, store, config, tmp_path, monkeypatch
):
    disk = Disk(monkeypatch)
    run = nb.train(
        lm, store, folder=tmp_path, name="full", **{**config, "steps": 100_000, "checkpoint_interval": 0}
    )
    run.wait(step=3, progress=False)
    import nbllm.runs.checkpoint as checkpoint

    def refuse(path, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_json", refuse)
    with pytest.raises(RunError, match="No space left"):
        run.save()
    assert not list((run.path / "checkpoints").glob(".aside-*"))
    monkeypatch.undo()
    assert run.save().outcome == "applied"
    run.stop()
    assert not disk.full


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_what_the_system_refuses_while_a_checkpoint_is_written_is_a_warning(lm, store, config, tmp_path):
    """The system itself refuses here: the weights fit, the optimizer's state, twice as large, does not."""
    import resource

    run = nb.train(
        lm, store, folder=tmp_path, name="full", **{**config, "steps": 100_000, "checkpoint_interval": 0}
    )
    run.wait(step=3, progress=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, ((run.checkpoints[0].path / "model.safetensors").stat().st_size + 4096, hard)
    )
    try:
        with pytest.raises(RunError, match=r"the checkpoint could not be written: .*File too large"):
            run.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list((run.path / "checkpoints").iterdir())) == 1
    assert run.save().outcome == "applied"
    run.stop()
    run.wait(progress=False)


def test_a_full_disk_at_the_last_checkpoint_holds_the_run(lm, store, config, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    run = nb.train(
        lm, store, folder=tmp_path, name="full", **{**config, "checkpoint_interval": 0, "steps": 50}
    )
    disk.checkpoints_full = True  # the first checkpoint is written, the next is the last
    run.wait(step=50, progress=False)
    time.sleep(0.5)
    assert run.is_live
    disk.checkpoints_full = False
    run.wait(timeout=60, progress=False)
    assert run.state == "finished"
    assert run.checkpoints[-1].step == 50


def test_a_run_whose_end_cannot_be_saved_is_stopped_not_finished(lm, store, config, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    run = nb.train(
        lm, store, folder=tmp_path, name="full", **{**config, "checkpoint_interval": 0, "steps": 50}
    )
    disk.checkpoints_full = True  # the first checkpoint is written, the next is the last
    run.wait(step=50, progress=False)
    run.stop()
    run.wait(progress=False)
    assert run.state == "stopped"
    assert "No space left" in run.reason
    disk.checkpoints_full = False
    nb.attach(run.path).resume()
    assert run.wait(progress=False).state == "finished"


def test_a_full_disk_does_not_prevent_a_pause(lm, store, config, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    run = nb.train(
        lm, store, folder=tmp_path, name="full", **{**config, "steps": 100_000, "checkpoint_interval": 0}
    )
    run.wait(step=3, progress=False)
    disk.checkpoints_full = True
    run.pause()
    assert run.state == "paused"
    assert "No space left" in run.events("warning")[-1]["text"]
    disk.checkpoints_full = False
    run.stop()


def test_a_new_run_that_does_not_fit_leaves_nothing_behind(lm, store, config, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    disk.checkpoints_full = True
    with pytest.raises(RunError, match="No space left"):
        nb.train(lm, store, folder=tmp_path / "runs", name="full", **config)
    assert not list((tmp_path / "runs").iterdir())


def test_an_unwritable_folder_is_refused_at_once(lm, store, config, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="cannot be created"):
        nb.train(lm, store, folder=tmp_path / "file", **config)


def test_a_loss_that_is_not_finite_is_skipped_then_ends_the_run_naming_the_place(lm, store, config, tmp_path):
    with torch.no_grad():
        lm.model.blocks[1].feed_forward.down.weight[0, 0] = 3e38
        lm.model.blocks[1].feed_forward.up.weight.fill_(3e38)
    run = nb.train(
        lm, store, folder=tmp_path, name="nan", **{**config, "max_bad_steps": 3, "validation_interval": 0}
    )
    with pytest.raises(RunError, match=r"blocks\.1\.feed_forward"):
        run.wait(progress=False)
    assert run.state == "failed"
    assert sum("step skipped" in w["text"] for w in run.events("warning")) == 3
    assert run.step == 3
    assert [c.step for c in run.checkpoints] == [0]


def test_one_bad_step_is_skipped_and_the_run_goes_on(lm, store, config, tmp_path, monkeypatch):
    real, calls = CausalLM.loss, []

    def sometimes(self, network, batch):
        calls.append(1)
        loss, count = real(self, network, batch)
        return loss * float("nan") if len(calls) == 5 else loss, count

    monkeypatch.setattr(CausalLM, "loss", sometimes)
    run = nb.train(lm, store, folder=tmp_path, name="once", **{**config, "validation_interval": 0})
    run.wait(progress=False)
    assert run.state == "finished"
    assert [w["step"] for w in run.events("warning")] == [5]
    assert all(torch.isfinite(p).all() for p in lm.model.parameters())


def test_a_command_sent_to_a_dead_trainer_is_not_obeyed_by_the_next(lm, store, config, tmp_path):
    run = nb.train(lm, store, folder=tmp_path, name="late", **{**config, "steps": 300})
    run.stop()
    run.wait(progress=False)
    send(run.path, "set", {"lr": 0.5})
    nb.attach(run.path).resume()
    run.wait(progress=False)
    assert not [e for e in run.events("action") if e["action"] == "set"]
