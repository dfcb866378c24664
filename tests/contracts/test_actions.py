"""Every action stands in one table; one that is declared here alone is sent, obeyed, recorded, worded and checked."""

from __future__ import annotations

import json
import time

import pytest

import nbllm as nb
from nbllm.cli import _arguments, main
from nbllm.core.errors import RefusedError, UserError
from nbllm.runs import actions
from nbllm.runs.actions import ACTIONS, ActionType, changes_state, words
from nbllm.runs.arguments import Argument
from nbllm.runs.commands import send
from nbllm.runs.rules import Rule
from nbllm.training import applying
from nbllm.widgets.card import CardMaker
from nbllm.widgets.training import TrainingPanel
from tests.training.conftest import config, held_out, lm, store, texts, tokenizer  # noqa: F401
from tests.widgets.conftest import Viewer


@pytest.fixture
def stretch(monkeypatch):
    """An action that exists nowhere but here: the learning rate is multiplied."""
    monkeypatch.setattr(ACTIONS, "_entries", dict(ACTIONS._entries))

    def act(trainer, *, by, gently=False):
        trainer.set_values({"lr": trainer.values["lr"] * by})

    return actions.declare(
        ActionType(
            name="stretch",
            required=(Argument(name="by", kind="float", low=0, high=8),),
            optional=(Argument(name="gently", kind="flag"),),
            for_rules=True,
            changes_state=True,
            scripted=True,
            past="stretched",
            example="stretch 2",
            act=act,
        )
    )


@pytest.fixture
def run(stretch, lm, store, config, tmp_path):  # noqa: F811
    run = nb.train(
        lm, store, folder=tmp_path, name="run", **{**config, "steps": 100_000, "checkpoint_interval": 0}
    )
    run.wait(step=2, progress=False)
    yield run
    if run.is_live:
        run.stop()
    run.wait(progress=False)


def test_an_action_of_one_place_is_sent_obeyed_recorded_worded_and_repeated(run, tmp_path, capsys):
    rate = run.settings.values["lr"]
    outcome = run.ask("stretch", by="0.5")  # by the handle
    assert (outcome.outcome, outcome.args) == ("applied", {"by": 0.5})
    assert repr(outcome) == f"stretch by=0.5 applied at step {outcome.step}"
    assert main(["runs", "steer", "run", "stretch", "0.5", "--folder", str(tmp_path)]) == 0  # typed
    assert "stretch by=0.5 applied" in capsys.readouterr().out
    panel = TrainingPanel(run)  # by the panel
    try:
        viewer = Viewer(panel)
        panel.send = lambda message, buffers=None: viewer.messages.append((message, buffers or []))
        viewer.say("hello")
        viewer.say("command", request=1, run="run", action="stretch", args={"by": 0.5})
        sent = viewer.wait("sent")["id"]
        while (answer := run.timeline.answer(sent)) is None:
            time.sleep(0.005)
        assert answer.outcome == "applied"
        card = CardMaker(run, 0).card()["actions"][-1]
        assert (card["text"], card["past"], card["effective"]) == ("stretch by=0.5", "stretched", True)
    finally:
        panel.close()
    # By a rule; then it is off.
    run.rule("narrow", when="step > 0", do={"action": "stretch", "args": {"by": 0.5}}, limit=1)
    while not run.rules["narrow"].fired:
        time.sleep(0.005)
    assert run.rules["narrow"].do == "stretch by=0.5"
    run.wait(step=run.step + 2, progress=False)
    taken = [action for action in run.timeline.effective if action.action == "stretch"]
    assert [action.actor for action in taken] == ["person"] * 3 + ["rule:narrow"]
    assert run.timeline.num_actions == 4
    # What a checkpoint does not hold is done again by the session that takes the run up.
    run.stop()
    run.wait(progress=False)
    state = run.checkpoints[-1].path / "state.json"
    assert json.loads(state.read_text())["values"]["lr"] == pytest.approx(rate / 16)
    replayed = nb.replay(run, progress=False)
    assert replayed.identical
    assert replayed.num_actions == 4


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({}, "stretch needs by"),
        ({"by": None}, "stretch needs by"),
        ({"by": 9}, "by must be at least 0 and at most 8"),
        ({"by": "far"}, "by must be a number"),
        ({"by": [1]}, "by must be a number"),
        ({"by": 1, "gently": "yes"}, "gently must be true or false"),
        ({"by": 1, "with": 2}, "stretch cannot take 'with'; it takes by, gently"),
    ],
)
def test_wrong_arguments_are_refused_wherever_they_come_from(run, stretch, args, reason):
    with pytest.raises(RefusedError, match=reason):  # by the handle, which sends nothing
        run.ask("stretch", **args)
    with pytest.raises(UserError, match=reason):
        Rule(name="x", when="step > 1", do={"action": "stretch", "args": args})
    assert run.events("action") == []
    command = send(run.path, "stretch", args)  # by the folder
    while (answer := run.timeline.answer(command.id)) is None:
        time.sleep(0.005)
    assert answer.outcome == "refused"
    assert reason in answer.reason
    run.wait(step=run.step + 1, progress=False)


def test_the_record_of_what_is_refused_is_short(run):
    command = send(
        run.path, "stretch", {"by": ["x"] * 100_000, "y" * 500: "z" * 100_000, "deep": [[[[[[1]]]]]]}
    )
    while (answer := run.timeline.answer(command.id)) is None:
        time.sleep(0.005)
    assert answer.outcome == "refused"
    assert len(json.dumps(answer.args)) < 5000


# Of every action


def test_every_action_of_the_loop_has_something_that_carries_it_out():
    for name in actions.loop_actions():
        assert ACTIONS[name].act is not None or name in applying._APPLY, name
        assert changes_state(name) <= ACTIONS[name].scripted, name


@pytest.mark.parametrize("name", list(ACTIONS))
@pytest.mark.parametrize(
    "args",
    [
        {}, {"patterns": 3}, {"patterns": [None]}, {"to": "x"}, {"step": {}}, {"steps": None}, {"name": []},
        {"prompt": 7}, {"on": "x", "name": {}}, {"lr": "a" * 1000}, {"__class__": 1}, {"self": None}, {"do": {}},
    ],
)  # fmt: skip
def test_whatever_the_arguments_are_an_action_is_worded_and_checked(name, args):
    assert words(name, args)
    kind = ACTIONS[name]
    for check in (kind.check, kind.check_for_rule) if kind.for_rules else (kind.check,):
        try:
            json.dumps(check(args))
        except RefusedError as error:
            assert error.what
            assert len(error.what) < 400


@pytest.mark.parametrize("name", [name for name in ACTIONS if ACTIONS[name].example])
def test_examples_of_the_command_line_are_right(name):
    import shlex

    kind = ACTIONS[name]
    first, *rest = shlex.split(kind.example)
    assert first == name
    args = _arguments(kind, rest)
    if name == "fork":
        args = {"name": args.pop("name"), "step": args.pop("step"), "changes": args}
    settings = [nb.runs.Setting(name="lr"), nb.runs.Setting(name="clip")]
    kind.check(args, settings)


def test_what_loops_say_they_cannot_do_are_actions():
    from nbllm.training.external_session import Hooks
    from nbllm.training.validation import limits

    for cannot in (Hooks().cannot(), Hooks(save=list).cannot(), limits(None)):
        assert set(cannot) <= set(ACTIONS)
