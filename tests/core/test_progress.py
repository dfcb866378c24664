import io
import sys
import threading
import time

import pytest

from nbllm.core import progress as module
from nbllm.core.progress import progress, waiting


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(module, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN", 0.0)


def run(monkeypatch, stream, show=True):
    monkeypatch.setattr(sys, "stdout", stream)
    with progress("likelihood", 2000, "B", show=show) as line:
        line.update(500)
        line.update(1500)
    return stream.getvalue()


def test_a_terminal_sees_one_line_rewritten_and_then_cleared(monkeypatch, eager):
    written = run(monkeypatch, Terminal())
    assert "\rlikelihood:  25%|" in written and "500/2.00k" in written and "100%|" in written
    assert written.endswith("\r") and written.split("\r")[-2].strip() == "" and "\n" not in written


@pytest.mark.parametrize("stream, show", [(io.StringIO, True), (Terminal, False)])
def test_files_and_the_silent_see_nothing(monkeypatch, eager, stream, show):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert run(monkeypatch, stream(), show) == ""


def test_short_work_shows_nothing(monkeypatch):
    assert run(monkeypatch, Terminal()).strip() == ""


def test_the_line_is_cleared_when_work_is_interrupted(monkeypatch, eager):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(KeyboardInterrupt), progress("x", 2, "B") as line:
        line.update(1)
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\r")


def test_no_thread_is_left_that_watches(monkeypatch, eager):
    before = threading.active_count()
    run(monkeypatch, Terminal())
    assert threading.active_count() == before


def test_what_is_waited_for_is_said_once_it_takes_a_moment_and_cleared(monkeypatch):
    shown = threading.Event()

    class Watched(Terminal):
        def write(self, text):
            super().write(text)
            if "compiling" in text:
                shown.set()

    monkeypatch.setattr(module, "_QUIET_SECONDS", 0.05)
    monkeypatch.setattr(sys, "stdout", Watched())
    with waiting("compiling"):
        assert shown.wait(timeout=30)
    assert sys.stdout.getvalue().split("\r")[1:] == ["compiling", " " * 9, ""]


def test_what_takes_no_time_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    with waiting("compiling"):
        pass
    assert sys.stdout.getvalue() == ""


def test_a_thread_that_nobody_waits_for_says_nothing(monkeypatch, eager):
    monkeypatch.setattr(sys, "stdout", Terminal())

    def work():
        with waiting("compiling"):
            time.sleep(0.2)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert sys.stdout.getvalue() == ""
