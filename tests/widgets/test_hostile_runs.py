"""Panels of runs whose files hold anything: what they say can be sent to a browser."""

from __future__ import annotations

import copy
import json
import os
import random
import time

import pytest

from nbllm.runs import commands
from nbllm.runs.listing import list_runs
from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.widgets.runs import RunsPanel
from nbllm.widgets.training import TrainingPanel
from tests.runs.test_hostile_runs import EVENTS, RECORD, VALUES, changed, places


def sendable(viewer):
    """Check that all messages so far are JSON, as a browser reads it, and that none reports a problem."""
    for message, _ in list(viewer.messages):
        json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
        assert message["type"] != "problem", message


def hostile(folder, seed):
    """Make a run of which every third entry and event holds something else than it should."""
    rng = random.Random(seed)
    record = copy.deepcopy(RECORD)
    for place in [place for place in places(RECORD) if len(place) > 1 or place[0] not in ("config", "data")]:
        if rng.random() < 0.3:
            try:
                record = changed(record, place, rng.choice(VALUES))
            except (TypeError, IndexError, KeyError):
                continue  # what held it was changed before
    path = create(folder, f"run-{seed}", {})
    record = {**json.loads((path / "run.json").read_text()), **record}
    (path / "run.json").write_text(json.dumps(record))
    lines = []
    for step in range(150):
        event = {"time": time.time() + step, "step": step, **copy.deepcopy(rng.choice(EVENTS))}
        if rng.random() < 0.3:
            event = changed(event, rng.choice(list(places(event))), rng.choice(VALUES))
        lines.append(json.dumps(event))
    (path / "events" / "trainer-0001.jsonl").write_text("\n".join([*lines, ""]))
    return path


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
