import io
import sys
import threading
import time

import pytest

from nbllm.core import progress
from nbllm.core.progress import Progress, waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0.0)


def run(monkeypatch, stream, show=True):
    monkeypatch.setattr(sys, "stdout", stream)
    with Progress("likelihood", 200, "bytes", show=show) as line:
        line.advance(50)
        line.advance(150)
    return stream.getvalue()


def test_a_terminal_sees_one_line_rewritten_and_then_cleared(monkeypatch, eager):
    written = run(monkeypatch, Terminal())
    assert "\rlikelihood:  25% of 200 bytes" in written and "100% of 200 bytes" in written
    assert written.endswith("\r") and written.split("\r")[-2].strip() == "" and "\n" not in written


@pytest.mark.parametrize("stream, show", [(io.StringIO, True), (Terminal, False)])
def test_files_and_the_silent_see_nothing(monkeypatch, eager, stream, show):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert run(monkeypatch, stream(), show) == ""


def test_short_work_shows_nothing(monkeypatch):
    assert run(monkeypatch, Terminal()) == ""


def test_the_line_is_cleared_when_work_is_interrupted(monkeypatch, eager):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(KeyboardInterrupt), Progress("x", 2, "bytes") as line:
        line.advance(1)
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\r")


def test_what_is_waited_for_is_said_once_it_takes_a_moment_and_cleared(monkeypatch):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.05)
    monkeypatch.setattr(sys, "stdout", Terminal())
    with waiting("compiling"):
        pass
    assert sys.stdout.getvalue() == ""
    with waiting("compiling"):
        time.sleep(0.5)
        assert sys.stdout.getvalue() == "compiling"
    assert sys.stdout.getvalue() == f"compiling\r{' ' * 9}\r"


def test_a_thread_that_nobody_waits_for_says_nothing(monkeypatch, eager):
    monkeypatch.setattr(sys, "stdout", Terminal())

    def work():
        with waiting("compiling"):
            time.sleep(0.2)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert sys.stdout.getvalue() == ""
