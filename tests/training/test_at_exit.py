"""What becomes of a run when the script, or the kernel, that started it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import nbllm as nb
from nbllm.runs.run import Run
from nbllm.training import launcher
from nbllm.training.at_exit import finish_or_stop

SCRIPT = """
import sys
import nbllm as nb
from nbllm.data.token_store import TokenStore
folder, tokens, steps = sys.argv[1:]
nb.train(nb.load(folder + "/model"), TokenStore.open(tokens), folder=folder, name="run", steps=int(steps),
         batch_size=2, sequence_length=32, validation_interval=0, sample_interval=0, checkpoint_interval=0,
         precision="float32", num_threads=1)
"""


@pytest.fixture
def script(lm, store, tmp_path):
    """Start a script that trains for so many steps, and ends after `nb.train`."""
    lm.save(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT)

    def script(steps):
        command = [sys.executable, tmp_path / "script.py", tmp_path, store.path, str(steps)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return script


def test_a_script_waits_for_the_run_that_it_has_started(script, tmp_path):
    process = script(40)
    out, err = process.communicate(timeout=120)
    run = Run(tmp_path / "run")
    assert (process.returncode, run.state, run.step) == (0, "finished", 40), err
    assert "waits for its run 'run'" in err
    assert "step 40 of 40" in out


@pytest.mark.skipif(os.name == "nt", reason="SIGINT")
def test_ctrl_c_stops_the_run_that_a_script_waits_for(script, tmp_path):
    process = script(1_000_000)
    while "waits for its run" not in process.stderr.readline():
        assert process.poll() is None
    run = Run(tmp_path / "run")
    run.wait(step=3, timeout=60, progress=False)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (run.state, run.reason) == ("stopped", "interrupted")
    assert run.checkpoints[-1].step == run.step > 0
    assert f"is stopped at step {run.step}: interrupted. nb.attach(" in err
    assert "Traceback" not in err


@pytest.fixture
def going(lm, store, config, tmp_path, monkeypatch):
    """A run in a process that looks like a plain script's, whatever shell another test has started in it."""
    for name in ("last_value", "ps1"):
        monkeypatch.delattr(sys, name, raising=False)
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    run = nb.train(lm, store, folder=tmp_path, name="going", **{**config, "steps": 1_000_000})
    run.wait(step=2, progress=False)
    yield run
    thread, trainer = launcher._threads[run.path]
    trainer.exit_reason = "the test is over"
    thread.join(60)


@pytest.mark.parametrize(
    ("place", "name", "value", "reason"),
    [
        (sys, "last_value", ValueError("x"), "the script was ended by an error"),
        (sys, "ps1", ">>> ", "the interactive session was ended"),
        ("IPython", "get_ipython", object, "the kernel was shut down"),
    ],
)
def test_a_run_that_nobody_waits_for_is_stopped_and_that_is_said(
    going, monkeypatch, capsys, place, name, value, reason
):
    if isinstance(place, str):
        place = pytest.importorskip(place)
    monkeypatch.setattr(place, name, value, raising=False)
    finish_or_stop([launcher._threads[going.path]])
    assert (going.state, going.reason) == ("stopped", reason)
    assert going.checkpoints[-1].step == going.step
    assert f"is stopped at step {going.step}: {reason}. nb.attach(" in capsys.readouterr().err


def test_a_run_that_fails_while_a_script_waits_for_it_is_told(going, capsys):
    thread, trainer = launcher._threads[going.path]

    def break_down():
        raise RuntimeError("the disk is on fire")

    trainer._step = break_down
    finish_or_stop([(thread, trainer)])
    assert "the disk is on fire" in capsys.readouterr().err
    assert going.state == "failed"
