import os
import socket
import subprocess
import sys
import time

import pytest

from nbllm.runs import process
from nbllm.runs.process import describe, is_alive, same_machine, this_process


def test_this_process_is_alive():
    assert is_alive(this_process()) is True
    assert describe(this_process()) == f"process {os.getpid()} on {socket.gethostname()}"


def test_an_id_that_was_given_to_another_process_does_not_count():
    assert is_alive({**this_process(), "pid_started": this_process()["pid_started"] - 60}) is False


def test_a_moved_clock_does_not_kill_a_run(monkeypatch):
    told = this_process()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert is_alive(told) is True


def test_wall_time_of_the_start_is_understood_too():
    import psutil

    assert is_alive({**this_process(), "pid_started": psutil.Process().create_time()}) is True


@pytest.mark.parametrize("pid", [None, "1", -1, 0, True, 1 << 40, 1.5])
def test_ids_that_are_none(pid):
    assert is_alive({**this_process(), "pid": pid}) is False


def test_a_killed_child_counts_as_gone_before_and_after_it_is_collected():
    code = (
        "import json,sys,time;from nbllm.runs.process import this_process;print(json.dumps(this_process()));"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code + "sys.stdout.flush();time.sleep(60)"], stdout=subprocess.PIPE, text=True
    )
    with child:
        import json

        told = json.loads(child.stdout.readline())
        assert is_alive(told) is True
        child.kill()
        deadline = time.monotonic() + 10
        while is_alive(told) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_alive(told) is False  # a zombie: nobody has collected it yet
    assert is_alive(told) is False


def test_another_machine_another_boot_another_container_cannot_be_judged():
    assert is_alive({**this_process(), "machine": "other", "host": socket.gethostname()}) is None
    assert is_alive({"pid": os.getpid(), "host": "elsewhere"}) is None
    assert same_machine({"host": socket.gethostname()})
    assert describe({}) == "process ? on an unknown host"


def test_where_there_is_no_proc_folder(monkeypatch, tmp_path):
    import psutil

    monkeypatch.setattr(process, "PROC", tmp_path)
    process._machine.cache_clear()
    process._own_start.cache_clear()
    try:
        told = this_process()
        assert told["machine"] == ""
        assert told["pid_started"] == psutil.Process().create_time()
        assert is_alive(told) is True
        assert is_alive({**told, "pid_started": told["pid_started"] - 60}) is False
    finally:
        process._machine.cache_clear()
        process._own_start.cache_clear()
