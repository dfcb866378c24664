"""The fast reader says what the fold of all events says."""

import json

import pytest

from nbllm.runs import skim
from nbllm.runs.events import EventReader, EventWriter
from nbllm.runs.run import Run
from nbllm.runs.skim import Skim, newest_session, spark
from nbllm.runs.store import create
from nbllm.runs.timeline import SessionState, Timeline
from tests.runs.test_liveness import write

# The ends of the files


def both(path):
    """The quick look from the end of the files, and the fold of everything."""
    quick, whole = newest_session(path, {}), Timeline(EventReader(path).poll()).session
    assert quick.step == whole.step
    assert quick.loss == whole.loss
    assert quick.paused_at == whole.paused_at
    assert quick.end == whole.end
    assert quick.start == whole.start
    assert quick.last_time == whole.last_time
    return quick


def test_the_quick_look_agrees_with_the_fold(path, monkeypatch):
    monkeypatch.setattr(skim, "BLOCK", 300)  # so that lines lie across blocks
    assert both(path) == SessionState()
    start = ("start", 0, {"from_step": 0})
    steps = [("step", n, {"loss": 5.0 / n, "text": "x" * (n % 90)}) for n in range(1, 60)]
    write(path, *[("heartbeat", 0, {})] * 30, start, *steps)
    assert both(path).step == 59
    pause = ("action", 59, {"action": "pause", "args": {}, "outcome": "applied"})
    write(
        path,
        ("start", 59, {"from_step": 59}),
        ("step", 60, {"loss": 1.0}),
        pause,
        *[("heartbeat", 59, {})] * 300,
    )
    assert both(path).paused_at == 59
    write(path, ("start", 0, {"from_step": 0}), ("step", 3, {"loss": None}), ("step", 4, {"loss": 2.0}))
    assert both(path).step == 4
    rewind = ("action", 4, {"action": "rewind", "args": {"to": 2, "keep": 0}, "outcome": "applied"})
    write(path, start, *steps[:4], rewind)
    assert both(path).step == 2
    write(path, ("end", 0, {"state": "failed", "reason": "before it could start"}))
    assert both(path).end["reason"] == "before it could start"
    last = write(path, start, *steps[:5], ("end", 5, {"state": "finished"}))
    with open(last, "ab") as file:
        file.write(b'{"time":1,"kind":"st')
    assert both(path).end["state"] == "finished"
    EventWriter(path).close()  # a trainer that was killed before its first event
    assert both(path).end["state"] == "finished"


def test_the_quick_look_survives_garbage(path):
    file = write(path, ("start", 0, {"from_step": 0}), ("step", 7, {"loss": 1.0}))
    with open(file, "ab") as opened:
        opened.write(b"garbage\n" * 50 + b"\x00" * 5000 + b"\n[[[\n")
    assert both(path).step == 7
    file.write_bytes(b"z" * 100_000)
    assert newest_session(path, {}) == SessionState()


# Long runs


def long_run(folder, name, steps, *, extra=()):
    """A long run, written quickly: (after which step, line) of `extra` are put in between."""
    path = create(folder, name, {"steps": steps})
    between = dict(extra)
    with open(path / "events" / "trainer-0001.jsonl", "w") as file:
        file.write('{"time":1764032000.5,"kind":"start","step":0,"from_step":0,"host":"elsewhere"}\n')
        for step in range(1, steps + 1):
            file.write(
                f'{{"time":1764032000.5,"kind":"step","step":{step},"loss":{3 + 1000 / (step + 300):.7f},"lr":0.0009,'
                f'"grad_norm":0.8712345,"tokens":{step * 2048},"tokens_per_second":4123.12,"memory":812345678,'
                f'"seconds":{step}.25}}\n'
            )
            if step in between:
                file.write(json.dumps(between[step]) + "\n")
    return path


def evaluation(step, bits):
    return {"time": 1.0, "kind": "evaluation", "step": step, "loss": 3.0, "bits_per_byte": bits}


def rewind(step, to):
    return {
        "time": 1.0,
        "kind": "action",
        "step": step,
        "action": "rewind",
        "id": "r",
        "args": {"to": to, "keep": 0},
        "actor": "person",
        "outcome": "applied",
    }


def test_the_skim_of_a_long_run_says_what_the_whole_says(tmp_path):
    extra = [(500, evaluation(500, 2.5)), (9000, evaluation(9000, 2.25))]
    path = long_run(tmp_path, "long", 20_000, extra=[*extra, (19_000, evaluation(19_000, 2.125))])
    reader, whole = Skim(path, {}), Run(path).timeline
    timeline = reader.look()
    assert len(timeline.steps.steps) < 1500  # of 20,000
    assert timeline.step == whole.step == 20_000
    assert timeline.session.loss == whole.session.loss
    assert timeline.evaluations.steps == whole.evaluations.steps
    curve = reader.sparkline()
    assert len(curve) == 60
    assert curve[5:] == pytest.approx(spark(whole.steps, 60)[5:], abs=0.1)
    assert curve[0] > 5.5 > 3.1 > curve[-1]
    with open(path / "events" / "trainer-0001.jsonl", "a") as file:
        file.write(json.dumps(rewind(20_000, 9000)) + '\n{"time":1.0,"kind":"step","step":9001,"lo')
    timeline = reader.look()
    assert timeline.step == 9000
    assert timeline.evaluations.steps[-1] == 9000
    assert timeline.steps.steps[-1] <= 9000
    with open(path / "events" / "trainer-0001.jsonl", "a") as file:
        file.write('ss":1.5}\n')
    assert reader.look().session.loss == 1.5
    assert reader.timeline.step == 9001


def test_the_skim_steps_over_giants(tmp_path):
    path = create(tmp_path, "giant", {})
    with open(path / "events" / "trainer-0001.jsonl", "w") as file:
        file.write(json.dumps(evaluation(3, 2.5)) + "\n")
        file.write('{"time":1,"kind":"sample","step":4,"text":"' + "x" * (20 << 20) + '"}\n')
        file.write('{"time":1,"kind":"step","step":5,"loss":2.0}\n')
        file.write("no event\n" * 10)
        file.write(json.dumps(evaluation(6, 2.0)) + "\n")
    timeline = Skim(path, {}).look()
    assert timeline.evaluations.steps.tolist() == [3, 6]
    assert timeline.step == 5
    assert not timeline.samples


def test_the_skim_of_a_replaced_folder_starts_over(tmp_path):
    path = create(tmp_path, "tour", {})
    write(path, ("start", 0, {"from_step": 0}), *[("step", n, {"loss": 1.0}) for n in range(1, 41)])
    reader = Skim(path, {})
    assert reader.look().step == 40
    events = next((path / "events").iterdir())
    events.write_bytes(b"".join(events.read_bytes().splitlines(keepends=True)[:5]))
    assert reader.look().step == 4
