import json
import os
import time

import pytest

from nbllm.runs.events import EventWriter
from nbllm.runs.liveness import judge
from nbllm.runs.lock import TrainerLock
from nbllm.runs.process import _started, is_alive, this_process
from nbllm.runs.run import Run
from nbllm.runs.timeline import SessionState

ELSEWHERE = {"pid": 7, "pid_started": 1.0, "host": "far-away", "machine": "another"}


def write(path, *events):
    with EventWriter(path) as writer:
        for kind, step, fields in events:
            writer.write(kind, step, **fields)
    return writer.path


def test_a_run_that_has_not_begun_is_starting_and_later_lost(path, monkeypatch):
    assert Run(path).state == "starting"
    record = json.loads((path / "run.json").read_text())
    assert judge(SessionState(), path, {"created": record["created"] - 300}) == "lost"
    assert (
        judge(SessionState(), path, {"created": record["created"] + 60}) == "starting"
    )  # the clock went back a little
    assert judge(SessionState(), path, {}) == "lost"


def test_a_process_of_this_machine_is_looked_up(path):
    with TrainerLock(path):
        write(path, ("start", 0, {"from_step": 0, **this_process()}))
        assert Run(path).state == "running"
        write(path, ("start", 0, {"from_step": 0, **this_process(), "pid_started": 1.0}))
        assert Run(path).state == "lost"


def test_a_process_that_lives_but_does_not_hold_the_lock_trains_nothing(path):
    write(path, ("start", 0, {"from_step": 0, "where": "thread", **this_process()}))
    assert Run(path).state == "lost"
    first = {**this_process(), "pid": 1, "pid_started": _started(1)}  # a process that always lives
    assert is_alive(first)
    write(path, ("start", 0, {"from_step": 0, "where": "process", **first}))
    assert Run(path).state == "lost"
    (path / "trainer.lock").touch()  # of a trainer that was killed
    assert Run(path).state == "lost"


def test_a_process_of_which_nothing_but_the_id_is_said_is_not_believed(path):
    for said in (None, "x", True, float("inf")):
        assert is_alive({**this_process(), "pid": 1, "pid_started": said}) is False


def test_another_machine_is_judged_by_its_silence(path):
    file = write(path, ("start", 0, {"from_step": 0, **ELSEWHERE}), ("step", 1, {"loss": 1.0}))
    assert Run(path).state == "running"
    old = time.time() - 100
    os.utime(file, (old, old))
    text = file.read_text().splitlines()
    events = [json.loads(line) | {"time": old} for line in text]
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    os.utime(file, (old, old))
    run = Run(path)
    assert run.state == "lost"
    # Its clock is far off, but we see it write.
    with open(file, "a") as opened:
        opened.write(json.dumps({"time": old - 5000, "kind": "step", "step": 2}) + "\n")
    os.utime(file, (old, old))
    assert run.state == "running"
    assert judge(run.timeline.session, path, {}, grew=31.0) == "lost"


def test_a_copied_directory_of_a_run_that_was_going_is_lost_after_a_while(path, tmp_path):
    import shutil

    file = write(path, ("start", 0, {"from_step": 0, **ELSEWHERE}), ("step", 9, {"loss": 1.0}))
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    old = time.time() - 100
    (copy / "events" / file.name).write_text(
        "".join(json.dumps(json.loads(line) | {"time": old}) + "\n" for line in file.read_text().splitlines())
    )
    os.utime(copy / "events" / file.name, (old, old))
    assert Run(copy).state == "lost"
    assert Run(copy).step == 9


@pytest.mark.parametrize("said", ["finished", "stopped", "failed"])
def test_an_end_is_believed(path, said):
    write(path, ("start", 0, {**ELSEWHERE}), ("end", 5, {"state": said, "reason": "because"}))
    assert Run(path).state == said
    assert Run(path).reason == "because"


@pytest.mark.parametrize("said", [None, "great", ["x"], {}])
def test_an_end_that_says_nothing_known_is_a_failure(path, said):
    write(path, ("start", 0, {}), ("end", 5, {"state": said}))
    assert Run(path).state == "failed"
