import json
import os
import subprocess
import sys
import threading
import time

import pytest

from nbllm.core.errors import RunError
from nbllm.runs.events import EventWriter
from nbllm.runs.lock import TrainerLock, held_here, holder_of, is_held
from nbllm.runs.process import this_process

HOLD = """
import sys, time
from nbllm.runs.events import EventWriter
from nbllm.runs.lock import TrainerLock
lock = TrainerLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_trainer_in_this_process_is_told_who_is_first(tmp_path):
    with TrainerLock(tmp_path):
        assert held_here(tmp_path)
        assert holder_of(tmp_path)["pid"] == this_process()["pid"]
        with pytest.raises(RunError, match=rf"being trained by process {this_process()['pid']} on"):
            TrainerLock(tmp_path).acquire()
        caught = []

        def try_it():
            with pytest.raises(RunError) as error:
                TrainerLock(tmp_path).acquire()
            caught.append(error.value)

        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        assert len(caught) == 1
    assert not held_here(tmp_path)
    assert holder_of(tmp_path) is None
    with TrainerLock(tmp_path):
        pass


def test_it_may_be_taken_in_one_thread_and_released_in_another(tmp_path):
    lock = TrainerLock(tmp_path).acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    with TrainerLock(tmp_path):
        pass
    lock.release()  # once more has no effect


def test_waiting_for_it(tmp_path):
    lock = TrainerLock(tmp_path).acquire()
    timer = threading.Timer(0.1, lock.release)
    timer.start()
    with TrainerLock(tmp_path, timeout=10):
        assert held_here(tmp_path)
    timer.join()


def test_another_process_holds_it_until_it_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"being trained by process {child.pid} on"):
            TrainerLock(tmp_path).acquire()
        assert not held_here(tmp_path)
        assert is_held(tmp_path) in (True, None)  # None: this system cannot tell
        child.kill()
    assert is_held(tmp_path) in (False, None)
    with TrainerLock(tmp_path, timeout=5):
        assert holder_of(tmp_path)["pid"] == this_process()["pid"]


def test_asking_who_holds_it_disturbs_nobody_who_takes_it(tmp_path):
    asked, over = [], threading.Event()

    def ask():
        while not over.is_set():
            asked.append(is_held(tmp_path))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with TrainerLock(tmp_path):
                assert is_held(tmp_path)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert True in asked


def test_what_another_says_of_itself_in_the_same_place_stays(tmp_path):
    lock = TrainerLock(tmp_path).acquire()
    (tmp_path / "trainer.json").write_text('{"pid": 7}')  # of a run that was put where this one was
    lock.release()
    assert holder_of(tmp_path) == {"pid": 7}


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path):
    with pytest.raises(RunError, match="cannot be locked: No such file or directory"):
        TrainerLock(tmp_path / "gone").acquire()
    assert not (tmp_path / "gone").exists()
    assert is_held(tmp_path / "gone") in (False, None)


def test_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").write_text("")
    lock = TrainerLock(tmp_path / "file")
    with pytest.raises(RunError, match="cannot be locked"):
        lock.acquire()
    assert not held_here(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "{", "[1]", json.dumps({"pid": "<b>"})])
def test_what_is_said_of_the_holder_may_be_anything(tmp_path, text):
    with TrainerLock(tmp_path):
        (tmp_path / "trainer.json").write_text(text)
        with pytest.raises(RunError, match="being trained by"):
            TrainerLock(tmp_path).acquire()


def test_a_trainer_on_another_machine_is_not_overrun_while_it_writes(tmp_path):
    with EventWriter(tmp_path) as writer:
        writer.write("step", 1)
    elsewhere = {"pid": 7, "host": "far-away", "machine": "another-boot/pid:[1]"}
    (tmp_path / "trainer.json").write_text(json.dumps(elsewhere))
    with pytest.raises(
        RunError, match=r"seems to be trained by process 7 on far-away, which wrote \d+ s ago"
    ):
        TrainerLock(tmp_path).acquire()
    assert not held_here(tmp_path)
    old = time.time() - 60
    os.utime(writer.path, (old, old))
    with TrainerLock(tmp_path):
        assert holder_of(tmp_path)["pid"] == os.getpid()


def test_a_holder_that_was_killed_under_this_kernel_is_no_hindrance(tmp_path):
    with EventWriter(tmp_path) as writer:
        writer.write("step", 1)
    boot = this_process()["machine"].partition("/")[0]
    (tmp_path / "trainer.json").write_text(
        json.dumps({**this_process(), "machine": f"{boot}/another container"})
    )
    with TrainerLock(tmp_path):
        pass
