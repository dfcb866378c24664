from __future__ import annotations

import sys
import threading
import time

import pytest

from nbllm.core.switch_interval import short_switch_interval


def test_turns_are_short_within_and_as_before_after_the_last():
    before = sys.getswitchinterval()
    with short_switch_interval():
        with short_switch_interval():
            assert sys.getswitchinterval() == pytest.approx(1e-4)
        assert sys.getswitchinterval() == pytest.approx(1e-4)
    assert sys.getswitchinterval() == pytest.approx(before)


def test_an_error_restores_them_too():
    before = sys.getswitchinterval()
    with pytest.raises(ValueError, match="x"), short_switch_interval():
        raise ValueError("x")
    assert sys.getswitchinterval() == pytest.approx(before)


def turns(seconds: float = 0.5) -> int:
    """Return how often a thread that keeps letting go gets its turn beside one that never does."""
    taken, done = 0, threading.Event()

    def let_go() -> None:
        nonlocal taken
        while not done.is_set():
            time.sleep(0)
            taken += 1

    thread = threading.Thread(target=let_go)
    thread.start()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sum(range(1000))
    done.set()
    thread.join()
    return taken


def test_a_thread_beside_busy_python_gets_its_turn_far_more_often():
    usual = turns()
    with short_switch_interval():
        assert turns() > 3 * usual
