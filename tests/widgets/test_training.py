from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest

from nbllm.runs import commands
from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.widgets import profile_card
from nbllm.widgets.training import TrainingPanel
from tests.runs.profile_files import summary, write_profile


@pytest.fixture
def watch(path, listen):
    """Open a panel on the run, with a viewer that has said hello."""

    def watch(run=None, **options):
        panel = TrainingPanel(run or Run(path), **options)
        viewer = listen(panel)
        viewer.say("hello")
        return viewer

    return watch


def wait_until(test, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_viewer_gets_the_whole_run_and_then_what_is_new(start, path, watch):
    start(period=0.005)
    wait_until(lambda: Run(path).step > 20)
    viewer = watch()
    snapshot = viewer.wait("snapshot")
    assert snapshot["focus"] == "tour"
    card = snapshot["runs"][0]
    assert (card["state"], card["steps"], card["color"]) == ("running", 500, 1)
    assert [s["name"] for s in card["settings"]] == ["lr", "accumulation", "freeze"]
    wait_until(lambda: viewer.cards()["tour"]["step"] > card["step"] + 20)
    Run(path).stop()
    wait_until(lambda: viewer.cards()["tour"]["state"] == "stopped")
    steps, losses = Run(path).history("loss")
    wait_until(lambda: viewer.points("tour")["step"].tolist() == steps.tolist())
    table = viewer.points("tour")
    np.testing.assert_allclose(table["loss"], losses, rtol=1e-6)


def test_updates_come_at_most_ten_times_a_second_whatever_the_steps(start, path, watch):
    start(period=0.001)
    viewer = watch()
    viewer.wait("snapshot")
    began, before = time.monotonic(), len(viewer.heard("update"))
    wait_until(lambda: len(viewer.heard("update")) >= before + 10)
    assert len(viewer.heard("update")) - before <= 10 * (time.monotonic() - began) + 2


def test_nothing_is_sent_while_nobody_looks(start, path, listen):
    start()
    viewer = listen(TrainingPanel(Run(path)))
    time.sleep(0.5)
    assert viewer.messages == []
    viewer.say("hello")
    viewer.wait("update")
    viewer.say("bye")
    time.sleep(0.2)
    count = len(viewer.messages)
    time.sleep(0.4)
    assert len(viewer.messages) == count


def test_a_second_viewer_gets_its_own_snapshot_and_both_agree(start, path, watch, listen):
    start(period=0.005)
    first = watch()
    first.wait("points", lambda m: m["mode"] == "append")
    second = listen(first.panel, "second")
    second.say("hello")
    second.wait("snapshot")
    assert len(first.heard("snapshot")) == 1
    Run(path).stop()
    wait_until(lambda: second.cards()["tour"]["state"] == "stopped" == first.cards()["tour"]["state"])
    last = Run(path).step
    wait_until(lambda: first.points("tour")["step"][-1] == last == second.points("tour")["step"][-1])
    for name, values in first.points("tour").items():
        np.testing.assert_array_equal(values, second.points("tour")[name])
    wait_until(lambda: first.cards() == second.cards())


def test_a_command_is_in_the_folder_at_once_and_its_outcome_among_the_actions(start, path, watch):
    start(period=0.005)
    viewer = watch()
    viewer.say("command", request=7, run="tour", action="set", args={"lr": 0.5})
    sent = viewer.wait("sent")
    assert sent["request"] == 7
    wait_until(lambda: any(a["id"] == sent["id"] for a in viewer.cards()["tour"]["actions"]))
    action = next(a for a in viewer.cards()["tour"]["actions"] if a["id"] == sent["id"])
    assert (action["outcome"], action["actor"], action["text"]) == ("applied", "person", "lr=0.5")
    assert viewer.cards()["tour"]["settings"][0]["value"] == 0.5


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"run": "tour", "action": "explode", "args": {}}, "explode"),
        ({"run": "other", "action": "pause", "args": {}}, "no run 'other'"),
        ({"run": "tour", "action": "pause", "args": []}, "names with values"),
        ({"run": "tour", "action": "fork", "args": {"name": " "}}, "needs a name"),
        ({"run": "tour", "action": "fork", "args": {"name": "a", "step": "x"}}, "step"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(start, path, watch, message, reason):
    start()
    viewer = watch()
    viewer.say("command", request=1, **message)
    refused = viewer.wait("refused")
    assert refused["request"] == 1
    assert reason in refused["reason"]


def test_nobody_is_there_to_steer_a_run_that_has_ended(start, path, watch):
    start(steps=5)
    wait_until(lambda: Run(path).state == "finished")
    viewer = watch()
    viewer.say("command", request=1, run="tour", action="pause", args={})
    assert "finished" in viewer.wait("refused")["reason"]


def test_after_a_rewind_all_points_are_sent_anew(start, path, watch):
    start(period=0.005)
    viewer = watch()
    Run(path).save()
    saved = Run(path).checkpoints[-1].step
    wait_until(lambda: Run(path).step > saved + 20)
    Run(path).rewind(saved)
    wait_until(lambda: len([m for m in viewer.heard("points") if m["mode"] == "replace"]) >= 4)
    Run(path).stop()
    wait_until(lambda: viewer.cards()["tour"]["state"] == "stopped")
    steps = Run(path).history("loss")[0]
    assert np.all(np.diff(steps) == 1)
    wait_until(lambda: viewer.points("tour")["step"].tolist() == steps.tolist())


def test_a_long_run_comes_thinned_and_a_window_of_it_in_detail(path, watch):
    from nbllm.runs.events import EventWriter
    from nbllm.runs.process import this_process

    with EventWriter(path) as writer:
        writer.write("start", 0, where="thread", from_step=0, **this_process())
        for step in range(1, 20_001):
            writer._buffer += b'{"time":1.0,"kind":"step","step":%d,"loss":%f}\n' % (step, 5 / step)
        writer.write("end", 20_000, state="finished", reason="")
    viewer = watch()
    viewer.wait("points")
    first = viewer.heard("points")[0]
    assert first["total"] == 20_000
    assert first["columns"][0]["length"] <= 8192
    viewer.say("window", run="tour", first=1000, last=1999, points=2000)
    message = viewer.wait("points", lambda m: m["mode"] == "window")
    assert (message["first"], message["last"], message["columns"][0]["length"]) == (1000, 1999, 1000)


def test_forks_appear_by_themselves_with_a_colour_of_their_own(start, path, watch):
    start(period=0.01)
    viewer = watch()
    viewer.wait("snapshot")
    record = {"steps": 10, "config": {}, "settings": [], "parent": {"name": "tour", "step": 3}}
    create(path.parent, "fork", record)
    create(path.parent, "grandchild", {**record, "parent": {"name": "fork", "step": 3}})
    create(path.parent, "stranger", {**record, "parent": None})
    wait_until(lambda: {"fork", "grandchild"} <= set(viewer.cards()))
    cards = viewer.cards()
    assert set(cards) == {"tour", "fork", "grandchild"}
    assert len({card["color"] for card in cards.values()}) == 3
    assert cards["fork"]["parent"] == {"run": "tour", "step": 3}


def test_a_run_that_ends_says_so_to_whoever_keeps_the_static_picture(start, path, watch):
    changes = []
    loop = start(period=0.005)
    viewer = watch(on_change=lambda: changes.append(Run(path).state))
    viewer.wait("update")
    loop.die = True
    wait_until(lambda: viewer.cards()["tour"]["state"] == "lost")
    wait_until(lambda: changes and changes[-1] == "lost")


def test_a_folder_that_vanishes_is_a_state_and_no_error(start, path, watch):
    start(steps=5).join(10)  # it has let go of the folder, too
    viewer = watch()
    viewer.wait("snapshot")
    shutil.rmtree(path)
    wait_until(lambda: viewer.cards()["tour"]["state"] == "lost")
    card = viewer.cards()["tour"]
    assert card["gone"] and "gone" in " ".join(card["problems"])
    assert "deleted" in card["cannot"]["start_again"]  # no live button


def test_a_renamed_run_and_a_deleted_relative_are_followed(start, path, watch):
    start(steps=5).join()
    child = create(path.parent, "child", {"parent": {"name": path.name, "step": 3}})
    viewer = watch()
    assert set(viewer.cards()) == {"tour", "child"}
    viewer.panel.run.rename("renamed")
    told = viewer.wait("snapshot", lambda message: message["focus"] == "renamed")
    assert {card["key"] for card in told["runs"]} == {"renamed", "child"}
    assert len(viewer.points("renamed")["step"]) == 5
    wait_until(lambda: viewer.cards()["child"]["parent"]["run"] == "renamed")
    shutil.rmtree(child)
    wait_until(lambda: set(viewer.cards()) == {"renamed"})
    wait_until(lambda: viewer.cards()["renamed"]["state"] == "finished")


def test_hostile_text_stays_text(path, watch):
    from nbllm.runs.events import EventWriter
    from nbllm.runs.process import this_process

    with EventWriter(path) as writer:
        writer.write("start", 0, where="thread", from_step=0, **this_process())
        writer.write("sample", 1, prompt="\u202eabc", text=["no text"], seed=0)
        writer.write("action", 1, id=3, action=["x"], args={"a": {"b": [float("nan")]}}, outcome=None)
        writer.write("warning", 1, text={"x": 1})
    viewer = watch()
    card = viewer.wait("snapshot")["runs"][0]
    assert card["samples"][0]["prompt"] == "\ufffdabc"  # what reorders text is made visible
    assert isinstance(card["samples"][0]["text"], str)
    assert isinstance(card["warnings"][0]["text"], str)
    assert card["actions"][0]["outcome"] == "None"


def test_half_an_emoji_in_a_command_leaves_a_panel_that_can_be_sent(start, path, watch):
    start(period=0.005)
    viewer = watch()
    commands.send(path, "set", {"lr": 0.5, "why \ud83d": "half \udca9"})  # past what front ends check
    wait_until(lambda: viewer.cards()["tour"]["actions"])
    for message, _ in viewer.messages:
        json.dumps(message, ensure_ascii=False).encode()


def test_a_kernel_with_nothing_to_tell_says_that_it_lives(start, path, watch, monkeypatch):
    monkeypatch.setattr("nbllm.widgets.base.BEAT", 0.05)
    start(steps=5)
    wait_until(lambda: Run(path).state == "finished")
    viewer = watch()
    viewer.wait("snapshot")
    wait_until(lambda: len(viewer.heard("alive")) > 3)
    viewer.say("bye")
    count = len(viewer.heard("alive"))
    time.sleep(0.3)
    assert len(viewer.heard("alive")) <= count + 1  # one may have been on its way


def test_a_live_run_is_pictured_now_and_then(start, path, listen, monkeypatch):
    monkeypatch.setattr("nbllm.widgets.training.PICTURE_PERIOD", 0.05)
    start(period=0.005)
    pictured = []
    viewer = listen(TrainingPanel(Run(path), on_change=lambda: pictured.append(Run(path).step)))
    viewer.say("hello")
    wait_until(lambda: len(pictured) > 3)
    assert pictured == sorted(set(pictured))
    assert Run(path).state == "running"


def test_a_profile_is_sent_when_it_is_new(start, path, watch, monkeypatch):
    monkeypatch.setattr(profile_card, "LOOK_SECONDS", 0.0)
    start(period=0.005)
    viewer = watch()
    assert viewer.wait("snapshot")["runs"][0]["profile"] is None
    write_profile(path, 1, summary(), summary(1))
    wait_until(lambda: viewer.cards()["tour"]["profile"])
    step = viewer.cards()["tour"]["step"]
    wait_until(lambda: viewer.cards()["tour"]["step"] > step + 20)
    told = [card for message in viewer.heard("update") for card in message["runs"] if card.get("profile")]
    assert 1 <= len(told) <= 2  # it may be read between the two ranks
    assert told[-1]["profile"]["title"] == "3 steps from step 1 on, 2 ranks"
