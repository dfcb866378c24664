"""Whatever is put into a run's commands is answered or moved away, and the run goes on."""

from __future__ import annotations

import json
import time

import pytest

import nbllm as nb
from nbllm.runs.actions import ACTIONS
from tests.runs.test_hostile_runs import VALUES


@pytest.fixture
def going(lm, store, config, tmp_path):
    quick = {"validation_interval": 0, "sample_interval": 0, "checkpoint_interval": 0}
    run = nb.train(lm, store, folder=tmp_path, name="going", **{**config, **quick, "steps": 1_000_000})
    run.wait(step=2, progress=False)
    yield run
    run.stop()
    run.wait(progress=False)


def asked():
    """Yield an action's name and arguments of every kind; what would end the run, or hold it, is left out."""
    for name in [*ACTIONS, "explode", ""]:
        kind = ACTIONS[name] if name in ACTIONS else None
        known = [argument.name for argument in (*kind.required, *kind.optional)] if kind else []
        for argument in [*known, "lr", "steps", "odd \ud83d"]:
            for value in VALUES:
                ends = name == "stop" and (isinstance(value, str) or value is None)
                ends |= name == "set" and argument == "steps"
                large = name == "sample" and argument == "prompt" and value and isinstance(value, str)
                if not (ends or large):
                    yield name, {argument: value}


def test_every_command_of_any_arguments_is_answered_and_the_run_goes_on(going):
    sent, moved = {}, 0
    for number, (name, args) in enumerate(asked()):
        command = f"{number:016x}"
        fields = {"id": command, "action": name, "args": args, "actor": "agent:fuzz", "time": 1.0}
        aside = going.path / "commands" / ".aside"
        aside.write_text(json.dumps(fields))
        aside.rename(going.path / "commands" / f"{number:020d}-{command}.json")
        moved += name == ""
        sent[command] = name
    assert len(sent) > 500
    deadline = time.monotonic() + 120
    while len(going.timeline._answers) < len(sent) - moved:
        assert time.monotonic() < deadline
        assert going.is_live, going.reason
        time.sleep(0.05)
    assert len(list((going.path / "commands" / "rejected").iterdir())) == moved
    answers = going.events("action")
    assert {answer["id"]: answer["action"] for answer in answers} == {i: n for i, n in sent.items() if n}
    assert {answer["outcome"] for answer in answers} == {"applied", "refused"}
    assert all(len(json.dumps(answer)) < 20_000 for answer in answers)
    assert not [answer for answer in answers if answer["outcome"] == "refused" and not answer["reason"]]
    going.wait(step=going.step + 2, progress=False)
    assert going._repr_html_().encode()
