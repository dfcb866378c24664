"""Ranks that torchrun starts on several machines: a job of Slurm, with stand-ins for what a cluster has."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import pytest

import nbllm as nb
from nbllm.core.errors import RunError, UserError
from nbllm.runs import managing
from nbllm.runs.run import Run
from tests.training.launches import PATIENCE, wait_until


def test_without_slurm_nothing_is_prepared(lm, store, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="There is no sbatch here") as caught:
        nb.train(lm, store, folder=tmp_path / "runs", where=nb.Launch.slurm())
    assert "write(" in caught.value.hint
    assert not (tmp_path / "runs").exists()


def test_a_run_on_several_machines_is_not_started_from_one(lm, store, config, tmp_path):
    with pytest.raises(RunError, match="A run on 2 machines cannot be started from one") as caught:
        nb.train(lm, store, folder=tmp_path, name="big", where=nb.Launch(nodes=2), **config)
    assert "torchrun" in caught.value.hint


# Two nodes on this machine. The one that does not hold the rendezvous comes first.
STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; echo other; else echo "$@" >> "$CALLS"; fi',
    "srun": """
shift
export SLURM_JOB_NUM_NODES=2
SLURMD_NODENAME=other "$@" & first=$!
SLURMD_NODENAME=localhost "$@" & second=$!
trap 'kill -TERM $first $second' TERM
while kill -0 $first 2>/dev/null || kill -0 $second 2>/dev/null; do wait; done
""",
    "sbatch": """
cp "$2" "$CALLS.job"
if [ -z "$HELD" ]; then SLURM_JOB_ID=7 SLURM_JOB_NODELIST=x setsid bash "$2" > "$CALLS.out" 2>&1 & fi
echo $! > "$CALLS.pid"
echo 7
""",
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Slurm's commands, as far as a job file uses them, on this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    return tmp_path / "calls"


CONFIG = """
[data]
source = "text.txt"
validation = 0
[tokenizer]
vocab_size = 300
[model]
num_layers = 2
hidden_size = 32
num_heads = 2
max_positions = 64
[train]
steps = 1000000
batch_size = 2
sequence_length = 32
checkpoint_interval = 5
sample_interval = 0
num_threads = 1
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("bash") is None, reason="setsid, bash")
def test_a_job_trains_on_two_nodes_and_goes_on_when_it_is_queued_again(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"Line {n} of a text about {n * n}." for n in range(300)))
    (tmp_path / "train.toml").write_text(CONFIG)
    job = nb.Launch.slurm(nodes=2, processes_per_node=1, gpus_per_node=0)
    path = job.write("big.sbatch")
    for times in (1, 2):
        assert job.submit(path) == "7"
        wait_until((tmp_path / "runs" / "big" / "run.json").exists)
        run = Run("runs/big")
        wait_until(lambda run=run, times=times: len(run.events("start")) == times)
        began = run.step
        run.wait(step=began + 3, timeout=PATIENCE, progress=False)
        assert run.step > began, cluster.with_suffix(".out").read_text()
        os.kill(int(cluster.with_suffix(".pid").read_text()), signal.SIGUSR1)  # its time is nearly over
        run.wait(timeout=PATIENCE, progress=False)
        assert (run.state, run.reason) == ("stopped", "signal SIGTERM")
        assert run.checkpoints[-1].step == run.step
        wait_until(lambda times=times: cluster.exists() and cluster.read_text() == "requeue 7\n" * times)
    assert run.record["launch"] == {"processes": 1, "nodes": 2, "restarts": 3}
    assert [event["from_step"] > 0 for event in run.events("start")] == [False, True]


def test_a_run_of_the_notebook_is_prepared_and_submitted(lm, store, config, tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("HELD", "1")  # it waits in the queue
    job = nb.Launch.slurm(nodes=2, processes_per_node=8)
    run = nb.train(lm, store, folder=tmp_path / "runs", name="queued", where=job, **config)
    assert f"-m nbllm.training.worker {run.path} &" in cluster.with_suffix(".job").read_text()
    assert run.record["launch"] == {"processes": 8, "nodes": 2, "restarts": 3}
    assert [info.step for info in run.checkpoints] == [0]
    assert not run.events("start")
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**record, "created": 1.0}))
    assert Run(run.path).state == "starting"  # however long it waits in the queue
    nb.runs(tmp_path / "runs")
    managing.delete(run.path)
    assert not run.path.exists()
