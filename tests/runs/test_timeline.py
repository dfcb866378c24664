"""The fold against a machine that forgets nothing: whatever happened, its rules give the same weights."""

import dataclasses
import random

import numpy as np
import pytest

from nbllm.core.errors import RunError
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.timeline import MAX_COLUMNS, Timeline

START_LR = 7


@dataclasses.dataclass(frozen=True)
class Saved:
    step: int
    num_actions: int
    weights: int
    lr: int


class Machine:
    """A trainer in miniature: integer weights that remember every step and learning rate that made them."""

    def __init__(self):
        self.events = []
        self.saved = []
        self.step, self.weights, self.lr = 0, 1, START_LR
        self.pending = []
        self.emit("start", from_step=0)
        self.save()

    def emit(self, kind, **fields):
        self.events.append({"time": 0.0, "kind": kind, "step": self.step, **fields})

    @property
    def timeline(self):
        return Timeline(self.events)

    def boundary(self):
        while self.pending and self.pending[0].step <= self.step:
            self.lr = self.pending.pop(0).args["lr"]

    def train(self, steps):
        for _ in range(steps):
            self.boundary()
            self.weights = (self.weights * 31 + self.step * 7 + self.lr) % (1 << 61)
            self.step += 1
            self.emit("step", loss=float(self.step))
        self.boundary()

    def act(self, action, **args):
        self.emit("action", id="", action=action, args=args, actor="person", outcome="applied")

    def set(self, lr):
        self.lr = lr
        self.act("set", lr=lr)

    def save(self):
        self.saved = [s for s in self.saved if s.step != self.step]
        self.saved.append(Saved(self.step, self.timeline.num_actions, self.weights, self.lr))

    def rewind(self, rng):
        there = [s for s in self.saved if self.timeline.on_branch(s)]
        back = rng.choice(there)
        self.act("rewind", to=back.step, keep=back.num_actions)
        self.restore(back)
        self.pending = self.timeline.pending_after(back.num_actions, back.step)
        assert not [a for a in self.pending if a.step > back.step]

    def restore(self, saved):
        self.step, self.weights, self.lr = saved.step, saved.weights, saved.lr

    def crash(self, rng):
        timeline = self.timeline
        there = [s for s in self.saved if timeline.on_branch(s)]
        newest = there[-1 - (rng.randrange(len(there)) if rng.random() < 0.3 else 0)]  # some are damaged
        self.restore(newest)
        self.pending = timeline.pending_after(newest.num_actions, newest.step)
        self.emit("start", from_step=newest.step)
        self.boundary()

    def replayed(self):
        """The weights from the effective actions alone, from the first step on."""
        actions = sorted(self.timeline.effective, key=lambda a: (a.step, a.index))
        weights, lr = 1, START_LR
        for step in range(self.step):
            for action in actions:
                if action.step == step:
                    lr = action.args["lr"]
            weights = (weights * 31 + step * 7 + lr) % (1 << 61)
        return weights


@pytest.mark.parametrize("seed", range(40))
def test_any_course_equals_its_replay(seed):
    rng = random.Random(seed)
    machine = Machine()
    for number in range(60):
        what = rng.choice(["train", "train", "set", "set", "save", "save", "rewind", "crash"])
        if what == "train":
            machine.train(rng.randrange(1, 6))
        elif what == "set":
            machine.set(100 + number)
        elif what == "save":
            machine.save()
        elif what == "rewind":
            machine.rewind(rng)
        else:
            machine.crash(rng)
        assert machine.weights == machine.replayed(), (number, what)
        assert machine.timeline.step == machine.step


@pytest.mark.parametrize("seed", range(10))
def test_folding_piece_by_piece_is_folding_at_once(seed):
    rng = random.Random(seed)
    machine = Machine()
    for number in range(30):
        machine.train(rng.randrange(1, 6))
        rng.choice(
            [
                machine.save,
                lambda n=number: machine.set(n),
                lambda: machine.crash(rng),
                lambda: machine.rewind(rng),
            ]
        )()
    whole, pieces = Timeline(machine.events), Timeline()
    at = 0
    while at < len(machine.events):
        size = rng.randrange(1, 9)
        pieces.extend(machine.events[at : at + size])
        at += size
    assert pieces.effective == whole.effective
    assert pieces.actions == whole.actions
    assert pieces.session == whole.session
    for mine, other in zip(pieces.history(), whole.history(), strict=True):
        np.testing.assert_array_equal(mine, other)


def event(kind, step, **fields):
    return {"time": 1.0, "kind": kind, "step": step, **fields}


def steps(first, last, **fields):
    return [event("step", s, loss=float(s), **fields) for s in range(first, last + 1)]


def test_rewinding_and_resuming_supersede_what_came_after():
    rewind = event("action", 5, action="rewind", args={"to": 2, "keep": 0}, outcome="applied")
    timeline = Timeline(
        [event("start", 0, from_step=0), *steps(1, 5), event("evaluation", 4, loss=9.0), rewind]
    )
    assert timeline.history()[0].tolist() == [1, 2]
    assert timeline.history("evaluation.loss")[0].tolist() == []
    assert timeline.step == 2
    timeline.extend([*steps(3, 6), event("start", 4, from_step=4)])
    assert timeline.history()[0].tolist() == [1, 2, 3, 4]
    assert timeline.step == 4
    timeline.extend([event("step", 3, loss=0.5)])  # a trainer that says nothing of going back
    assert timeline.history()[1].tolist() == [1.0, 2.0, 0.5]


def test_refused_and_pending_actions_change_nothing():
    timeline = Timeline(
        [
            event("action", 1, id="a", action="set", args={"lr": 1}, outcome="refused", reason="no"),
            event("action", 1, id="b", action="set", args={"lr": 1}, outcome="pending"),
        ]
    )
    assert timeline.num_actions == 0
    assert timeline.answer("a").reason == "no"
    assert timeline.answer("b") is None  # not the last word


def test_a_metric_that_appears_late_or_is_missing_is_nan_there():
    timeline = Timeline(
        [event("step", 1, loss=1.0), event("step", 2, loss=None, lr=0.1), event("step", 3, loss=2)]
    )
    np.testing.assert_array_equal(timeline.history("loss")[1], [1.0, np.nan, 2.0])
    np.testing.assert_array_equal(timeline.history("lr")[1], [np.nan, 0.1, np.nan])
    assert timeline.session.loss == 2
    with pytest.raises(RunError, match=r"no metric 'los'[\s\S]*Did you mean 'loss'"):
        timeline.history("los")


def test_hostile_numbers_and_fields():
    strange = [
        event("step", 1, loss=10**400, lr=True, grad_norm="7", memory=[1], seconds=float("nan")),
        event("step", 2, loss=1.0, **{f"made_up_{i}": 1.0 for i in range(1000)}),
        event("start", 2, from_step="x"),
        event("action", 2, id=["x"], action={"a": 1}, args=[1], actor=None, outcome="applied", reason=5),
        event("action", 2, id="r", action="rewind", args={"to": -5, "keep": "all"}, outcome="applied"),
        event("action", 2, id="q", action="rewind", args="?", outcome="applied"),
    ]
    timeline = Timeline(strange)
    np.testing.assert_array_equal(timeline.history("loss")[1], [np.nan, 1.0])
    assert len(timeline.steps.columns) <= 64
    assert timeline.step == 2


@pytest.mark.parametrize("at_once", [True, False])
def test_ever_new_metrics_are_read_in_linear_time(monkeypatch, at_once):
    from nbllm.runs import timeline as module

    made, numbers = [], module._numbers
    monkeypatch.setattr(module, "_numbers", lambda values: made.append(len(values)) or numbers(values))
    events = [
        event("step", i, **{f"metric_{i}": 1.0, "loss": 2.0, "note": "no number"}) for i in range(1, 3001)
    ]
    timeline = Timeline(events if at_once else ())
    for one in () if at_once else events:
        timeline.extend([one])
    assert len(timeline.steps.columns) == MAX_COLUMNS
    assert "note" not in timeline.steps.columns
    assert timeline.history("loss")[1].tolist() == [2.0] * 3000
    assert timeline.history("metric_3")[1][:4].tolist()[2] == 1.0
    assert sum(made) <= 3000 * MAX_COLUMNS  # numbers looked at: not one for each step and name


def test_pause_lasts_until_resumed_or_a_step_is_taken():
    pause = event("action", 3, action="pause", args={}, outcome="applied")
    resume = event("action", 3, action="resume", args={}, outcome="applied")
    base = [event("start", 0, from_step=0), *steps(1, 3), pause]
    assert Timeline([*base, event("heartbeat", 3)]).session.paused_at == 3
    assert Timeline([*base, resume]).session.paused_at is None
    assert Timeline([*base, *steps(4, 4)]).session.paused_at is None
    assert Timeline([*base, event("start", 3, from_step=3)]).session.paused_at is None
    rewound = event("action", 3, action="rewind", args={"to": 1, "keep": 0}, outcome="applied")
    assert Timeline([*base, rewound]).session.paused_at == 1


def test_a_checkpoint_overtaken_by_an_action_is_off_the_line(tmp_path):
    # Saved at 140; later a fall back to 100, and an action at 110 that it does not contain.
    later = CheckpointInfo(path=tmp_path, step=140, num_actions=0)
    early = CheckpointInfo(path=tmp_path, step=100, num_actions=0)
    acted = event("action", 110, action="set", args={"lr": 1}, outcome="applied")
    timeline = Timeline(
        [event("start", 0, from_step=0), *steps(1, 145), event("start", 100, from_step=100), acted]
    )
    assert timeline.on_branch(early)
    assert not timeline.on_branch(later)
