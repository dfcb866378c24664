import re
import sys
import threading
import time

import pytest

from nbllm.core.errors import RefusedError, RunError
from nbllm.runs import asking, waiting
from nbllm.runs.commands import CommandInbox
from nbllm.runs.events import EventWriter
from nbllm.runs.lock import TrainerLock
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.runs.summary import seconds_left


def test_a_run_is_steered_and_says_what_became_of_it(run):
    outcome = run.set(lr="1e-3", accumulation=2)
    assert re.fullmatch(r"lr=0.001, accumulation=2 applied at step \d+", repr(outcome))
    assert repr(run.pause()).startswith("pause applied at step ")
    assert run.state == "paused"
    at = run.step
    time.sleep(0.03)
    assert run.step == at
    assert run.save().step == at
    assert [info.step for info in run.checkpoints] == [at]
    assert run.sample("Once upon", max_new_tokens=5) == "and so on"
    assert run.evaluate().outcome == "applied"
    assert run.history("evaluation.bits_per_byte")[1].tolist() == [2.0]
    assert repr(run.freeze("blocks.0.*", "head")).startswith("freeze blocks.0.*, head applied")
    run.resume()
    run.wait(step=at + 5, timeout=10, progress=False)
    assert repr(run.rewind(at)) == f"rewind to {at} applied at step {run.events('action')[-1]['step']}"
    run.wait(step=at + 1, timeout=10, progress=False)
    steps = run.history()[0].tolist()
    assert steps == list(range(1, len(steps) + 1))
    assert [action.action for action in run.timeline.effective] == [
        "set"
    ]  # the freeze came after the checkpoint
    assert run.stop().outcome == "applied"
    run.wait(timeout=10, progress=False)
    assert run.state == "stopped"
    assert {action.actor for action in run.timeline.actions} == {"person"}


def test_each_actor_is_named(run):
    run.as_actor("agent:tuner").set(lr=0.5)
    run.as_actor("rule:plateau").pause()
    assert [event["actor"] for event in run.events("action")] == ["agent:tuner", "rule:plateau"]
    with pytest.raises(RunError, match="'mallory' is not an actor"):
        run.as_actor("mallory")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: run.set(lr=7), "lr must be above 0 and at most 1, not 7."),
        (lambda run: run.set(speed=7), "This run has no setting 'speed'"),
        (lambda run: run.set(), "Nothing to set was named. It offers: accumulation, lr."),
        (lambda run: run.freeze(), "patterns must be one or more names of model parts, not []."),
        (lambda run: run.freeze("nothing*"), "No part is named like nothing*."),
        (
            lambda run: run.rewind(12345),
            "There is no checkpoint at step 12345 to rewind to; there are: none yet.",
        ),
        (lambda run: run.rewind("x"), "step must be a whole number, not 'x'."),
        (lambda run: run.sample(7), "prompt must be a text, not 7."),
        (lambda run: run.sample("a", max_new_tokens=0), "max_new_tokens must be at least 1"),
    ],
)
def test_refusals(run, ask, message):
    with pytest.raises(RefusedError) as caught:
        ask(run)
    assert caught.value.what.startswith(message)
    assert run.state == "running"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("finished", "tour has finished; it cannot pause"),
        ("stopped", r"tour was stopped; it cannot pause[\s\S]*resume\(\) goes on"),
        ("failed", r"tour has failed \(out of memory\); it cannot pause[\s\S]*resume\(\)"),
        ("lost", r"tour was lost: its trainer is gone; it cannot pause[\s\S]*resume\(\)"),
    ],
)
def test_an_ended_run_says_what_to_do(path, state, message):
    with EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **{**this_process(), "pid": 1 << 30})
        if state != "lost":
            writer.write("end", 5, state=state, reason="out of memory" if state == "failed" else None)
    run = Run(path)
    assert run.state == state
    with pytest.raises(RunError, match=message):
        run.pause()
    if state != "finished":
        with pytest.raises(RunError, match=r"nb\.attach\(.*\)\.resume\(\.\.\.\) can"):
            run.resume()
    else:
        with pytest.raises(RunError, match=r"nothing to resume[\s\S]*fork"):
            run.resume()
    with pytest.raises(RunError, match="cannot fork tour"):
        run.fork("other")


def test_a_launcher_resumes_and_forks(path, start):
    loop = start()
    run = Run(path)
    run.wait(step=3, timeout=10, progress=False)
    loop.die = True
    loop.join(10)
    assert run.state == "lost"  # though this process, which held the thread, lives
    with pytest.raises(RunError, match=r"tour was lost at step \d+: its trainer is gone"):
        run.wait()

    class Launcher:
        def resume(self, run):
            start()

        def fork(self, run, name, step, changes):
            return (name, step, changes)

    run = Run(path, launcher=Launcher())
    outcome = run.resume()
    assert (outcome.outcome, outcome.step) == ("applied", 0)  # there was no checkpoint
    assert run.state == "running"
    assert run.as_actor("rule:x").fork("warm", 5, lr=1) == ("warm", 5, {"lr": 1})
    assert run.timeline.session.number == 2


def test_a_session_that_fails_before_it_begins_is_told_at_once(path):
    with EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **this_process())
        writer.write("end", 0, state="stopped")

    class Launcher:
        def resume(self, run):
            with EventWriter(path) as writer:
                writer.write("end", 0, state="failed", reason="no module named torch")

    with pytest.raises(RunError, match="could not be resumed: no module named torch"):
        Run(path, launcher=Launcher()).resume(timeout=20)


def test_what_a_loop_cannot_do_is_refused_with_its_reason(tmp_path):
    path = create(
        tmp_path, "run", {"cannot": {"rewind": "it saves nothing", "fork": "it is yours", "odd": 3}}
    )
    with TrainerLock(path), EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **this_process())
        run = Run(path)
        assert run.cannot == {"rewind": "it saves nothing", "fork": "it is yours"}
        with pytest.raises(RefusedError, match="it saves nothing"):
            run.rewind(3)
        with pytest.raises(RunError, match="it is yours"):
            run.fork("x")


def test_a_command_that_the_run_did_not_take_is_withdrawn_when_it_ends(path, start):
    loop = start(period=0.3)
    run = Run(path)
    run.wait(step=1, timeout=10, progress=False)
    loop.die = True  # it dies at its next boundary, with the command unread
    inbox, CommandInbox.take = CommandInbox.take, lambda self: []
    try:
        with pytest.raises(RunError, match="was lost: its trainer is gone; it cannot pause"):
            run.pause(timeout=10)
    finally:
        CommandInbox.take = inbox
    assert list((path / "commands").glob("*.json")) == []


def test_a_busy_run_leaves_the_command_pending(path, start):
    start(period=1.0)
    run = Run(path)
    run.wait(step=1, timeout=10, progress=False)
    outcome = run.pause(timeout=0.05)
    assert outcome.outcome == "pending"
    assert "not taken within 0.05 s; it stays asked" in repr(outcome)
    assert len(list((path / "commands").glob("*.json"))) == 1
    with pytest.raises(RunError, match="The sample did not come"):
        run.sample("x", timeout=0.01)


def test_interrupting_a_command_keeps_it_asked(path, start, monkeypatch):
    start(period=1.0)
    run = Run(path)
    run.wait(step=1, timeout=10, progress=False)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(asking, "time", type("Time", (), {"sleep": interrupt, "monotonic": time.monotonic}))
    with pytest.raises(KeyboardInterrupt, match=r"lr=0.5 stays asked"):
        run.set(lr=0.5)
    assert len(list((path / "commands").glob("*.json"))) == 1


def test_interrupting_a_wait_leaves_the_run_going(run, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting, "time", type("Time", (), {"sleep": interrupt, "monotonic": time.monotonic}))
    assert run.wait() is run
    printed = capsys.readouterr().out
    assert re.search(r"tour: step \d+ of 500, loss [\d.]+, 1,000 tokens/s, about [\d.]+ s left", printed)
    assert "Stopped waiting; tour goes on. nb.attach(" in printed
    assert run.state == "running"


def test_waiting_returns_at_the_timeout(path, start):
    start()  # it never ends by itself
    assert Run(path).wait(timeout=0.01, progress=False).state == "running"


def test_waiting_returns_at_the_step_or_the_end(path, start, capsys):
    start(steps=30)
    run = Run(path)
    assert run.wait(step=10, timeout=10).step >= 10
    assert run.wait(timeout=10).state == "finished"
    assert "tour: finished, step 30 of 500" in capsys.readouterr().out
    assert run.wait(step=10_000).state == "finished"


def test_a_file_gets_few_lines_where_a_terminal_gets_one_rewritten(path, start, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    start()
    Run(path).wait(step=30, timeout=10)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("tour: ") and last.startswith("tour: step ") and "\r" not in first + last


def test_waiting_for_a_run_that_fails_raises_its_reason(path, start):
    loop = start()
    loop.fail = "OutOfMemoryError: 3 GB"
    run = Run(path)
    with pytest.raises(RunError, match=r"tour failed at step \d+: OutOfMemoryError: 3 GB"):
        run.wait(timeout=10, progress=False)


def test_two_handles_in_many_threads_agree(run):
    other = Run(run.path)
    errors = []

    def look(handle):
        try:
            for _ in range(50):
                repr(handle), handle.state, handle.history("lr"), handle._repr_html_()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=look, args=(handle,)) for handle in (run, run, other)]
    for thread in threads:
        thread.start()
    run.set(lr=0.25)
    other.set(lr=0.5)
    for thread in threads:
        thread.join()
    assert errors == []
    run.pause()
    assert run.history()[0].tolist() == other.history()[0].tolist()
    assert run.timeline.effective == other.timeline.effective


def test_opening_what_is_no_run(tmp_path, path):
    with pytest.raises(RunError, match=r"There is no run here[\s\S]*nb\.train"):
        Run(tmp_path / "nowhere" / "x")
    with pytest.raises(RunError, match="Did you mean 'tour'"):
        Run(path.parent / "tuor")
    with pytest.raises(RunError, match="This folder holds runs: tour"):
        Run(path.parent)
    (path / "run.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="record is damaged"):
        Run(path)
    (path / "run.json").write_text('{"schema": "nbllm-run/99"}')
    with pytest.raises(RunError, match=r"schema 'nbllm-run/99'|of schema 'nbllm-run/99'"):
        Run(path)


def test_a_record_may_hold_anything(path):
    import json

    record = json.loads((path / "run.json").read_text())
    record |= {"steps": "many", "config": [1], "settings": 7, "parent": "x", "created": "yesterday"}
    (path / "run.json").write_text(json.dumps(record))
    run = Run(path)
    assert (run.steps, run.config, list(run.settings), run.parent) == (None, {}, [], None)
    assert run.state == "lost"  # it never began
    assert "tour" in repr(run)
    assert "tour" in run._repr_html_()


def test_deleting_a_run_that_is_watched(run):
    import shutil

    step = run.step
    for _ in range(20):  # the loop may write again while the folder goes
        shutil.rmtree(run.path, ignore_errors=True)
        if not run.path.exists():
            break
    assert run.state == "lost"
    assert run.step >= step
    assert "The run's folder is gone" in "".join(run.problems)
    assert "folder is gone" in run._repr_html_()
    assert run.checkpoints == []
    with pytest.raises(RunError, match="The folder of tour is gone"):
        run.pause()


def test_another_run_of_the_same_name_is_seen_as_another(path):
    from nbllm.runs.store import create

    with EventWriter(path) as writer:
        for step in range(1, 10):
            writer.write("step", step, loss=1.0)
    run = Run(path)
    assert run.step == 9
    path.rename(path.with_name("old"))
    create(path.parent, "tour", {"steps": 7})
    with EventWriter(path) as writer:
        for step in range(1, 30):
            writer.write("step", step, loss=2.0)
    assert run.step == 29
    assert run.history()[1].tolist() == [2.0] * 29
    assert run.steps == 7


def test_the_time_left_goes_by_the_clock_but_not_by_pauses(path):
    def steps(first, last, moment, period):
        return [
            {"time": moment + (s - first) * period, "kind": "step", "step": s, "seconds": 0.1}
            for s in range(first, last)
        ]

    import json

    def left(events):
        (path / "events" / "trainer-0001.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        opened = Run(path)
        return seconds_left(opened.timeline, opened.steps)

    even = steps(1, 101, 1000.0, 2.0)
    assert left(even[:3]) is None
    assert left(even) == pytest.approx(800)  # 400 of 500 steps are to come, of 2 s
    paused = even[:50] + steps(51, 101, 50_000.0, 2.0)
    assert 800 < left(paused) < 1000
    clock_went_back = even[:50] + steps(51, 101, 500.0, 2.0)
    assert 700 < left(clock_went_back) < 801
    assert left(steps(1, 600, 0.0, 1.0)) == 0
    assert left(steps(1, 101, 0.0, 0.0)) is None
