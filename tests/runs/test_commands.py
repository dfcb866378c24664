import json
import os
import re

import pytest

from nbllm.core.errors import RunError
from nbllm.runs import commands
from nbllm.runs.commands import CommandInbox, discard, send, withdraw

NAME = f"{'5' * 20}-{'a' * 16}.json"


def prepared(path):
    (path / "commands").mkdir()
    return path


@pytest.fixture
def run(tmp_path):
    return prepared(tmp_path)


def test_what_is_sent_is_taken_once_and_in_order(run, monkeypatch):
    moments = iter([3_000, 2_000, 1_000])  # the clock goes backwards
    monkeypatch.setattr(commands.time, "time_ns", lambda: next(moments))
    sent = [send(run, action, {"n": n}, "agent:a b") for n, action in enumerate(["pause", "resume", "stop"])]
    inbox = CommandInbox(run)
    assert inbox.take() == sent
    assert inbox.take() == []
    assert inbox.drain_warnings() == []
    assert os.listdir(run / "commands") == []


def test_what_is_half_written_is_not_taken(run):
    (run / "commands" / ".aside-abc").write_text("{")
    inbox = CommandInbox(run)
    assert inbox.take() == []
    assert inbox.drain_warnings() == []


def good(**changes):
    return json.dumps(
        {"id": "0" * 16, "action": "pause", "args": {}, "actor": "person", "time": 1.0, **changes}
    ).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "not the fields"),
        (b"{}", "not the fields"),
        (good(more=1), "not the fields"),
        (good(id="../../etc/passwd"), "id is not"),
        (good(id=7), "id is not"),
        (good(action="rm -rf"), "action is not a name"),
        (good(action=None), "action is not a name"),
        (good(args=[1]), "args is not an object"),
        (good(actor="root"), "actor is not one of"),
        (good(actor="agent:" + "x" * 999), "actor is not one of"),
        (good(actor="agent:a\nb"), "actor is not one of"),
        (good(time="now"), "time is not a number"),
        (good(time=True), "time is not a number"),
        (good(time=0).replace(b'"time": 0', b'"time": NaN'), "time is not a number"),
        (good(time=0).replace(b'"time": 0', b'"time": 1' + b"0" * 400), "time is not a number"),
        (b" " * (commands.MAX_BYTES + 1), "More than 1,048,576 bytes"),
    ],
)
def test_what_is_no_command_is_moved_away_with_a_warning(run, data, reason):
    (run / "commands" / NAME).write_bytes(data)
    wanted = send(run, "pause")
    inbox = CommandInbox(run)
    assert inbox.take() == [wanted]
    (warning,) = inbox.drain_warnings()
    assert reason in warning
    assert "moved to commands/rejected/" in warning
    assert os.listdir(run / "commands") == ["rejected"]
    assert os.listdir(run / "commands" / "rejected") == [NAME]


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
def test_links_pipes_and_folders_are_neither_followed_nor_waited_for(run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(good())
    (run / "commands" / NAME.replace("5", "6")).symlink_to(secret)
    os.mkfifo(run / "commands" / NAME.replace("5", "7"))
    (run / "commands" / NAME).mkdir()
    inbox = CommandInbox(run)
    assert inbox.take() == []
    assert len(inbox.drain_warnings()) == 3
    assert secret.exists()
    assert inbox.take() == []
    assert inbox.drain_warnings() == []


def test_what_cannot_be_moved_away_is_said_once_and_never_obeyed(run, monkeypatch):
    send(run, "pause")
    (run / "commands" / NAME).write_bytes(b"{")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(commands.Path, "unlink", refuse)
    inbox = CommandInbox(run)
    assert inbox.take() == []  # a command whose file stays would be obeyed at every step
    assert len(inbox.drain_warnings()) == 2
    assert inbox.take() == []
    assert inbox.drain_warnings() == []


def test_files_that_are_not_named_like_commands_stay_and_are_said_once(run):
    names = ["thesis.json", "settings.json", "\x1b[31m<b>" + "x" * 200 + ".json"]
    for name in names:
        (run / "commands" / name).write_bytes(good())
    inbox = CommandInbox(run)
    assert inbox.take() == []
    (warning,) = inbox.drain_warnings()
    assert "not named like a command" in warning
    assert "\x1b" not in warning
    assert inbox.take() == []
    assert inbox.drain_warnings() == []
    sent = send(run, "pause")
    assert discard(run) == 1
    assert not withdraw(run, sent)
    assert sorted(os.listdir(run / "commands")) == sorted(names)


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_linked_folder_of_commands_is_left_alone(run, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    send_there = send(prepared(other), "pause")
    (other / "commands" / NAME).write_text("{")
    held = sorted(os.listdir(other / "commands"))
    (run / "commands").rmdir()
    (run / "commands").symlink_to(other / "commands")
    for attempt in (lambda: send(run, "pause"), lambda: discard(run)):
        with pytest.raises(RunError, match="commands/ is a link"):
            attempt()
    inbox = CommandInbox(run)
    assert inbox.take() == []
    assert inbox.drain_warnings() == [
        "commands/ is a link, and a run holds no links; commands are not taken."
    ]
    assert sorted(os.listdir(other / "commands")) == held
    assert CommandInbox(other).take() == [send_there]


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_what_is_rejected_is_not_moved_through_a_link(run, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (run / "commands" / "rejected").symlink_to(elsewhere)
    (run / "commands" / NAME).write_text("{")
    inbox = CommandInbox(run)
    assert inbox.take() == []
    assert "it is ignored" in inbox.drain_warnings()[0]
    assert os.listdir(elsewhere) == []


def test_a_missing_folder_is_an_empty_inbox_and_an_error_to_the_sender(tmp_path):
    assert CommandInbox(tmp_path / "gone").take() == []
    with pytest.raises(RunError, match="cannot be sent: No such file"):
        send(tmp_path / "gone", "pause")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"x": {1, 2}}, "not JSON serializable"),
        ({"x": float("nan")}, "not JSON compliant"),
        ({"prompt": "x" * (1 << 20)}, "too long: 1,048,"),
    ],
)
def test_arguments_that_cannot_travel(run, args, message):
    with pytest.raises(RunError, match=message):
        send(run, "sample", args)
    assert os.listdir(run / "commands") == []


@pytest.mark.parametrize("actor", ["", "root", "rule:", "agent:\x07", 7, "person "])
def test_actors(run, actor):
    with pytest.raises(RunError, match="is not an actor"):
        send(run, "pause", {}, actor)


def test_withdrawing_and_discarding(run):
    first, _second, _third = send(run, "pause"), send(run, "stop"), send(run, "save")
    assert withdraw(run, first)
    assert not withdraw(run, first)
    assert discard(run) == 2
    assert CommandInbox(run).take() == []


def test_a_name_far_in_the_future_does_not_break_the_names_after_it(run):
    (run / "commands" / f"{'9' * 20}-{'0' * 16}.json").write_bytes(good())
    sent = send(run, "stop")
    assert all(re.fullmatch(r"\d{20}-[0-9a-f]{16}\.json", name) for name in os.listdir(run / "commands"))
    assert sent in CommandInbox(run).take()


def test_a_full_disk_is_an_error_to_the_sender_and_leaves_nothing(run, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="pause cannot be sent: No space left on device"):
        send(run, "pause")
    assert os.listdir(run / "commands") == []
