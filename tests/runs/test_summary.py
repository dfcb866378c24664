"""One summary of a run, read whole or fast, always the same."""

import json
import random
import time

import pytest

from nbllm.runs import skim
from nbllm.runs.events import EventReader
from nbllm.runs.liveness import judge
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.store import create, read_record
from nbllm.runs.summary import read_summary, summarize
from nbllm.runs.timeline import begin_timeline


def whole(path):
    """The summary by the fold of every event."""
    record = read_record(path)
    timeline = begin_timeline(record)
    timeline.extend(EventReader(path).poll())
    return summarize(path, record, timeline, judge(timeline.session, path, record))


class Recorder:
    """Writes what a trainer might, with whatever may befall it."""

    def __init__(self, path, seed):
        self.path, self.rng = path, random.Random(seed)
        self.number = self.step = self.taken = 0
        self.lines = []
        self.time = time.time() - 1000

    def write(self, kind, step=None, **fields):
        self.time += self.rng.choice([0.01, 0.1, 0.0, -0.5])
        event = {"time": self.time, "kind": kind, "step": self.step if step is None else step, **fields}
        separators = self.rng.choice([(",", ":"), (", ", ": ")])  # not only our own writer's form
        self.lines.append(json.dumps(event, separators=separators).encode() + b"\n")

    def session(self):
        self.number += 1
        self.lines = []
        if self.rng.random() < 0.95:
            for _ in range(self.rng.randrange(3)):
                self.write("heartbeat")
            self.step = self.rng.randint(0, self.step)  # from a checkpoint
            self.write("start", from_step=self.step, **this_process())
        for _ in range(self.rng.choice([0, 3, 200, 600])):
            self.event()
        if self.rng.random() < 0.5:
            state = self.rng.choice(["finished", "stopped", "failed"])
            self.write("end", state=state, reason=self.rng.choice([None, "asked to", "x" * 2000]))
        data = b"".join(self.lines)
        if self.rng.random() < 0.3:
            data += self.rng.choice([b'{"time":1,"kind":"st', b"garbage\n", b"\n\n", data[-40:-20], b"[[[\n"])
        (self.path / "events" / f"trainer-{self.number:04}.jsonl").write_bytes(data)

    def event(self):
        kind = self.rng.random()
        if kind < 0.8:
            self.step += 1
            loss = self.rng.choice([{"loss": 5 / self.step}, {"loss": None}, {}])
            numbers = {
                "lr": 0.1,
                "tokens": self.step * 64,
                "seconds": self.step / 8,
                "tokens_per_second": 9.5,
            }
            self.write("step", **loss, **(numbers if self.rng.random() < 0.9 else {}))
        elif kind < 0.85:
            self.write("evaluation", loss=self.rng.choice([3.0, None]), bits_per_byte=self.rng.random())
        elif kind < 0.9:
            for _ in range(self.rng.choice([1, 60])):
                self.write("heartbeat")
        elif kind < 0.93:
            self.write("sample", prompt='"loss" "step"', text="x" * self.rng.choice([3, 5000]))
        elif kind < 0.95:
            self.action("set", {"steps": self.rng.randint(1, 2000)}, self.rng.choice(["applied", "refused"]))
            self.taken += 1
        elif kind < 0.98:
            self.action(self.rng.choice(["pause", "resume"]), {}, "applied")
        else:
            to = self.rng.randint(0, self.step)
            self.action("rewind", {"to": to, "keep": self.rng.randint(0, self.taken)}, "applied")
            self.step = to

    def action(self, action, args, outcome):
        self.write("action", id="a", action=action, args=args, actor="person", outcome=outcome)


@pytest.mark.parametrize("seed", range(16))
def test_the_fast_reader_agrees_with_the_fold(tmp_path, monkeypatch, seed):
    # Small enough that most steps of these short runs are left out.
    for name, value in (("WHOLE", 2000), ("PLACES", 5), ("TAIL", 300), ("SPAN", 30_000)):
        monkeypatch.setattr(skim, name, value)
    record = {"config": {"steps": 700}, "parent": {"run": "old", "step": 3} if seed % 4 == 0 else None}
    path = create(tmp_path, "run", record)
    assert read_summary(path) == whole(path)
    recorder = Recorder(path, seed)
    followed = skim.Skim(path, read_record(path))
    for _ in range(recorder.rng.randint(1, 5)):
        recorder.session()
        expected = whole(path)
        assert read_summary(path) == expected
        timeline = followed.look()  # as a panel follows it
        assert summarize(path, read_record(path), timeline, expected.state) == expected
        assert Run(path).summary == expected


def test_most_steps_are_not_read(tmp_path):
    from tests.runs.test_skim import long_run

    path = long_run(tmp_path, "long", 20_000)
    reader = skim.Skim(path, {})
    assert len(reader.look().steps.steps) < 1000
    assert read_summary(path) == whole(path)


@pytest.mark.parametrize(
    "words", [{}, {"created": "x", "parent": {"run": ["x"], "step": {}}, "config": 3, "steps": "9"}]
)
def test_a_record_may_hold_anything(tmp_path, words):
    path = create(tmp_path, "run", words)
    summary = read_summary(path)
    assert (summary.steps, summary.loss, summary.reason, summary.progress) == (None, None, "", None)
    assert summary == whole(path)
    assert str(summary).startswith("Run 'run': ")
