"""A loop in miniature that keeps to the protocol: it counts instead of training."""

import threading
import time

import pytest

from nbllm.runs import checkpoint
from nbllm.runs.commands import CommandInbox
from nbllm.runs.events import EventReader, EventWriter
from nbllm.runs.lock import TrainerLock
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.settings import Setting
from nbllm.runs.store import create
from nbllm.runs.timeline import Timeline

SETTINGS = [
    Setting(name="lr", low=0, low_open=True, high=1),
    Setting(name="accumulation", kind="int", low=1, high=8),
    Setting(name="freeze", kind="patterns"),
]


class Loop(threading.Thread):
    """Trains the run in `path` in a thread: a step each `period` seconds."""

    def __init__(self, path, steps=10**9, period=0.002):
        super().__init__(daemon=True)
        self.path, self.steps, self.period = path, steps, period
        self.die = False  # end without a word, as a killed process does
        self.fail = None
        self.paused = False
        self.timeline = Timeline(EventReader(path).poll())

    def emit(self, kind, **fields):
        self.timeline.extend([self.writer.write(kind, self.step, **fields)])

    def run(self):
        newest, _ = checkpoint.newest_good(self.path, self.timeline.on_branch)
        self.step = newest.step if newest else 0
        inbox = CommandInbox(self.path)
        with TrainerLock(self.path), EventWriter(self.path) as self.writer:
            self.emit("start", where="thread", from_step=self.step, checkpoint=None, **this_process())
            stopped = False
            while self.step < self.steps and not stopped:
                for command in inbox.take():
                    stopped |= self.obey(command)
                if self.die:
                    return
                if self.fail:
                    self.emit("end", state="failed", reason=self.fail)
                    return
                time.sleep(self.period)
                if not self.paused and not stopped:
                    self.step += 1
                    self.emit(
                        "step",
                        loss=5 / self.step,
                        lr=0.1,
                        tokens=self.step * 100,
                        tokens_per_second=1000.0,
                        seconds=self.step * 0.1,
                    )
            self.emit("end", state="stopped" if stopped else "finished", reason="")

    def obey(self, command):
        args, outcome, reason, target = command.args, "applied", "", None
        if command.action in ("pause", "resume"):
            self.paused = command.action == "pause"
        elif command.action == "save":
            checkpoint.save(
                self.path,
                self.step,
                lambda folder: (folder / "weights").write_bytes(b"w" * 1000) and None,
                {"num_actions": self.timeline.num_actions},
            )
        elif command.action == "sample":
            self.emit("sample", prompt=args["prompt"], text="and so on", seed=0, actor=command.actor)
        elif command.action == "evaluate":
            self.emit("evaluation", loss=3.0, bits_per_byte=2.0, tokens=100)
        elif command.action == "freeze" and args["patterns"] == ["nothing*"]:
            outcome, reason = "refused", "No part is named like nothing*."
        elif command.action == "rewind":
            target = next(i for i in checkpoint.checkpoints(self.path) if i.step == args["step"])
            args = {"to": target.step, "keep": target.num_actions}
        self.emit(
            "action",
            id=command.id,
            action=command.action,
            args=args,
            actor=command.actor,
            outcome=outcome,
            reason=reason,
            asked=command.time,
        )
        if target:
            self.step = target.step
        return command.action == "stop"


@pytest.fixture
def path(tmp_path):
    record = {"steps": 500, "config": {"steps": 500}, "settings": [s.to_dict() for s in SETTINGS]}
    return create(tmp_path / "runs", "tour", record)


@pytest.fixture
def start(path):
    """Start a loop on the run, as often as asked; all end with the test."""
    loops = []

    def begin(**options):
        loop = Loop(path, **options)
        loops.append(loop)
        loop.start()
        return loop

    yield begin
    for loop in loops:
        loop.die = True
    for loop in loops:
        loop.join(10)


@pytest.fixture
def run(path, start):
    """A run that goes on."""
    start()
    opened = Run(path)
    opened.wait(step=3, timeout=10, progress=False)
    return opened
