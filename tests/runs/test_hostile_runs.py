"""Runs whose files hold anything: each is listed, shown and summarized, or refused in words; nothing else happens."""

import contextlib
import copy
import json
import os
import random
import time

import pytest

from nbllm.core.errors import UserError
from nbllm.runs import checkpoint
from nbllm.runs.compare import compare
from nbllm.runs.listing import list_runs
from nbllm.runs.run import Run
from nbllm.runs.store import create, read_record
from nbllm.runs.text import details

DEEP = [[[[[[[[["deep"]]]]]]]]]
VALUES = [
    None, True, -1, 0, 1e299, -1e299, 10**400, float("nan"), float("inf"), "", "x", "\ud83d", "\x1b]0;x\x07\u202e",
    "a" * 10_000, [], [1, "x", None], {}, {"a": {"b": 10**400}}, {"\udca9": "\ud83d"}, DEEP,
]  # fmt: skip
SETTING = {"name": "lr", "kind": "float", "low": 0, "high": 1, "unit": "x", "help": "what it is"}
RECORD = {
    "created": time.time(),
    "host": "here",
    "where": "thread",
    "steps": 100,
    "config": {"steps": 100, "lr": 0.1, "rules": [{"name": "x", "when": "loss > 3", "do": "pause"}]},
    "model": {"family": "llama", "num_layers": 2},
    "data": {"train": {"path": "tokens", "num_tokens": 7}, "validation": None},
    "choices": {"num_threads": 2, "device": "cpu"},
    "settings": [SETTING],
    "cannot": {"evaluate": "no text"},
    "parent": {"run": "other", "step": 5, "actor": "person"},
    "replay": None,
    "machine": {"cpu": "fast"},
    "versions": {"torch": "2"},
}
EVENTS = [
    {"kind": "start", "from_step": 0, "pid": 1, "pid_started": 1.0, "host": "a", "machine": "b", "where": "thread"},
    {"kind": "step", "loss": 2.0, "lr": 0.1, "tokens": 100, "tokens_per_second": 7.0, "memory": 9, "seconds": 1.0},
    {"kind": "evaluation", "loss": 2.0, "bits_per_byte": 1.0, "tokens": 9},
    {"kind": "sample", "prompt": "def", "text": " f", "seed": 1, "actor": "person", "id": "a"},
    {"kind": "action", "id": "a", "action": "set", "args": {"lr": 0.5}, "actor": "person", "outcome": "applied",
     "reason": "", "asked": 1.0, "firing": 0},
    {"kind": "action", "id": "b", "action": "freeze", "args": {"patterns": ["a*"]}, "actor": "rule:x",
     "outcome": "applied", "reason": "", "asked": 1.0, "firing": 1},
    {"kind": "action", "id": "c", "action": "rewind", "args": {"to": 3, "keep": 1}, "actor": "agent:y",
     "outcome": "applied", "reason": "", "asked": 1.0},
    {"kind": "action", "id": "d", "action": "rule", "args": {"name": "x", "on": False}, "actor": "person",
     "outcome": "applied", "reason": "", "asked": 1.0},
    {"kind": "checkpoint", "path": "step-00000000", "bytes": 9, "seconds": 1.0},
    {"kind": "warning", "text": "careful"},
    {"kind": "heartbeat"},
    {"kind": "end", "state": "stopped", "reason": "because", "digest": "00"},
]  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here pulls the plug, so nothing needs to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def path(tmp_path):
    return create(tmp_path, "run", RECORD)


def look_at(path):
    """Look at a run in all ways; all that they say can be printed and sent."""
    listed = list_runs(path.parent)
    said = [repr(listed), listed._repr_html_()]
    with contextlib.suppress(UserError):
        run = Run(path)
        compared = compare(run)
        said += [repr(run), run._repr_html_(), details(run), repr(run.settings), run.settings._repr_html_()]
        said += [repr(compared), compared._repr_html_(), repr(run.rules), run.rules._repr_html_()]
        assert run.state
        assert isinstance(run.step, int)
        for metric in run.timeline.metrics:
            run.history(metric)
    for text in said:
        text.encode()
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert path.name in repr(listed)


def write(file, value):
    file.write_text(value if isinstance(value, str) else json.dumps(value))


def places(value, at=()):
    """Yield the place of every entry in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def changed(value, place, new):
    value = copy.deepcopy(value)
    *way, last = place
    target = value
    for key in way:
        target = target[key]
    target[last] = new
    return value


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


@pytest.mark.parametrize("place", list(places(RECORD)), ids=str)
def test_every_entry_of_a_record_may_hold_anything_or_be_missing(path, place):
    record = read_record(path)
    for value in VALUES:
        write(path / "run.json", changed(record, place, value))
        look_at(path)
    without = copy.deepcopy(record)
    target = without
    for key in place[:-1]:
        target = target[key]
    del target[place[-1]]
    write(path / "run.json", without)
    look_at(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "1" * 5000, "[" * 100_000, "\x00", '{"schema": 1}']
)
def test_what_is_no_record_is_listed_as_unreadable(path, text):
    write(path / "run.json", text)
    look_at(path)
    assert [name for name, _ in list_runs(path.parent).unreadable] == ["run"]


@pytest.mark.parametrize("seed", range(12))
def test_events_may_hold_anything(path, seed):
    rng = random.Random(seed)
    lines = []
    for step in range(200):
        event = {"time": time.time() + step, "step": step, **copy.deepcopy(rng.choice(EVENTS))}
        for _ in range(rng.randrange(3)):
            event = changed(event, rng.choice(list(places(event))), rng.choice(VALUES))
            if rng.random() < 0.1:
                event.pop(rng.choice(list(event)), None)
        lines.append(json.dumps(event) if rng.random() > 0.02 else rng.choice(["", "{", "[1]", "\x00" * 50]))
    write(path / "events" / "trainer-0001.jsonl", "\n".join(lines[:120]))
    write(path / "events" / "trainer-0002.jsonl", "\n".join([*lines[120:], ""]))
    look_at(path)


@pytest.mark.parametrize(
    "place", ["step", "num_actions", "sequence", "bytes", "time", "files", "schema", "sha256"]
)
def test_manifests_may_hold_anything(path, place):
    info = checkpoint.save(path, 5, lambda folder: (folder / "model").write_text("x") and None, {})
    manifest = json.loads((info.path / "manifest.json").read_text())
    for value in VALUES:
        new = {**manifest, place: value}
        if place != "sha256":
            new.pop("sha256")
            new["sha256"] = checkpoint._digest(new)
        write(info.path / "manifest.json", new)
        look_at(path)
        checkpoint.newest_good(path)


@pytest.mark.skipif(os.name == "nt", reason="files with holes, and pipes")
def test_events_without_an_end_and_what_is_no_file_are_not_read(path):
    events = path / "events"
    for number, size in ((1, 1 << 42), (3, 1 << 42)):
        with open(events / f"trainer-000{number}.jsonl", "wb") as file:
            file.write(b'{"time":1.0,"kind":"step","step":%d,"loss":1.0}\n' % number)
            file.truncate(size)  # a hole: it takes no place
    write(events / "trainer-0002.jsonl", '{"time":1.0,"kind":"step","step":2,"loss":1.0}\n')
    os.mkfifo(events / "trainer-0004.jsonl")
    (events / "trainer-0005.jsonl").mkdir()
    look_at(path)
    run = Run(path)
    assert run.history()[0].tolist() == [1, 2, 3]
    assert "2 damaged lines" in "".join(run.problems)
    assert run.step == 3  # also of what was read before


@pytest.mark.skipif(os.name == "nt", reason="names that are no text")
def test_a_run_whose_name_is_no_text_is_listed(tmp_path):
    path = create(tmp_path, "run", RECORD)
    os.rename(path, os.fsencode(tmp_path) + b"/caf\xe9")  # Latin-1
    create(tmp_path, "other", RECORD)
    listed = list_runs(tmp_path)
    assert len(listed) == 2
    assert "caf\ufffd" in repr(listed)
    assert "caf\ufffd" in listed._repr_html_()
    for run in listed:
        for text in (repr(run), run._repr_html_(), details(run), repr(compare(run))):
            text.encode()
