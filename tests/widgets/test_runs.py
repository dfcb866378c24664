"""The runs panel without a browser: what it sends of a folder, and when."""

import json
import shutil
import time

import numpy as np
import pytest

from nbllm.runs import events
from nbllm.runs.compare import compare
from nbllm.runs.events import EventWriter
from nbllm.runs.listing import list_runs
from nbllm.runs.lock import TrainerLock
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.runs.summary import REPLAY_OVER
from nbllm.widgets.card import CardMaker
from nbllm.widgets.comparison import points_of
from nbllm.widgets.overview import Overview
from nbllm.widgets.runs import RunsPanel
from nbllm.widgets.training import TrainingPanel
from tests.runs.test_skim import long_run


def grown(folder, name, *, steps=40, end="finished", reason="", loss=lambda step: 5 - step / 100, **record):
    """A run that has taken steps, with an evaluation every ten."""
    path = create(
        folder, name, {"steps": 100, "config": {"lr": 0.1, "steps": 100}, "loss_unit": "nats/token", **record}
    )
    with EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **this_process(), where="process")
        write_steps(writer, 1, steps, loss)
        if end:
            writer.write("end", steps, state=end, reason=reason)
    return path


def write_steps(writer, first, last, loss=lambda step: 5 - step / 100):
    for step in range(first, last + 1):
        writer.write("step", step, loss=loss(step), lr=0.1, tokens=step * 64, seconds=step / 8)
        if step % 10 == 0:
            writer.write("evaluation", step, loss=4.0, bits_per_byte=3 - step / 100)


class Told:
    """The panel, and what it said, as a front end gets it."""

    def __init__(self, folder):
        self.panel = RunsPanel(list_runs(folder))
        self.panel.send = self.take
        self.messages = []

    def take(self, content, buffers=None):
        # As the kernel sends it: JSON without NaN, in UTF-8.
        text = json.dumps(content, allow_nan=False, ensure_ascii=False).encode().decode()
        self.messages.append((json.loads(text), buffers))

    def say(self, kind, viewer="a", **fields):
        self.panel._on_message(None, {"type": kind, "viewer": viewer, **fields}, [])

    def wait(self, kind, test=lambda message: True, timeout=10, *, keep_older=False):
        """Return the first message of a kind that passes, and forget it and, unless kept, what came before."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            for place, (message, buffers) in enumerate(list(self.messages)):
                if message["type"] == kind and test(message):
                    del self.messages[place if keep_older else 0 : place + 1]
                    return message | {"buffers": buffers}
            time.sleep(0.01)
        raise AssertionError(f"no {kind} came, but {[message for message, _ in self.messages]}")


@pytest.fixture
def told(tmp_path):
    opened = []

    def open_(folder=tmp_path):
        opened.append(Told(folder))
        return opened[-1]

    yield open_
    for one in opened:
        one.panel.close()
        one.panel._thread.join(5)
        assert not one.panel._thread.is_alive()


def rows_of(message):
    return {row["name"]: row for row in message["rows"]}


def test_every_run_has_a_row(told, tmp_path):
    grown(tmp_path, "first")
    grown(tmp_path, "warmer", steps=60, parent={"name": "runs/first", "step": 40}, end="failed", reason="NaN")
    create(tmp_path, "fresh", {"steps": 10, "parent": {"name": "warmer", "step": 7}})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("[")
    panel = told()
    panel.say("hello")
    whole = panel.wait("runs", lambda message: message["whole"])
    assert whole["to"] == "a"
    assert abs(whole["now"] - time.time()) < 10
    assert whole["unreadable"] == [["broken", "The run's record is damaged: it is not a JSON object."]]
    rows = rows_of(whole)
    assert set(rows) == {"first", "warmer", "fresh"}
    assert rows["first"]["state"] == "finished"
    assert (rows["first"]["step"], rows["first"]["steps"]) == (40, 100)
    assert rows["first"]["loss"] == pytest.approx(4.6)
    assert rows["first"]["open"] == f"nb.attach({str(tmp_path / 'first')!r})"
    assert rows["warmer"]["state"] == "failed"
    assert rows["warmer"]["reason"] == "NaN"
    assert rows["warmer"]["parent"] == {"run": "first", "step": 40}
    assert rows["fresh"]["state"] == "starting"
    assert rows["fresh"]["step"] == 7
    studied = rows_of(panel.wait("runs", lambda message: not message["whole"]))
    assert studied["first"]["held_out"] == pytest.approx(2.6)
    assert "fresh" not in studied
    curves = dict(panel.wait("sparklines")["runs"])
    assert set(curves) == {"first", "warmer"}
    assert curves["first"][0] == pytest.approx(4.99)
    assert curves["first"][-1] == pytest.approx(4.6)


def test_a_replay_is_listed_as_replayed(told, tmp_path):
    grown(tmp_path, "first")
    again = grown(tmp_path, "again", replay={"of": "first"}, end="stopped", reason=REPLAY_OVER)
    grown(tmp_path, "broken", replay={"of": "first"}, end="failed", reason="NaN")
    panel = told()
    panel.say("hello")
    rows = rows_of(panel.wait("runs", lambda message: message["whole"]))
    assert [rows[name]["state"] for name in ("first", "again", "broken")] == [
        "finished",
        "replayed",
        "failed",
    ]
    assert [rows[name]["replay_of"] for name in ("first", "again")] == ["", "first"]
    assert [rows[name]["reason"] for name in ("again", "broken")] == ["", "NaN"]
    card = CardMaker(Run(again), 1).card()
    assert (card["state"], card["replay_of"]) == ("replayed", "first")


def test_the_name_alone_opens_a_run_of_the_usual_folder(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grown(tmp_path / "runs", "my run")
    panel = told("runs")
    panel.say("hello")
    whole = panel.wait("runs", lambda message: message["whole"])
    assert whole["folder"] == "runs"
    assert whole["rows"][0]["open"] == "nb.attach('my run')"


def test_runs_that_begin_go_on_and_go_away(told, tmp_path):
    path = grown(tmp_path, "first", end="")
    panel = told()
    panel.say("hello")
    seq = panel.wait("runs", lambda message: message["whole"])["seq"]
    panel.wait("sparklines")
    with TrainerLock(path):
        with EventWriter(path) as writer:
            write_steps(writer, 41, 45)
        grown(tmp_path, "second")
        news = panel.wait("runs", lambda message: "second" in rows_of(message))
    assert news["seq"] > seq
    assert "to" not in news
    assert rows_of(news)["first"]["step"] == 45
    assert rows_of(news)["first"]["state"] == "running"
    shutil.rmtree(path)
    assert panel.wait("runs", lambda message: message["gone"])["gone"] == ["first"]


def test_a_run_of_the_same_name_is_another_run(tmp_path):
    path = grown(tmp_path, "tour")
    overview = Overview(tmp_path)
    assert overview.look() == ["tour"]
    overview.study(9)
    assert overview.look() == []
    shutil.rmtree(path)
    grown(tmp_path, "tour", steps=7, end="stopped")
    assert overview.look() == ["tour"]
    assert overview.entries["tour"].row["step"] == 7


def test_an_ended_run_that_is_taken_up_again_is_seen(tmp_path):
    path = grown(tmp_path, "tour", end="stopped")
    overview = Overview(tmp_path)
    overview.look()
    overview.study(9)
    with TrainerLock(path), EventWriter(path) as writer:
        writer.write("start", 40, from_step=40, **this_process(), where="process")
        assert overview.look() == ["tour"]
        assert overview.entries["tour"].row["state"] == "running"
        write_steps(writer, 41, 50)
        assert overview.look() == ["tour"]
    assert overview.entries["tour"].row["step"] == 50
    assert overview.entries["tour"].row["held_out"] == pytest.approx(2.5)


def test_nothing_is_read_while_nobody_watches(told, tmp_path, monkeypatch):
    grown(tmp_path, "first")
    panel = told()
    looks = []
    look = panel.panel._overview.look
    monkeypatch.setattr(panel.panel._overview, "look", lambda: looks.append(1) or look())
    time.sleep(0.3)
    assert not looks
    panel.say("hello")
    panel.wait("sparklines")
    panel.say("bye")
    time.sleep(0.1)
    seen = len(looks)
    assert seen
    time.sleep(1.3)
    assert len(looks) == seen


def test_two_viewers_compare_each_their_own(told, tmp_path):
    grown(tmp_path, "first")
    grown(tmp_path, "second", config={"lr": 0.2, "steps": 100}, parent={"name": "first", "step": 40})
    grown(tmp_path, "third", loss=lambda step: 2.0)
    panel = told()
    panel.say("hello")
    panel.say("hello", viewer="b")
    panel.say("compare", runs=["second", "first"])
    panel.say("compare", viewer="b", runs=["third", "first", "third", "nothing"])
    found = {message["to"]: message for message in (panel.wait("comparison"), panel.wait("comparison"))}
    assert found["a"]["runs"] == ["second", "first"]
    assert found["b"]["runs"] == ["third", "first"]
    differing = {s["name"]: s["values"] for s in found["a"]["settings"] if s["differs"]}
    assert differing == {"lr": ["0.2", "0.1"]}
    assert {"name": "steps", "values": ["100", "100"], "differs": False} in found["a"]["settings"]
    results = {row["label"]: row for row in found["b"]["results"]}
    assert results["training loss, nats/token (last 20)"]["best"] == 0
    assert results["held-out bits/byte"] == {
        "label": "held-out bits/byte",
        "values": ["2.6", "2.6"],
        "best": None,
    }


def test_the_points_of_compared_runs_come_and_come_again(told, tmp_path):
    path = grown(tmp_path, "first", end="")
    grown(tmp_path, "second")
    panel = told()
    panel.say("hello")
    panel.say("compare", runs=["first", "second"])
    points = panel.wait("points", lambda message: message["series"] == "steps")
    assert (points["to"], points["run"], points["mode"]) == ("a", "first", "replace")
    assert [column["name"] for column in points["columns"]] == ["step", "loss", "tokens", "seconds"]
    assert [column["dtype"] for column in points["columns"]] == ["float64", "float32", "float64", "float64"]
    assert np.frombuffer(points["buffers"][0], "<f8")[-1] == 40
    panel.wait("points", lambda message: message["run"] == "second" and message["series"] == "evaluations")
    with EventWriter(path) as writer:
        write_steps(writer, 41, 42)
        writer.write("sample", 42, prompt="def", text=" add")
    again = panel.wait("comparison")
    assert again["samples"] == [{"step": 42, "prompt": "def", "text": " add"}, None]
    points = panel.wait("points", lambda message: message["series"] == "steps")
    assert np.frombuffer(points["buffers"][0], "<f8")[-1] == 42
    assert points["run"] == "first"
    assert not [m for m, _ in panel.messages if m["type"] == "points" and m["run"] == "second"]
    panel.say("compare", runs=[])
    assert panel.wait("comparison")["runs"] == []


def test_runs_are_renamed_and_deleted_but_no_live_one(told, tmp_path):
    grown(tmp_path, "first")
    grown(tmp_path, "second", parent={"name": "first", "step": 40})
    grown(tmp_path, "live", end="")
    panel = told()
    panel.say("hello")
    panel.wait("runs", lambda message: message["whole"])
    panel.say("rename", run="first", name="best", request=1)
    done = panel.wait("done", keep_older=True)  # the panel may have looked at the folder before it was said
    assert (done["to"], done["request"], done["text"]) == ("a", 1, "first is now called best.")
    assert panel.wait("runs", lambda message: message["gone"], keep_older=True)["gone"] == ["first"]
    parent = {"run": "best", "step": 40}
    panel.wait("runs", lambda message: rows_of(message).get("second", {}).get("parent") == parent)
    assert panel.panel._overview.entries["best"].row["step"] == 40
    panel.say("rename", run="best", name="second", request=2)
    assert "second" in panel.wait("refused", lambda message: message["request"] == 2)["reason"]
    panel.say("rename", run="best", name="../best", request=3)
    assert "cannot be the name" in panel.wait("refused", lambda message: message["request"] == 3)["reason"]
    with TrainerLock(tmp_path / "live"):
        for request, kind in enumerate(("rename", "delete"), start=4):
            panel.say(kind, run="live", name="dead", request=request)
            refused = panel.wait("refused", lambda message, n=request: message["request"] == n)
            assert "live is running" in refused["reason"]
    (tmp_path / "second" / "notes.txt").write_text("mine")
    panel.say("delete", run="second", request=6)
    assert "notes.txt" in panel.wait("done", keep_older=True)["text"]
    assert panel.wait("runs", lambda message: message["gone"])["gone"] == ["second"]
    assert (tmp_path / "second" / "notes.txt").read_text() == "mine"
    panel.say("delete", run="../" + tmp_path.name + "/best", request=7)
    assert "no run" in panel.wait("refused", lambda message: message["request"] == 7)["reason"]
    assert {path.name for path in tmp_path.iterdir()} == {"best", "live", "second"}


def test_a_link_to_a_run_is_neither_renamed_nor_deleted(told, tmp_path):
    (tmp_path / "link").symlink_to(grown(tmp_path, "first"))
    panel = told()
    panel.say("hello")
    panel.wait("runs", lambda message: message["whole"])
    for request, kind in enumerate(("rename", "delete")):
        panel.say(kind, run="link", name="best", request=request)
        refused = panel.wait("refused", lambda message, n=request: message["request"] == n)
        assert f"link is a link, and is not {kind}d" in refused["reason"]
    assert Run(tmp_path / "first").state == "finished" and (tmp_path / "link").is_symlink()


def test_a_run_that_a_panel_of_this_kernel_shows_knows_its_new_name(told, tmp_path, monkeypatch):
    run = Run(grown(tmp_path, "first"))
    shown = TrainingPanel(run)
    monkeypatch.setattr("nbllm.widgets.show.run_panels", [shown])
    panel = told()
    panel.say("hello")
    panel.wait("runs", lambda message: message["whole"])
    panel.say("rename", run="first", name="best", request=1)
    panel.wait("done")
    assert (run.name, run.state) == ("best", "finished")
    shown.close()


def test_what_a_viewer_may_not_ask(told, tmp_path):
    panel = told()
    panel.say("compare", runs="all")
    assert "by their names" in panel.wait("refused")["reason"]
    panel.say("dance")
    assert "'dance'" in panel.wait("refused")["reason"]


def test_hostile_records_are_sent_as_plain_json(told, tmp_path):
    evil = "<img src=x onerror=alert(1)>\u202egnp.\x00\ud800"
    path = grown(tmp_path, "first", end="failed", reason=evil, parent={"name": evil, "step": "7"})
    record = json.loads((path / "run.json").read_text())
    record |= {"config": {"lr": float("inf"), evil: [evil], "deep": {"er": None}}, "created": "yesterday"}
    (path / "run.json").write_text(json.dumps(record))
    path = grown(tmp_path, "second", loss=lambda step: float("nan"), created=1e300)
    with EventWriter(path) as writer:
        writer.write("start", 3, from_step=3)
        writer.write("sample", 3, prompt=None, text=evil)
    with open(next((path / "events").glob("*2.jsonl")), "ab") as file:
        file.write(
            b'{"time":1,"kind":"evaluation","step":4,"bits_per_byte":"low"}\n{"evaluation"\n\xff\xfe\n'
        )
    (tmp_path / "bad\u202ename").mkdir()
    (tmp_path / "bad\u202ename" / "run.json").write_text("{}")
    panel = told()
    panel.say("hello")
    panel.say("compare", runs=["first", "second"])
    whole = panel.wait("runs", lambda message: message["whole"])
    assert whole["unreadable"] == [["bad\ufffdname", "Its name has characters that cannot be shown."]]
    rows = rows_of(whole)
    assert rows["first"]["reason"] == "<img src=x onerror=alert(1)>\ufffdgnp.\ufffd\ufffd"
    assert rows["first"]["parent"]["step"] is None
    assert rows["first"]["created"] is None
    assert rows["second"]["loss"] is None
    comparison = panel.wait("comparison")
    assert comparison["samples"][1]["text"].startswith("<img src=x onerror=alert(1)>\ufffd")
    panel.wait("points")


def test_what_fails_is_said_and_may_pass(told, tmp_path, monkeypatch):
    panel = told()

    def fail():
        monkeypatch.undo()
        raise OSError("disk on fire")

    monkeypatch.setattr(panel.panel._overview, "look", fail)
    panel.say("hello")
    assert panel.wait("problem")["text"] == "OSError: disk on fire"
    grown(tmp_path, "first")
    assert rows_of(panel.wait("runs", lambda message: message["rows"]))


def test_two_hundred_runs_open_without_reading_every_step(tmp_path, monkeypatch):
    path = grown(tmp_path, "run", steps=500)
    lines = len(events.event_files(path)[0].read_bytes().splitlines())
    for number in range(200):
        shutil.copytree(path, tmp_path / f"run-{number}")
    long_run(tmp_path, "long", 100_000)
    overview = Overview(tmp_path)
    parsed, is_event = [], events._is_event
    monkeypatch.setattr(events, "_is_event", lambda event: parsed.append(1) or is_event(event))
    overview.look()
    assert len(overview.entries) == 202
    assert len(parsed) < 202 * 20  # the ends of the files
    parsed.clear()
    while not overview.is_studied:
        overview.study(0.1)
    assert len(parsed) < 201 * lines + 2000  # all of the short runs, a few steps of the long one
    parsed.clear()
    assert overview.look() == []
    assert not parsed


def test_points_that_are_compared_are_thinned(tmp_path):
    points = points_of(Run(long_run(tmp_path, "long", 20_000)))
    assert set(points["steps"]) == {"step", "loss", "tokens", "seconds"}
    assert len(points["steps"]["step"]) <= 4096
    assert points["steps"]["step"][-1] == 20_000
    assert points["steps"]["loss"].min() == pytest.approx(3 + 1000 / 20_300)


def test_the_best_result_is_not_the_last(tmp_path):
    path = grown(tmp_path, "tour", end="")
    with EventWriter(path) as writer:
        writer.write("evaluation", 41, loss=4.0, bits_per_byte=9.0)
    results = {row[0]: row[1] for row in compare([path]).results()}
    assert results["held-out bits/byte"] == 9.0
    assert results["best held-out bits/byte"] == pytest.approx(2.6)
