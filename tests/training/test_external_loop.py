"""A plain PyTorch loop that `nb.follow` records, steers, rewinds and resumes."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import shutil
import threading
import time

import numpy as np
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import RefusedError, RunError, UserError
from nbllm.runs.commands import send
from nbllm.runs.lock import held_here
from nbllm.runs.rules import Rule, pause, rewind, save, scale, stop
from nbllm.runs.run import Run
from nbllm.runs.settings import Setting
from nbllm.runs.timeline import MAX_COLUMNS
from nbllm.training.digests import weights_digest


class Task:
    """A little regression, its data drawn from all three global random sources."""

    def __init__(self):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.modules = {"model": self.model, "optimizer": self.optimizer}

    def step(self, lr):
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x = torch.randn(8, 4) * random.uniform(0.5, 1) + float(np.random.rand())  # noqa: NPY002
        loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


@pytest.fixture
def follow(tmp_path):
    """Follow a loop of twelve steps."""

    def follow(task, name="mine", **given):
        usual = {"steps": 12, "settings": {"lr": 1e-2}, "modules": task.modules, "checkpoint_interval": 4}
        return nb.follow(name, folder=tmp_path, **{**usual, **given})

    return follow


def go(task, loop):
    """Train to the end, as a person's script would."""
    with loop:
        for _ in loop:
            loop.log(loss=task.step(loop.settings["lr"]), tokens=8)
    return loop.run


def weights(run):
    return weights_digest(run.checkpoints[-1].path)


@contextlib.contextmanager
def going(task, loop):
    """The loop in a thread, to be steered from here."""

    def slowly():
        with loop:
            for _ in loop:
                loop.log(loss=task.step(loop.settings["lr"]))
                time.sleep(0.002)

    thread = threading.Thread(target=slowly)
    thread.start()
    try:
        loop.run.wait(step=3, timeout=30, progress=False)
        yield loop.run
    finally:
        with contextlib.suppress(RunError):
            loop.run.stop()
        thread.join(30)
    assert not thread.is_alive()


def test_a_loop_becomes_a_run(follow):
    task = Task()
    measured = iter([3.0, 2.0])
    loop = follow(task, evaluate=lambda: {"loss": next(measured)}, evaluation_interval=6)
    assert loop.run.state == "starting"
    run = go(task, loop)
    assert run.state == "finished"
    steps, losses = run.history("loss")
    assert list(steps) == list(range(1, 13))
    assert np.isfinite(losses).all()
    assert list(run.history("tokens")[1]) == [8 * step for step in range(1, 13)]
    assert set(run.history("lr")[1]) == {1e-2}
    for metric in ("tokens_per_second", "memory", "seconds"):
        assert (run.history(metric)[1] > 0).all()
    assert [list(part) for part in run.history("evaluation.loss")] == [[6, 12], [3.0, 2.0]]
    assert [c.step for c in run.checkpoints] == [0, 4, 8, 12]
    assert run.steps == 12
    assert (run.settings.values, run.record["where"]) == ({"steps": 12, "lr": 1e-2}, "loop")
    assert "finished" in repr(loop)
    assert "mine" in loop._repr_html_()


def test_a_rewind_repeats_exactly_what_comes_from_the_random_state(follow):
    """A rewind restores model, optimizer and the random state; sampling and measuring leave it as it was."""
    task = Task()
    plain = go(task, follow(task, "plain"))
    task = Task()

    def draw(prompt):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return prompt + "!"

    asked = [nb.rules.sample("a"), nb.rules.evaluate(), rewind(1)]
    rules = [Rule(name="back", when="step == 7", do=asked, limit=1)]
    back = go(task, follow(task, "back", rules=rules, sample=draw, evaluate=lambda: {"loss": torch.rand(1)}))
    assert [(a.action, a.outcome) for a in back.timeline.actions] == [
        ("sample", "applied"),
        ("evaluate", "applied"),
        ("rewind", "applied"),
    ]
    assert [e["from_step"] for e in back.events("start")] == [0]
    assert [e["step"] for e in back.events("step")] == [*range(1, 8), *range(5, 13)]
    assert list(back.history("loss")[1]) == list(plain.history("loss")[1])
    assert weights(back) == weights(plain)
    assert [(e["text"], e["actor"]) for e in back.events("sample")] == [("a!", "rule:back")]


@pytest.mark.parametrize("action", [nb.rules.sample("a"), nb.rules.evaluate()])
def test_what_is_measured_in_between_changes_nothing_that_follows(follow, action):
    def draw(*prompt):
        numbers = [random.random(), np.random.rand(), float(torch.rand(1))]  # noqa: NPY002
        return str(numbers) if prompt else {"loss": sum(numbers)}

    task = Task()
    plain = go(task, follow(task, "plain"))
    task = Task()
    rules = [Rule(name="often", when="step > 0", do=action, cooldown=0, limit=99)]
    asked = go(task, follow(task, "asked", rules=rules, sample=draw, evaluate=draw))
    assert len(asked.timeline.actions) == 12
    assert {a.outcome for a in asked.timeline.actions} == {"applied"}
    assert weights(asked) == weights(plain)


def test_a_rule_sets_what_the_loop_reads(follow):
    task = Task()
    run = go(task, follow(task, rules=[Rule(name="half", when="step == 5", do=scale(lr=0.5), limit=1)]))
    assert list(run.history("lr")[1]) == [1e-2] * 5 + [5e-3] * 7
    assert not run.rules["half"].is_on


def test_save_and_restore_hold_what_the_loop_likes(follow):
    task, seen = Task(), []

    def restore(state):
        seen.append(state["count"])
        task.model.load_state_dict(state["model"])

    functions = {
        "modules": None,
        "save": lambda: {"count": len(seen), "model": task.model.state_dict(), "pair": (1, None)},
        "restore": restore,
    }
    run = go(task, follow(task, rules=[Rule(name="b", when="step == 6", do=rewind(1), limit=1)], **functions))
    assert seen == [0]
    assert run.state == "finished"
    assert "rewind" not in run.cannot


def test_a_loop_in_a_thread_is_steered_like_every_run(follow):
    task = Task()
    loop = follow(task, steps=100_000, sample=lambda prompt, max_new_tokens: f"{prompt} x {max_new_tokens}")
    with going(task, loop) as run:
        assert (run.state, run.is_live) == ("running", True)
        run.pause()
        assert (run.state, run.checkpoints[-1].step) == ("paused", run.step)
        held = run.step
        time.sleep(0.1)
        assert run.step == held
        outcome = run.set(lr=5e-3)
        assert run.sample("The", max_new_tokens=7) == "The x 7"
        run.resume()
        run.wait(step=held + 3, progress=False)
        assert dict(zip(*map(list, run.history("lr")), strict=True))[outcome.step + 1] == 5e-3
        assert run.rewind(0).args["to"] == 0
        assert run.settings.values["lr"] == 1e-2
        run.set(steps=200_000)
        assert run.steps == 200_000
        for refused, reason in (
            (lambda: run.set(lr=-1), "at least 0"),
            (lambda: run.evaluate(), "gave no evaluate="),
            (lambda: run.freeze("*"), "knows which parts"),
        ):
            with pytest.raises(RefusedError, match=reason):
                refused()
        with pytest.raises(RunError, match="cannot fork"):
            run.fork("other")
        run.stop()
    assert (run.state, run.reason) == ("stopped", "asked to stop")
    assert run.checkpoints[-1].step == run.step
    with pytest.raises(RunError, match="resume=True"):
        nb.attach(run.path).resume()
    with pytest.raises(RunError, match="cannot be replayed"):
        nb.replay(run)


@pytest.mark.parametrize(
    ("given", "cannot"),
    [
        ({"modules": None}, {"save", "rewind", "evaluate", "sample"}),
        ({"modules": None, "save": dict}, {"rewind", "evaluate", "sample"}),
        ({"evaluate": dict, "sample": str}, set()),
    ],
)
def test_what_a_loop_cannot_do_is_recorded_and_refused(follow, given, cannot):
    task = Task()
    always = {"start_again", "fork", "replay", "freeze", "unfreeze"}
    loop = follow(task, **given)
    assert set(loop.run.cannot) == cannot | always
    wanted = {"save": {}, "rewind": {"step": 0}, "evaluate": {}, "sample": {}, "freeze": {"patterns": ["*"]}}
    commands = {action: send(loop.run.path, action, args) for action, args in wanted.items()}
    send(loop.run.path, "pause")
    send(loop.run.path, "resume")
    run = go(task, loop)
    for action, command in commands.items():
        answer = run.timeline.answer(command.id)
        if action in loop.run.cannot:
            assert (answer.outcome, answer.reason) == ("refused", loop.run.cannot[action])
        else:
            assert answer.outcome == "applied"
    assert run.state == "finished"
    assert (len(run.checkpoints) == 0) == ("save" in cannot)
    assert run.events("warning") == []


def test_an_error_in_the_loop_is_the_runs_failure(follow):
    task = Task()
    loop = follow(task)
    with pytest.raises(ZeroDivisionError), loop:
        for step in loop:
            loop.log(loss=task.step(1e-2))
            if step == 5:
                1 / 0  # noqa: B018
    assert loop.run.state == "failed"
    assert loop.run.reason.startswith("ZeroDivisionError: division by zero (in test_an_error")
    assert loop.run.step == 5


def test_an_error_that_nbllm_raises_names_the_line_that_called_it(follow):
    loop = follow(Task())
    with pytest.raises(UserError), loop:
        for _ in loop:
            loop.log(loss="none")
    assert (
        "(in test_an_error_that_nbllm_raises" in loop.run.reason
        and "test_external_loop.py:" in loop.run.reason
    )


@pytest.mark.parametrize("before", [False, True])
def test_a_notebook_shows_the_panel_once_where_the_loop_begins(follow, monkeypatch, before):
    shown = []
    monkeypatch.setattr("nbllm.core.showing._show", shown.append)
    task = Task()
    loop = follow(task)
    loop.shown = before
    go(task, loop)
    assert shown == ([] if before else [loop])


def test_an_error_of_any_length_is_the_runs_failure(follow):
    loop = follow(Task())
    with pytest.raises(RuntimeError), loop:
        for _ in loop:
            raise RuntimeError("the whole data set: " + "x" * 5_000_000)
    assert loop.run.state == "failed"
    assert loop.run.reason.startswith("RuntimeError: the whole data set: xxx")


def test_a_loop_whose_folder_is_deleted_ends(follow, capsys):
    task = Task()
    loop = follow(task, steps=1000)
    with loop:
        for step in loop:
            loop.log(loss=task.step(1e-2))
            if step == 5:
                shutil.rmtree(loop.run.path)
    assert loop.step == 6
    assert not loop.run.path.exists()
    assert "mine has ended at step 6: the run's folder is gone" in capsys.readouterr().err
    with pytest.raises(RunError, match="The folder of mine is gone"):
        loop.run.wait(progress=False)
    assert not held_here(loop.run.path)


@pytest.mark.parametrize("watched", [True, False])
def test_a_loop_that_is_interrupted_or_left_has_stopped(follow, watched):
    for error, how in ((KeyboardInterrupt(), "interrupted"), (None, "left")):
        task = Task()
        loop = follow(task, name=how)
        with contextlib.suppress(KeyboardInterrupt), loop if watched else contextlib.nullcontext():
            for step in loop:
                loop.log(loss=task.step(1e-2))
                if step == 5 and error is None:
                    break
                if step == 5:
                    raise error
        gc.collect()
        assert loop.run.state == "stopped"
        unseen = "; only inside `with loop:` it is seen whether by an error"
        expected = (
            f"the loop was {how} in the step after 5"
            if watched
            else "the loop was left in the step after 5" + unseen
        )
        assert loop.run.reason == expected
        go(task, follow(task, name=how, resume=True))  # the lock was released


def test_an_error_without_with_leaves_a_run_that_has_stopped(follow):
    task = Task()
    loop = follow(task)
    with pytest.raises(ZeroDivisionError):
        for step in loop:
            if step == 5:
                1 / 0  # noqa: B018
    assert loop.run.state == "stopped"


class Loader:
    """As many batches in each epoch, like a data loader."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter(range(len(self)))


def train_epochs(task, loop, epochs=3, loader=None):
    """Train over a loader's batches, and return those that were trained on."""
    seen = []
    with loop:
        for _ in range(epochs):
            for batch in loop.over(loader or Loader()):
                loop.log(loss=task.step(loop.settings["lr"]))
                seen.append(batch)
    return seen


@pytest.mark.parametrize("steps", [None, 12])
def test_a_loop_over_the_batches_of_epochs_finishes(follow, steps):
    task = Task()
    plain = go(task, follow(task, "plain"))
    task = Task()
    loop = follow(task, steps=steps)
    assert train_epochs(task, loop) == [0, 1, 2, 3] * 3
    run = loop.run
    assert (run.state, run.step, run.reason) == ("finished", 12, "")
    assert [c.step for c in run.checkpoints] == [0, 4, 8, 12]
    assert weights(run) == weights(plain)


def test_a_data_loader_of_torch_is_iterated_over_as_it_is(follow):
    task = Task()
    rows = torch.arange(10.0)[:, None]
    loader = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True, generator=torch.Generator())
    batches = train_epochs(task, follow(task, steps=None), 2, loader)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    assert sorted(torch.cat(batches[:3]).flatten().tolist()) == rows.flatten().tolist()


def test_batches_end_with_the_run(follow):
    """After its steps, or when it is stopped, the epochs that are left have no batches."""
    task = Task()
    loop = follow(task, steps=6)
    assert train_epochs(task, loop) == [0, 1, 2, 3, 0, 1]
    assert (loop.run.state, loop.run.step) == ("finished", 6)
    loop = follow(task, "stopped", rules=[Rule(name="enough", when="step == 5", do=stop())])
    assert train_epochs(task, loop) == [0, 1, 2, 3, 0]
    assert (loop.run.state, loop.run.step) == ("stopped", 5)


def test_batches_that_are_left_early_have_not_finished(follow):
    task = Task()
    loop = follow(task, steps=None)
    with loop:
        for batch in loop.over(Loader()):
            if batch == 2:
                break
    assert (loop.run.state, loop.run.step) == ("stopped", 2)
    loop = follow(task, "few", steps=20)
    train_epochs(task, loop)
    assert (loop.run.state, loop.run.step) == ("stopped", 12)


@pytest.mark.parametrize("where", ["loop", "loader"])
def test_an_error_between_batches_is_the_runs_failure(follow, where):
    task = Task()

    def broken():
        yield from range(3)
        raise OSError("no such file")

    loop = follow(task, steps=None)
    with pytest.raises(OSError if where == "loader" else ZeroDivisionError), loop:
        for batch in loop.over(broken()):
            loop.log(loss=task.step(1e-2))
            1 // (batch - 2 if where == "loop" else 1)
    assert loop.run.state == "failed"
    assert ("no such file" if where == "loader" else "ZeroDivisionError") in loop.run.reason


def test_a_run_of_a_compiled_model_is_taken_up_without_compiling(follow):
    task = Task()
    compiled = {"model": torch.compile(task.model, backend="eager"), "optimizer": task.optimizer}
    go(task, follow(task, "compiled", steps=6, modules=compiled))
    again = Task()
    loop = follow(again, "compiled", steps=6, resume=True)
    assert list(loop) == []
    for restored, trained in zip(again.model.parameters(), task.model.parameters(), strict=True):
        assert torch.equal(restored, trained)


def test_epochs_may_be_zipped_with_the_loop_too(follow):
    task = Task()
    loop = follow(task, rules=[Rule(name="enough", when="step == 5", do=stop())])
    with loop:
        for _ in range(3):
            for _, _ in zip(loop, Loader(), strict=False):
                loop.log(loss=task.step(1e-2))
    assert (loop.run.state, loop.run.step) == ("stopped", 5)


def test_over_is_used_inside_with(follow):
    task = Task()
    loop = follow(task)
    with pytest.raises(UserError, match="inside `with loop:`"):
        loop.over(Loader())
    train_epochs(task, loop)
    with pytest.raises(UserError, match="inside `with loop:`"):
        loop.over(Loader())


def test_a_pause_can_be_interrupted(follow, monkeypatch):
    task = Task()
    loop = follow(task, rules=[Rule(name="hold", when="step == 5", do=pause())])
    import nbllm.training.session as session

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        go(task, loop)
    assert (loop.run.state, loop.run.step) == ("stopped", 5)


def test_a_script_run_again_goes_on_to_the_same_end(follow):
    task = Task()
    whole = weights(go(task, follow(task, "whole")))
    task = Task()
    run = go(task, follow(task, rules=[Rule(name="halt", when="step == 7", do=stop(), limit=1)]))
    assert (run.state, run.step) == ("stopped", 7)
    send(run.path, "stop")  # sent to a session that has ended
    task = Task()
    torch.rand(100)  # another random state, as in a new process
    again = go(task, follow(task, resume=True))
    assert again.path == run.path
    assert (again.state, again.step, [e["from_step"] for e in again.events("start")]) == (
        "finished",
        12,
        [0, 7],
    )
    assert weights(again) == whole
    model = {name: value.clone() for name, value in task.model.state_dict().items()}
    task = Task()
    done = follow(task, resume=True)
    assert list(done) == []  # it has finished: it is restored
    assert all(torch.equal(value, model[name]) for name, value in task.model.state_dict().items())
    new = follow(Task())
    assert new.run.name == "mine-2"


def test_a_killed_script_goes_on_from_its_newest_checkpoint(follow):
    task = Task()
    whole = go(task, follow(task, "whole"))
    task = Task()
    loop = follow(task, rules=[Rule(name="half", when="step == 6", do=scale(lr=0.5), cooldown=0)])
    turn = iter(loop)
    for _ in range(8):
        next(turn)
        loop.log(loss=task.step(loop.settings["lr"]))
    loop._session.release()  # what the system does for a process that dies
    task = Task()
    again = go(task, follow(task, resume=True))
    turn.close()
    starts = [e["from_step"] for e in again.events("start")]
    assert starts == [0, 4]
    assert list(again.history("lr")[1]) == [1e-2] * 6 + [5e-3] * 6  # repeated at its step, and only once
    assert again.rules["half"].fired == 1
    assert list(again.history("loss")[1])[:6] == list(whole.history("loss")[1])[:6]


def test_settings_of_the_run_stay_and_the_script_is_told(follow):
    task = Task()
    rules = [Rule(name="a", when="step == 3", do=scale(lr=0.5)), Rule(name="b", when="step == 4", do=stop())]
    go(task, follow(task, rules=rules))
    loop = follow(task, settings={"lr": 1.0}, resume=True)
    go(task, loop)
    assert loop.settings["lr"] == 5e-3
    (warning,) = [w["text"] for w in loop.run.events("warning") if "script" in w["text"]]
    assert warning == "lr is 0.005 in the run, which stays, and 1.0 in the script"


@pytest.mark.parametrize("script", ["same", "none", "others"])
def test_rules_of_the_run_stay_and_a_script_with_others_is_told(follow, script):
    task = Task()
    rules = [Rule(name="halt", when="step == 3", do=[scale(lr=0.5), stop()], limit=1), nb.rules.spike()]
    go(task, follow(task, rules=rules))
    now = {"same": rules, "none": [], "others": [nb.rules.nan()]}[script]
    run = go(task, follow(task, rules=now, resume=True))
    assert (run.state, [rule.name for rule in run.rules]) == ("finished", ["halt", "spike"])
    told = [
        w["step"] for w in run.events("warning") if w["text"].startswith("the rules are those of the run")
    ]
    assert told == ([3] if script == "others" else [])


def test_a_run_that_cannot_be_taken_up_says_why(follow, tmp_path):
    task = Task()
    go(task, follow(task))
    with pytest.raises(RunError, match="the script has others"):
        follow(task, resume=True, settings={"rate": 1.0})
    with pytest.raises(RunError, match="gave nothing to restore"):
        follow(task, resume=True, modules=None)
    loop = follow(task, resume=True, modules={"net": task.model})
    with pytest.raises(RunError, match="holds no 'net'"):
        list(loop)
    assert loop.run.state == "failed"
    record = json.loads((tmp_path / "mine" / "run.json").read_text())
    (tmp_path / "mine" / "run.json").write_text(json.dumps({**record, "where": "process"}))
    with pytest.raises(RunError, match="not made by nb.follow"):
        follow(task, resume=True)
    assert (
        go(task, follow(task, "fresh", resume=True)).state == "finished"
    )  # there is no such run: it is made


def test_a_run_under_way_is_not_taken_twice(follow):
    task = Task()
    loop = follow(task, steps=100_000)
    with going(task, loop) as run:
        other = follow(task, steps=100_000, resume=True)
        with pytest.raises(RunError, match="being trained by process"):
            next(iter(other))
        assert run.is_live
    with pytest.raises(RunError, match="has ended"):
        list(loop)


def test_without_a_number_of_steps_it_goes_on_until_it_is_left(follow):
    task = Task()
    loop = follow(task, steps=None)
    with loop:
        for step in loop:
            if step == 20:
                break
    assert (loop.run.steps, loop.run.step, loop.run.state) == (None, 20, "stopped")
    assert list(loop.settings) == ["lr"]


def test_a_loss_that_is_not_finite_gets_no_checkpoint_and_is_acted_on(follow):
    task = Task()
    loop = follow(task, rules=[nb.rules.nan()])
    seen = []
    with loop:
        for step in loop:
            loss = task.step(loop.settings["lr"])
            seen.append(step)
            loop.log(loss=float("nan") if step == 7 and loop.settings["lr"] > 6e-3 else loss)
    assert seen == [*range(8), *range(4, 12)]
    assert [(a.action, a.step) for a in loop.run.timeline.actions] == [("rewind", 8), ("set", 4)]
    warnings = [w["text"] for w in loop.run.events("warning")]
    assert warnings == ["the loss is not finite; the last checkpoint is kept instead"]


def test_ever_new_metrics_are_left_out_with_a_warning(follow):
    loop = follow(Task(), steps=300)
    with loop:
        for step in loop:
            loop.log(loss=1.0, tokens=8, **{f"metric_{step}": step})
    steps = loop.run.events("step")
    names = {name for event in steps for name in event} - {"kind"}
    assert names == set(loop.run.timeline.steps.columns)
    assert len(names) == MAX_COLUMNS
    assert all(event["loss"] == 1.0 for event in steps)
    (warning,) = loop.run.events("warning")
    assert "more than 64 metrics: 'metric_" in warning["text"]
    assert len(loop._session.decider.watch.memory._metrics) < MAX_COLUMNS


def test_numbers_of_every_kind_are_taken_and_others_refused(follow):
    loop = follow(Task())
    with loop:
        for _ in loop:
            loop.log(loss=torch.tensor(2.5), accuracy=np.float32(0.5), count=3)
            loop.log(count=4, nested=torch.tensor([[1.5]]))
            for bad in (
                {"x": "much"},
                {"x": torch.zeros(2)},
                {"x": None},
                {"x": True},
                {"step": 3},
                {"memory": 1},
                {"x": 10**400},
                {"tokens": float("nan")},
                {"tokens": float("inf")},
                {"tokens": -1},
            ):
                with pytest.raises(UserError):
                    loop.log(**bad)
            break
        loop._session.take_step(0.1)
    with pytest.raises(UserError, match="no step is under way"):
        loop.log(loss=1)
    (event,) = loop.run.events("step")
    assert {name: event[name] for name in ("loss", "accuracy", "count", "nested")} == {
        "loss": 2.5,
        "accuracy": 0.5,
        "count": 4,
        "nested": 1.5,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"stepz": 3}, "Did you mean 'steps'"),
        ({"settings": {"lr": "fast"}}, "must be a number"),
        ({"settings": {"lr": True}}, "must be a number"),
        ({"settings": {"steps": 3}}, "cannot be the name"),
        ({"settings": {"a b": 3}}, "cannot be the name"),
        ({"settings": {"lr": Setting(name="rate", default=1)}}, "needs its own name"),
        ({"settings": {"lr": Setting(name="lr")}}, "a default"),
        ({"settings": {"lr": Setting(name="lr", default=2, high=1)}}, "at most 1"),
        ({"modules": {"model": 3}}, "no state_dict"),
        ({"modules": [1]}, "must be a dict"),
        ({"restore": print}, "no save="),
        ({"save": 3}, "must be a function"),
        ({"checkpoint_interval": -1}, "at least 0"),
        ({"keep_checkpoints": 0}, "greater than 0"),
        ({"rules": "spike"}, "list of rules"),
        ({"name": "../up"}, "cannot be the name of a run"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(follow, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        follow(Task(), **given)
    assert list(tmp_path.iterdir()) == []


def test_ranges_follow_from_first_values(follow):
    declared = {"a": 0.1, "b": 3, "c": 0, "d": -1.5, "e": Setting(name="e", default=0.5, low=0, high=1)}
    loop = follow(Task(), settings=declared, steps=None)
    shown = {s.name: (s.kind, s.low, s.high) for s in loop.run.settings}
    assert shown == {
        "a": ("float", 0, None),
        "b": ("int", 1, None),
        "c": ("int", 0, None),
        "d": ("float", None, None),
        "e": ("float", 0, 1),
    }
    assert loop.run.settings.values == {"a": 0.1, "b": 3, "c": 0, "d": -1.5, "e": 0.5}


def test_what_cannot_be_saved_is_an_error_at_once_and_says_where(follow):
    task = Task()
    loop = follow(task, save=lambda: {"hook": print}, restore=print)
    with pytest.raises(UserError, match="/own/hook"):
        go(task, loop)
    assert loop.run.state == "failed"


def test_a_sample_that_goes_wrong_ends_no_loop(follow):
    task = Task()

    def sample(prompt):
        raise MemoryError("too much")

    rules = [Rule(name="odd", when="step == 3", do=[nb.rules.sample("x"), save()], limit=1)]
    run = go(task, follow(task, sample=sample, rules=rules))
    assert run.state == "finished"
    first = run.timeline.actions[0]
    assert (first.outcome, first.reason) == ("refused", "MemoryError: too much")
    assert 3 in [c.step for c in Run(run.path).checkpoints]
