"""Two ranks in one process: rank 0 decides, both act on it, rank 0 records."""

from __future__ import annotations

import json
import threading

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import RefusedError, RunError
from nbllm.distributed.layout import OneProcess
from nbllm.distributed.ranks import from_rank_zero
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.run import Run
from nbllm.training.checkpoint_writer import RankZeroWriter
from nbllm.training.launcher import Launcher
from nbllm.training.steering_decisions import DoWork, EndRun, TakeAction, TakeStep, from_plain, to_plain
from nbllm.training.trainer import Trainer

SECONDS = 120


class Group:
    """What the ranks of a group share; when one fails, the others do not wait for it."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=SECONDS)
        self.text = ""
        self.tensors = [None] * size


class Rank:
    def __init__(self, group, rank):
        self.group = group
        self.rank = rank
        self.size = group.size

    def broadcast(self, value):
        if self.rank == 0:
            self.group.text = json.dumps(value)  # what is sent is plain
        self.group.barrier.wait()
        value = json.loads(self.group.text)
        self.group.barrier.wait()
        return value

    def sum(self, tensors):
        self.group.tensors[self.rank] = list(tensors)
        self.group.barrier.wait()
        sums = [torch.stack(parts).sum(0) for parts in zip(*self.group.tensors, strict=True)]
        self.group.barrier.wait()
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total)
        self.group.barrier.wait()


class Together(OneProcess):
    """Threads have no process group: gradients are summed by what the threads share."""

    def __init__(self, network, plan, ranks, *, dtype, device=None, scratch=None):
        super().__init__(network, plan, ranks, dtype=dtype)
        self.data_rank, self.data_size = ranks.rank, ranks.size

    def _end_passes(self):
        self.sum([p.grad for p in self.parameters().values() if p.grad is not None])

    def sum(self, tensors):
        self.ranks.sum(tensors)


class Watched(Trainer):
    """A trainer whose last weights are kept."""

    def finish(self, end):
        super().finish(end)
        self.end = end
        self.weights = {name: m.detach().clone() for name, m in self.optimizer.masters.items()}


class Pair:
    """Trains a run with two ranks, each in a thread of its own."""

    def __init__(self, path, size=2, writer=RankZeroWriter):
        self.run = Run(path)
        group = Group(size)
        ranks = [Rank(group, rank) for rank in range(size)]
        self.trainers = [Watched(path, where="process", ranks=r, writer=writer(r)) for r in ranks]
        self.errors = []
        self.threads = [
            threading.Thread(target=self.train, args=(trainer, group), name=f"rank {rank}", daemon=True)
            for rank, trainer in enumerate(self.trainers)
        ]
        sessions = self.run.timeline.session.number
        for thread in self.threads:
            thread.start()
        while self.run.timeline.session.number == sessions and self.threads[0].is_alive():
            self.threads[0].join(0.01)

    def train(self, trainer, group):
        try:
            trainer.run()
        except BaseException as error:
            self.errors.append(error)
            group.barrier.abort()

    def join(self):
        for thread in self.threads:
            thread.join(SECONDS)
        assert not self.errors
        assert not any(thread.is_alive() for thread in self.threads)
        return self


@pytest.fixture
def prepare(lm, store, held_out, config, tmp_path, monkeypatch):
    """Make a run's directory without starting it."""

    def prepare(name, **changes):
        with monkeypatch.context() as patch:
            patch.setattr(Launcher, "start", lambda self, path: Run(path))
            changes = {**config, "schedule": "constant", "warmup_steps": 0, **changes}
            return nb.train(lm, store, validation=held_out, folder=tmp_path, name=name, **changes).path

    return prepare


@pytest.fixture
def pair(monkeypatch):
    """Start pairs; whatever happens, they are ended with the test."""
    monkeypatch.setattr("nbllm.training.trainer.lay_out", Together)
    started = []

    def pair(path, **options):
        started.append(Pair(path, **options))
        return started[-1]

    yield pair
    for one in started:
        for trainer in one.trainers:
            trainer.exit_reason = "the test is over"
        for thread in one.threads:
            thread.join(SECONDS)


def same(pair):
    one, two = pair.trainers
    assert one.state.replace(seconds=0.0) == two.state.replace(seconds=0.0)
    assert (one.num_actions, one.paused, one.end) == (two.num_actions, two.paused, two.end)
    assert one.weights.keys() == two.weights.keys()
    return all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_both_ranks_do_what_was_asked_of_the_run(prepare, pair):
    path = prepare("steered", steps=100_000)
    both = pair(path)
    run = both.run
    run.wait(step=5, progress=False)
    run.set(lr=1e-3, accumulation=2)
    run.freeze("embedding.*", "blocks.0.*")
    run.wait(step=run.step + 2, progress=False)
    run.pause()
    held = run.step
    assert {trainer.step for trainer in both.trainers} == {held}
    run.unfreeze("blocks.0.*")
    with pytest.raises(RefusedError, match="at most 1"):
        run.set(lr=7)
    run.resume()
    run.wait(step=held + 2, progress=False)
    run.rewind(4)
    assert run.sample("The value", max_new_tokens=3)
    run.evaluate()
    run.freeze("norm.*")
    run.set(clip=0.5)
    run.wait(step=run.step + 3, progress=False)
    run.stop()
    both.join()
    assert same(both)
    rank_1 = both.trainers[1]
    assert rank_1.end == EndRun(state="stopped", reason="asked to stop")
    assert rank_1.frozen == ("norm.*",)  # the others were undone by the rewind
    assert rank_1.values["clip"] == 0.5
    assert rank_1.values["lr"] == 3e-3
    stored = nb.load(run.checkpoints[-1].path).model.named_parameters()
    assert all(torch.equal(weight, rank_1.weights[name]) for name, weight in stored)


def test_only_rank_zero_writes(prepare, pair, monkeypatch):
    wrote = set()
    save = checkpoints.save

    def seen(*args):
        wrote.add(threading.current_thread().name)
        return save(*args)

    monkeypatch.setattr(checkpoints, "save", seen)
    path = prepare("quiet", rules=[nb.rules.Rule(name="lower", when="step == 3", do=nb.rules.scale(lr=0.5))])
    wrote.clear()
    both = pair(path).join()
    assert wrote == {"rank 0"}
    assert len(list((path / "events").iterdir())) == 1
    assert list(both.run.history("loss")[0]) == list(range(1, 13))
    assert [a.action for a in both.run.timeline.actions] == ["set"]
    assert both.trainers[1].values["lr"] == pytest.approx(1.5e-3)
    assert same(both)


def test_two_ranks_train_as_one_that_accumulates_twice(prepare, pair):
    two = pair(prepare("two", where=nb.Launch(processes=2))).join()
    one = pair(prepare("one", accumulation=2), size=1).join()
    assert two.trainers[0].state.position == one.trainers[0].state.position == 12 * 4
    for name, weight in one.trainers[0].weights.items():
        torch.testing.assert_close(two.trainers[1].weights[name], weight, rtol=1e-4, atol=1e-5)
    losses = [run.history("loss")[1] for run in (two.run, one.run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_pair_that_was_stopped_goes_on_as_if_it_had_not(prepare, pair):
    path = prepare("part", steps=1_000_000)
    first = pair(path)
    first.run.wait(step=5, progress=False)
    first.run.stop()
    first.join()
    again = pair(path)
    again.run.wait(step=again.run.step + 3, progress=False)
    again.run.set(steps=again.run.step + 3)
    again.join()
    whole = pair(prepare("whole", steps=again.run.step)).join()
    for name, weight in whole.trainers[1].weights.items():
        assert torch.equal(again.trainers[1].weights[name], weight)
    assert again.run.events("end")[-1]["digest"] == whole.run.events("end")[-1]["digest"]


def test_a_checkpoint_that_the_writer_refuses_is_refused_on_every_rank(prepare, pair):
    class Refusing(RankZeroWriter):
        full = True

        def begin(self, *args):
            if self.ranks.broadcast(Refusing.full):  # one answer for both, whenever it changes
                raise RefusedError("the other machine's disk is full")
            super().begin(*args)

    both = pair(prepare("full", steps=100_000, checkpoint_interval=3), writer=Refusing)
    both.run.wait(step=4, progress=False)
    with pytest.raises(RefusedError, match="other machine"):
        both.run.save()
    assert any("other machine" in w["text"] for w in both.run.events("warning"))
    Refusing.full = False
    assert both.run.save().outcome == "applied"
    both.run.stop()
    both.join()
    assert same(both)


class Slow(RankZeroWriter):
    """Leaves open whether the checkpoint is written, as one does whose thread goes on beside the steps."""

    is_asynchronous = True
    written = threading.Event()

    def is_written(self):
        return Slow.written.is_set()


def test_steps_go_on_while_a_checkpoint_is_written_and_it_is_recorded_when_complete(prepare, pair):
    Slow.written.clear()
    both = pair(prepare("slow", steps=100_000, checkpoint_interval=4), writer=Slow)
    both.run.wait(step=9, progress=False)
    order = [(event["kind"], event["step"]) for event in both.run.events()]
    assert order.index(("step", 7)) < order.index(("checkpoint", 4)) < order.index(("step", 9))
    Slow.written.set()
    due = (both.run.step // 4 + 2) * 4
    both.run.wait(step=due + 3, progress=False)
    order = [(event["kind"], event["step"]) for event in both.run.events()]
    assert order.index(("checkpoint", due)) < order.index(("step", due + 2))
    Slow.written.clear()
    both.run.pause()  # now all are complete, and the one of this step
    assert both.run.events("checkpoint")[-1]["step"] == both.run.step
    both.run.rewind(both.run.events("checkpoint")[0]["step"])
    both.run.resume()
    both.run.wait(step=both.run.step + 5, progress=False)
    both.run.stop()
    both.join()
    assert both.run.events("checkpoint")[-1]["step"] == both.run.step
    assert same(both)


def test_what_fails_on_rank_zero_fails_on_all():
    group = Group(2)
    found = []

    def other():
        with pytest.raises(RunError, match="ZeroDivisionError"):
            from_rank_zero(Rank(group, 1), lambda: 1)
        found.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(ZeroDivisionError):
        from_rank_zero(Rank(group, 0), lambda: 1 / 0)
    thread.join(SECONDS)
    assert found


@pytest.mark.parametrize(
    "decision",
    [
        TakeAction(action="set", args={"lr": 0.5}, actor="person", id="0" * 16, asked=1.5),
        TakeAction(action="rewind", args={"to": 4}, actor="rule:x", checkpoint="step-00000004", firing=2),
        DoWork(work="sample", args={"prompt": "a"}),
        TakeStep(),
        EndRun(state="stopped", reason="asked to stop"),
        None,
    ],
)
def test_a_decision_is_the_same_after_json(decision):
    assert from_plain(json.loads(json.dumps(to_plain(decision)))) == decision
