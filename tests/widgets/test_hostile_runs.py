"""Panels of runs whose files hold anything: what they say can be sent to a browser."""

from __future__ import annotations

import json
import os
import time

import pytest

from nbllm.runs import commands
from nbllm.runs.listing import list_runs
from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.widgets.runs import RunsPanel
from nbllm.widgets.training import TrainingPanel
from tests.runs.test_hostile_runs import hostile


def sendable(viewer):
    """Check that all messages so far are JSON, as a browser reads it, and that none reports a problem."""
    for message, _ in list(viewer.messages):
        json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
        assert message["type"] != "problem", message


@pytest.mark.parametrize("seed", range(8))
def test_a_panel_of_a_hostile_run_says_what_a_browser_can_read(tmp_path, listen, seed):
    path = hostile(tmp_path, seed)
    viewer = listen(TrainingPanel(Run(path)))
    viewer.say("hello")
    viewer.wait("snapshot")
    sendable(viewer)


def test_the_panel_of_a_folder_of_hostile_runs_says_what_a_browser_can_read(tmp_path, listen):
    names = [hostile(tmp_path, seed).name for seed in range(8)]
    (create(tmp_path, "broken", {}) / "run.json").write_text("{")
    if os.name != "nt":
        os.rename(create(tmp_path, "latin", {}), os.fsencode(tmp_path) + b"/caf\xe9")
    viewer = listen(RunsPanel(list_runs(tmp_path)))
    viewer.say("hello")
    rows = viewer.wait("runs")
    assert {row["name"] for row in rows["rows"]} >= set(names)
    assert len(rows["unreadable"]) == (1 if os.name == "nt" else 2)
    viewer.say("compare", runs=names)
    viewer.wait("comparison")
    viewer.wait("sparklines")
    sendable(viewer)


def test_what_is_refused_is_recorded_and_the_panel_still_opens(start, path, listen):
    start(period=0.005)
    args = [{"prompt": "half \ud83d"}, {"prompt": ["x"] * 150_000}, {"prompt": 5, "\udca9": 1}]
    viewer = listen(TrainingPanel(Run(path)))
    viewer.say("hello")
    viewer.wait("snapshot")
    for number, asked in enumerate(args):  # what the front end lets through is refused at once
        viewer.say("command", run="tour", action="sample", args=asked, request=number)
        assert viewer.wait("refused", lambda message, number=number: message["request"] == number)["reason"]
    assert os.listdir(path / "commands") == []
    for asked in args:  # what another program writes into the folder is recorded as it is
        commands.send(path, "freeze", {"patterns": ["nothing*"], **asked})
    deadline = time.monotonic() + 10
    while len(Run(path).events("action")) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    again = listen(TrainingPanel(Run(path)))
    again.say("hello")
    assert len(again.wait("snapshot")["runs"][0]["actions"]) == 3
    sendable(viewer)
    sendable(again)
