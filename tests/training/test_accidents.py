"""What people do to a run's folder while it is trained: it is deleted, moved, linked, and taken up again too soon."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time

import pytest

import nbllm as nb
from nbllm.core.errors import RunError
from nbllm.runs.process import is_alive
from nbllm.runs.run import Run
from nbllm.runs.store import create
from tests.training.test_crash import fresh, prepare, start_process

ENDLESS = {"steps": 1_000_000, "validation_interval": 0, "sample_interval": 0, "checkpoint_interval": 2}
needs_links = pytest.mark.skipif(os.name == "nt", reason="links")


@pytest.fixture
def going(lm, store, config, tmp_path):
    """A run that a thread trains, with a checkpoint at every second step."""
    run = nb.train(lm, store, folder=tmp_path / "runs", name="going", **{**config, **ENDLESS})
    run.wait(step=5, progress=False)
    yield run
    with contextlib.suppress(RunError):
        run.stop(timeout=5)


def wait_until(test, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def trainer_of(run):
    return next(t for t in threading.enumerate() if t.name == f"nbllm run {run.name}")


def remove(path):
    """Delete a folder as `rm -r` does, again and again while somebody writes into it."""
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)


def test_a_run_whose_folder_is_deleted_ends_and_does_not_make_it_anew(going, lm):
    thread = trainer_of(going)
    remove(going.path)
    thread.join(60)
    assert not thread.is_alive()
    assert not going.path.exists()
    with pytest.raises(RunError, match=r"The folder of going is gone.*deleted, renamed or moved"):
        going.wait(progress=False)
    with pytest.raises(RunError, match="The folder of going is gone"):
        going.stop()
    lm.generate("def", max_new_tokens=2)  # the model is whole, and nobody's any more


def test_a_paused_run_whose_folder_is_deleted_ends_too(going):
    going.pause()
    thread = trainer_of(going)
    remove(going.path)
    thread.join(60)
    assert not thread.is_alive()
    assert not going.path.exists()


def test_a_run_whose_folder_is_moved_has_stopped_where_it_is_now(going, tmp_path, capsys):
    thread = trainer_of(going)
    going.path.rename(tmp_path / "elsewhere")
    thread.join(60)
    assert not thread.is_alive()
    assert not going.path.exists()
    assert "going has ended at step" in (said := capsys.readouterr().err)
    assert "the run's folder is gone" in said
    moved = nb.attach(tmp_path / "elsewhere")
    assert (moved.state, moved.reason) == (
        "stopped", "the run's folder is gone: it was deleted, renamed or moved",
    )  # fmt: skip
    moved.resume()
    moved.wait(step=moved.step + 2, progress=False)
    moved.stop()
    moved.wait(progress=False)


def test_a_run_does_not_write_into_another_of_the_same_name(going):
    thread = trainer_of(going)
    going.path.rename(going.path.with_name("old"))
    create(going.path.parent, "going", {"steps": 7})
    thread.join(60)
    assert not thread.is_alive()
    assert os.listdir(going.path / "checkpoints") == []
    remove(going.path)


def test_a_run_of_the_same_name_can_be_started_at_once(going, tokenizer, store, config):
    remove(going.path)
    again = nb.train(fresh(tokenizer), store, folder=going.path.parent, name="going", **config)
    assert again.path == going.path
    assert again.wait(progress=False).state == "finished"


def test_a_process_whose_folder_is_deleted_ends_and_does_not_make_it_anew(lm, store, config, tmp_path):
    run = nb.train(lm, store, folder=tmp_path, name="far", where="process", **{**config, **ENDLESS})
    run.wait(step=3, timeout=120, progress=False)
    trainer = run.events("start")[-1]
    remove(run.path)
    wait_until(lambda: not is_alive(trainer))
    assert not run.path.exists()
    with pytest.raises(RunError, match="The folder of far is gone"):
        run.wait(progress=False)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_process_whose_terminal_is_closed_saves_first(lm, store, config, tmp_path):
    run = nb.train(lm, store, folder=tmp_path, name="far", where="process", **{**config, **ENDLESS})
    run.wait(step=3, timeout=120, progress=False)
    os.kill(run.events("start")[-1]["pid"], signal.SIGHUP)
    run.wait(timeout=60, progress=False)
    assert (run.state, run.reason) == ("stopped", "signal SIGHUP")
    assert run.checkpoints[-1].step == run.step


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_is_taken_up_again_at_once_after_its_process_was_killed(tokenizer, store, config, tmp_path):
    path = prepare(fresh(tokenizer), store, None, tmp_path, "killed", {**config, **ENDLESS})
    for _ in range(3):
        process = start_process(path)
        killed = nb.attach(path, where="thread")
        wait_until(lambda run=killed: run.is_live)
        killed.wait(step=killed.step + 2, progress=False)
        os.kill(process.pid, signal.SIGKILL)
        assert killed.resume().outcome == "applied"  # though the handle may see it live still
        process.join()
        killed.stop()
        assert killed.wait(progress=False).state == "stopped"


@pytest.mark.parametrize("seen", ["live", "paused"])
def test_resume_starts_again_what_is_found_dead_while_it_is_asked(going, seen, monkeypatch):
    if seen == "paused":
        going.pause()
    state = going.state
    trainer_of(going)
    going.stop()
    going.wait(progress=False)
    states = iter([state, state])  # what a handle says that has not looked again
    real = Run.state.fget
    monkeypatch.setattr(Run, "state", property(lambda run: next(states, None) or real(run)))
    assert nb.attach(going.path).resume().outcome == "applied"
    monkeypatch.undo()
    going.wait(step=going.step + 1, progress=False)


@needs_links
def test_links_that_are_put_into_a_run_under_way_lead_to_nothing_being_taken_moved_or_deleted(
    going, tmp_path
):
    thesis = tmp_path / "thesis"
    (thesis / "step-00000001").mkdir(parents=True)
    (thesis / "step-00000001" / "manifest.json").write_text("{}")
    (thesis / "chapter.json").write_text("{}")
    (thesis / ".aside-1").write_text("")
    held = sorted(map(str, thesis.rglob("*")))
    going.pause()
    for name in ("checkpoints", "commands"):
        (going.path / name).rename(tmp_path / f"old-{name}")
        (going.path / name).symlink_to(thesis)
    with pytest.raises(RunError, match="commands/ is a link"):
        going.resume()
    wait_until(lambda: any("commands/ is a link" in w["text"] for w in going.events("warning")))
    (going.path / "commands").unlink()
    (tmp_path / "old-commands").rename(going.path / "commands")
    going.resume()
    wait_until(lambda: any("checkpoints/ is a link" in w["text"] for w in going.events("warning")))
    assert going.state == "running"
    with pytest.raises(RunError, match="checkpoints is a link"):
        nb.attach(going.path)
    with pytest.raises(RunError, match="checkpoints/ is a link"):
        going.save()
    (going.path / "checkpoints").unlink()
    (tmp_path / "old-checkpoints").rename(going.path / "checkpoints")
    going.save()
    assert sorted(map(str, thesis.rglob("*"))) == held


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_log_that_is_a_pipe_is_an_error_at_once(going):
    going.stop()
    going.wait(progress=False)
    os.mkfifo(going.path / "process.log")
    with pytest.raises(RunError, match=r"process\.log cannot be written"):
        nb.attach(going.path, where="process").resume()
    os.mkfifo(going.path / "trainer.json")
    assert going.state == "stopped"
    (going.path / "trainer.lock").unlink()
    os.mkfifo(going.path / "trainer.lock")
    nb.attach(going.path).resume()
    going.wait(step=going.step + 1, progress=False)
