"""Runs of two processes: they train as one does, and what happens to one of them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import RunError, UserError
from nbllm.core.machine import usable_cores
from nbllm.nn.compute.decisions import num_threads
from nbllm.nn.compute.profile import machine_profile
from nbllm.runs.events import EventWriter
from nbllm.runs.process import is_alive
from nbllm.runs.run import Run
from nbllm.training.supervisor import Supervisor
from nbllm.widgets.card import CardMaker
from tests.training.launches import processes_of, python_path, ranks_of, wait_until

TWO = nb.Launch(processes=2)


@pytest.fixture(scope="module")
def plain():
    """A run whose steps do not depend on how many there are."""
    return {
        "steps": 30,
        "batch_size": 2,
        "sequence_length": 32,
        "schedule": "constant",
        "warmup_steps": 0,
        "lr": 3e-3,
        "checkpoint_interval": 5,
        "validation_interval": 0,
        "sample_interval": 0,
        "precision": "float32",
        "num_threads": 1,
    }


@pytest.fixture(scope="module")
def make_lm(tokenizer):
    def make():
        shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 64}
        return nb.LM.new("llama", tokenizer=tokenizer, seed=1, **shape)

    return make


@pytest.fixture(scope="module")
def undisturbed(make_lm, store, plain, tmp_path_factory):
    """A run of two processes that nothing happens to."""
    folder = tmp_path_factory.mktemp("runs")
    run = nb.train(make_lm(), store, folder=folder, name="whole", where=TWO, **plain)
    run.wait(progress=False)
    return run


def test_two_processes_train_as_one_that_accumulates_twice(undisturbed, make_lm, store, plain, tmp_path):
    assert undisturbed.state == "finished"
    assert (undisturbed.record["where"], undisturbed.record["launch"]) == ("process", TWO.to_dict())
    one = nb.train(make_lm(), store, folder=tmp_path, name="one", **{**plain, "accumulation": 2})
    one.wait(progress=False)
    for metric in ("loss", "grad_norm", "tokens"):
        steps, values = undisturbed.history(metric)
        assert list(steps) == list(range(1, 31))
        assert values == pytest.approx(one.history(metric)[1], rel=1e-4)
    assert nb.load(undisturbed).origin == "whole"


def test_each_rank_tells_of_its_memory_and_of_its_waiting(undisturbed):
    states = undisturbed.ranks
    assert [state.rank for state in states] == [0, 1]
    assert all(state.memory > 50e6 and 0 < state.computing <= state.seconds for state in states)
    weights = 4 * nb.load(undisturbed).num_parameters
    for state in states:  # each holds all of it: data parallel
        assert state.weights == weights
        assert state.gradients == pytest.approx(weights, rel=0.01)
        assert state.optimizer == pytest.approx(2 * weights, rel=0.01)
    assert "2 ranks, step" in undisturbed._repr_html_()


def test_the_run_belongs_to_the_supervisor_and_nothing_is_left_of_it(undisturbed):
    start = undisturbed.events("start")[-1]
    assert start["choices"]["num_threads"] == 1
    wait_until(lambda: not processes_of(undisturbed) and is_alive(start) is False)


def test_killed_ranks_are_started_again_and_end_as_if_nothing_had_happened(
    undisturbed, make_lm, store, plain, tmp_path
):
    run = nb.train(make_lm(), store, folder=tmp_path, name="killed", where=TWO, **plain)
    for rank, step in ((1, 7), (0, 17)):
        run.wait(step=step, progress=False)
        starts = len(run.events("start"))
        ranks_of(run)[rank].kill()
        while len(run.events("start")) == starts:
            assert run.is_live
            time.sleep(0.01)
    run.wait(progress=False)
    assert run.state == "finished"
    assert [e["from_step"] >= 5 for e in run.events("start")] == [False, True, True]
    said = [event["text"] for event in run.events("warning")]
    assert [text.partition(";")[0] for text in said] == [
        f"rank {r}: it was killed by SIGKILL" for r in (1, 0)
    ]
    assert run.events("end")[-1]["digest"] == undisturbed.events("end")[-1]["digest"]
    assert (run.history("loss")[1] == undisturbed.history("loss")[1]).all()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_ten_random_steps_it_ends_as_if_nothing_had_happened(make_lm, store, plain, tmp_path):
    settings = {**plain, "steps": 120}
    launch = nb.Launch(processes=2, restarts=10)
    run = nb.train(make_lm(), store, folder=tmp_path, name="killed", where=launch, **settings)
    chance = random.Random(0)
    for step in sorted(chance.sample(range(1, 119), 10)):
        starts = len(wait_until(lambda: run.events("start")))
        run.wait(step=step, progress=False)
        ranks_of(run)[chance.randrange(2)].kill()
        wait_until(lambda starts=starts: len(run.events("start")) > starts)
    run.wait(progress=False)
    assert (run.state, len(run.events("start"))) == ("finished", 11)
    whole = nb.train(make_lm(), store, folder=tmp_path, name="whole", where=TWO, **settings)
    whole.wait(progress=False)
    assert run.events("end")[-1]["digest"] == whole.events("end")[-1]["digest"]
    assert (run.history("loss")[1] == whole.history("loss")[1]).all()


def test_two_launches_at_once_finish_whatever_the_kernel_did_and_the_machine_is_called(
    make_lm, store, plain, tmp_path, monkeypatch
):
    torch.ones(512, 512) @ torch.ones(512, 512)  # the threads of this process exist
    code = "import socket\nsocket.gethostname = lambda: 'no-such-host.invalid'"
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path / "site", code))
    before = dict(os.environ)
    settings = {**plain, "steps": 3, "num_threads": None}
    runs = [nb.train(make_lm(), store, folder=tmp_path, name=n, where=TWO, **settings) for n in ("a", "b")]
    ours = ("OMP_", "GLOO_", "NCCL_", "MASTER_", "TORCHELASTIC_", "RANK", "WORLD_SIZE", "LOCAL_")
    assert not [
        name for name, value in os.environ.items() if name.startswith(ours) and before.get(name) != value
    ]
    for run in runs:
        assert run.wait(progress=False).state == "finished"
        assert run.record["choices"]["num_threads"] == max(1, num_threads(machine_profile("cpu")) // 2)
        assert run.events("start")[-1]["host"] == "no-such-host.invalid"
    assert runs[0].events("end")[-1]["digest"] == runs[1].events("end")[-1]["digest"]


def test_an_error_of_one_rank_ends_all_and_is_the_one_that_is_shown(
    make_lm, store, plain, tmp_path, monkeypatch
):
    code = """
from nbllm.training.step import Stepper
batch = Stepper.batch
def at_fault(self, position, *rest):
    if position >= 13:
        raise ValueError("no such batch")
    return batch(self, position, *rest)
Stepper.batch = at_fault
"""
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path / "site", code, rank=1))
    run = nb.train(make_lm(), store, folder=tmp_path, name="faulty", where=TWO, **plain)
    with pytest.raises(
        RunError, match=r"rank 1: ValueError: no such batch \(in at_fault, sitecustomize.py:\d+\)"
    ):
        run.wait(progress=False)
    assert run.events("end")[-1]["rank"] == run.failed_rank == 1
    assert len(run.events("start")) == 1  # it is not tried again
    assert run.log().rstrip().endswith("ValueError: no such batch")
    assert "Traceback" in run.log(rank=1)
    assert "no such batch" not in run.log(rank=0)
    first, second = CardMaker(run, 0).card()["outputs"]
    assert (first["rank"], first["failed"], second["rank"], second["failed"]) == (1, True, 0, False)
    assert "no such batch" in first["text"]
    with pytest.raises(RunError, match="Rank 2 of faulty has no log; there are: 0, 1"):
        run.log(rank=2)
    wait_until(lambda: not processes_of(run))


HANGING = """
import time
from nbllm.training.step import Stepper
batch = Stepper.batch
def hangs(self, position, *rest):
    while position >= 13:
        time.sleep(1)
    return batch(self, position, *rest)
Stepper.batch = hangs
"""


def test_a_launch_that_hangs_is_ended_by_a_signal_and_by_the_death_of_its_supervisor(
    make_lm, store, plain, tmp_path, monkeypatch
):
    """Rank 0 waits in a collective for rank 1, and no step ends any more."""
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path / "site", HANGING, rank=1))
    run = nb.train(make_lm(), store, folder=tmp_path, name="hangs", where=TWO, **plain)
    run.wait(step=3, progress=False)
    os.kill(run.events("start")[-1]["pid"], signal.SIGINT)
    wait_until(lambda: not processes_of(run))
    assert (run.state, run.reason) == (
        "stopped",
        "the launch was interrupted before a last checkpoint was written",
    )
    run.resume()
    run.wait(step=3, progress=False)
    left = processes_of(run)
    assert len(left) == 3
    os.kill(run.events("start")[-1]["pid"], signal.SIGKILL)
    wait_until(lambda: not any(process.is_running() for process in left))
    assert run.state == "lost"


def test_ranks_that_fail_before_they_begin_are_recorded_too(undisturbed, tmp_path, monkeypatch):
    path = shutil.copytree(undisturbed.path, tmp_path / "again")
    supervisor = Supervisor(path, TWO)

    def fail(folder):
        EventWriter(path, "trainer").close()  # rank 0 has taken the run
        return {1: 3}

    monkeypatch.setattr(supervisor, "_train", fail)
    supervisor.run()
    again = Run(path)
    assert (again.state, again.reason) == ("failed", "rank 1: it ended with exit code 3")
    assert again.failed_rank == 1
    monkeypatch.setattr(supervisor, "_train", lambda folder: {1: -9})
    supervisor.run()
    assert again.reason == "rank 1: it was killed by SIGKILL; after 3 restarts it is not started again"
    assert len(again.events("warning")) == 3
    supervisor.ask_to_end(15, None)
    supervisor.run()
    assert again.state == "stopped"


def test_ranks_of_another_launch_share_the_cores(undisturbed):
    record = undisturbed.record
    assert record["choices"]["num_threads"] == 1
    of = [Supervisor(undisturbed.path, nb.Launch(processes=n)) for n in (2, 3)]
    for supervisor in of:
        supervisor.record["choices"] = {**record["choices"], "num_threads": 8}
        supervisor.record["config"] = {**record["config"], "num_threads": None}
    assert [supervisor.num_threads for supervisor in of] == [8, max(1, usable_cores() // 3)]
    of[1].record["config"]["num_threads"] = 8  # as it was asked
    assert of[1].num_threads == 8


def test_where_must_be_a_place(make_lm, store, tmp_path):
    with pytest.raises(UserError, match=r"'thread', 'process' or nb.Launch"):
        nb.train(make_lm(), store, folder=tmp_path, where=2)


def test_a_steered_run_does_the_same_on_every_rank_and_is_replayed_bit_for_bit(
    make_lm, store, held_out, plain, tmp_path
):
    """Were one command missed by one rank, or taken at another step, the replay would end elsewhere."""
    rules = [nb.rules.Rule(name="lower", when="step == 3", do=nb.rules.scale(lr=0.5))]
    settings = {**plain, "steps": 10**6, "checkpoint_interval": 10, "keep_checkpoints": 10_000}
    run = nb.train(
        make_lm(),
        store,
        validation=held_out,
        folder=tmp_path,
        name="steered",
        where=TWO,
        rules=rules,
        **settings,
    )
    run.wait(step=5, progress=False)
    assert run.settings.values["lr"] == pytest.approx(1.5e-3)
    run.pause()
    held = run.step
    run.set(accumulation=2, clip=0.5)
    run.freeze("embedding.*")
    assert (run.state, run.step) == ("paused", held)
    run.resume()
    run.wait(step=held + 2, progress=False)
    run.rewind(held)
    run.set(lr=2e-3)
    assert run.sample("The value", max_new_tokens=3)
    run.evaluate()
    run.wait(step=run.step + 2, progress=False)
    saved = run.save().step
    fork = run.fork("forked", step=saved, steps=saved + 2)
    assert fork.record["launch"] == TWO.to_dict()
    os.kill(run.events("start")[-1]["pid"], signal.SIGTERM)
    run.wait(progress=False)
    assert (run.state, run.reason) == ("stopped", "the launch was interrupted")
    assert run.checkpoints[-1].step == run.step
    assert nb.replay(run, progress=False).identical
    fork.wait(progress=False)
    assert (fork.state, fork.step) == ("finished", saved + 2)
