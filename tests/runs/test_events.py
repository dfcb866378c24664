import json
import math
import os
import random
import subprocess
import sys
import threading

import pytest

from nbllm.core.errors import RunError
from nbllm.runs import events as events_module
from nbllm.runs.events import MAX_LINE, EventReader, EventWriter, Restarted, event_files


def test_a_second_writer_gets_a_file_of_its_own_and_order_is_by_session(tmp_path, monkeypatch):
    moments = iter([2000.0, 1000.0, 500.0])  # the clock goes backwards
    monkeypatch.setattr(events_module.time, "time", lambda: next(moments))
    for step, writer in enumerate(["trainer", "other", "trainer"]):
        with EventWriter(tmp_path, writer) as opened:
            opened.write("step", step)
            assert opened.session == step + 1
    assert [path.name for path in event_files(tmp_path)] == [
        "trainer-0001.jsonl",
        "other-0002.jsonl",
        "trainer-0003.jsonl",
    ]
    assert [event["step"] for event in EventReader(tmp_path).poll()] == [0, 1, 2]


def test_ten_thousand_sessions_stay_in_order(tmp_path):
    (tmp_path / "events").mkdir()
    for number in (9999, 10000, 2):
        line = json.dumps({"time": 0, "kind": "step", "step": number})
        (tmp_path / "events" / f"trainer-{number:04d}.jsonl").write_text(line + "\n")
    assert [event["step"] for event in EventReader(tmp_path).poll()] == [2, 9999, 10000]


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    with EventWriter(tmp_path) as writer:
        writer.write("step", 1, loss=math.nan, inner={"a": [math.inf, 1.0]})
    assert b"NaN" not in writer.path.read_bytes()
    event = EventReader(tmp_path).poll()[0]
    assert event["loss"] is None
    assert event["inner"] == {"a": [None, 1.0]}


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x" * (5 << 20)},
        {"text": "\x00" * (2 << 20)},
        {"args": {f"name {i}": "y" * 1000 for i in range(10_000)}},
        {"args": [["z" * 9000] * 50] * 20},
        {"w" * (5 << 20): 1},
        {"args": ("v" * 10_000,) * 1000, "loss": float("nan")},
    ],
)
def test_what_is_too_long_for_a_line_is_shortened(tmp_path, fields):
    with EventWriter(tmp_path) as writer:
        writer.write("end", 7, state="failed", **fields)
        assert len(writer.path.read_bytes()) <= MAX_LINE
        writer.write("step", 8)
    reader = EventReader(tmp_path)
    first, second = reader.poll()
    assert (first["kind"], first["step"], first["state"], second["step"]) == ("end", 7, "failed", 8)
    assert reader.damaged == 0


def test_a_torn_line_waits_for_its_end(tmp_path):
    writer = EventWriter(tmp_path)
    reader = EventReader(tmp_path)
    writer.write("step", 1)
    with open(writer.path, "ab") as file:
        file.write(b'{"time":0,"kind":"st')
    assert [event["step"] for event in reader.poll()] == [1]
    assert reader.poll() == []
    with open(writer.path, "ab") as file:
        file.write(b'ep","step":2}\n')
    assert [event["step"] for event in reader.poll()] == [2]
    assert reader.damaged == 0
    writer.close()


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[1]",
        b"7",
        b'{"kind":"step","step":1}',
        b'{"time":0,"step":1}',
        b'{"time":0,"kind":["step"],"step":1}',
        b'{"time":0,"kind":"step","step":-1}',
        b'{"time":0,"kind":"step","step":1.5}',
        b'{"time":0,"kind":"step","step":true}',
        b'{"time":NaN,"kind":"step","step":1}',
        b'{"time":0,"kind":"step","step":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"\x00\xff\xfe",
        b'{"time":0,"kind":"step","step":1},{"time":0,"kind":"step","step":1}',
    ],
)
def test_a_damaged_line_is_skipped_and_counted(tmp_path, line):
    with EventWriter(tmp_path) as writer:
        writer.write("step", 1)
        with open(writer.path, "ab") as file:
            file.write(line + b"\n")
        writer.write("step", 2)
    reader = EventReader(tmp_path)
    assert [event["step"] for event in reader.poll()] == [1, 2]
    assert reader.damaged == 1


def test_an_endless_line_does_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "MAX_LINE", 1000)
    monkeypatch.setattr(events_module, "CHUNK", 300)
    with EventWriter(tmp_path) as writer:
        writer.write("step", 1)
        with open(writer.path, "ab") as file:
            file.write(b"x" * 10_000)
        reader = EventReader(tmp_path)
        first = reader.poll()
        with open(writer.path, "ab") as file:
            file.write(b"y" * 5_000 + b"\n")
        writer.write("step", 2)
    assert [event["step"] for event in first + reader.poll()] == [1, 2]
    assert reader.damaged == 1


def test_shorter_files_than_those_read_are_noticed(tmp_path):
    with EventWriter(tmp_path) as writer:
        writer.write("step", 1)
        writer.write("step", 2)
    reader = EventReader(tmp_path)
    reader.poll()
    writer.path.write_bytes(writer.path.read_bytes().split(b"\n")[0] + b"\n")
    with pytest.raises(Restarted):
        reader.poll()


def test_reading_goes_on_when_files_or_the_folder_vanish(tmp_path):
    assert EventReader(tmp_path / "nowhere").poll() == []
    with EventWriter(tmp_path) as writer:
        writer.write("step", 1)
    reader = EventReader(tmp_path)
    (tmp_path / "events" / "trainer-0002.jsonl").symlink_to(tmp_path / "gone")
    (tmp_path / "events" / "trainer-0003.jsonl").mkdir()
    (tmp_path / "events" / "notes.txt").write_text("x\n")
    assert len(reader.poll()) == 1
    writer.path.unlink()
    assert reader.poll() == []


def test_one_writer_two_threads_and_two_readers_see_every_event_once(tmp_path):
    writer = EventWriter(tmp_path)
    seen = [[], []]
    done = threading.Event()

    def read(into):
        reader = EventReader(tmp_path)
        while not done.is_set():
            into.extend(reader.poll())
        into.extend(reader.poll())
        assert reader.damaged == 0

    def write(kind):
        for step in range(1000):
            writer.write(kind, step, text="x" * random.randrange(200))

    readers = [threading.Thread(target=read, args=(into,)) for into in seen]
    writers = [threading.Thread(target=write, args=(kind,)) for kind in ("step", "heartbeat")]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    writer.close()
    for events in seen:
        for kind in ("step", "heartbeat"):
            assert [event["step"] for event in events if event["kind"] == kind] == list(range(1000))


def test_an_unwritable_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written: Not a directory") as caught:
        EventWriter(tmp_path / "file")
    assert isinstance(caught.value.__cause__, OSError)


# A limit on a file's size makes the system take a part of a line and refuse the rest, as a full disk does.
FULL = """
import resource, sys
from nbllm.core.errors import RunError
from nbllm.runs.events import MAX_LINE, EventReader, EventWriter
writer = EventWriter(sys.argv[1])
writer.write("start", 0)
size = writer.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 25, resource.RLIM_INFINITY))
messages = []
for step in (1, 2):
    try:
        writer.write("step", step)
    except RunError as error:
        messages.append(error.what)
assert writer.path.stat().st_size == size + 25, "the system should have taken a part"
reader = EventReader(sys.argv[1])
assert [e["kind"] for e in reader.poll()] == ["start"]
assert len(messages) == 2 and "cannot be written: File too large" in messages[0], messages
assert writer.unwritten
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.write("step", 3)
assert not writer.unwritten
assert [e["step"] for e in reader.poll()] == [1, 2, 3] and reader.damaged == 0
print("all there")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file size are a Unix thing")
def test_what_a_full_disk_refuses_is_kept_and_written_later(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, env=os.environ
    )
    assert done.stdout == "all there\n", done.stderr


def test_a_failed_sync_is_reported_and_repeated(tmp_path, monkeypatch):
    writer = EventWriter(tmp_path)
    synced = []

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="Input/output error"):
        writer.write("action", 1)
    monkeypatch.setattr(os, "fsync", synced.append)
    writer.flush()
    assert len(synced) == 1
    writer.write("step", 2)
    assert len(synced) == 1  # steps are not waited for
    writer.close()
    with pytest.raises(RunError, match="closed"):
        writer.write("step", 3)
