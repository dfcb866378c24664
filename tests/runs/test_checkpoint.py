import json
import os
import shutil
import subprocess
import sys

import pytest

from nbllm.core.errors import RunError
from nbllm.runs import checkpoint
from nbllm.runs.checkpoint import (
    adopt,
    checkpoints,
    load_state,
    newest_good,
    prune,
    save,
    verify,
)


def fill_with(content):
    def fill(folder):
        (folder / "model.safetensors").write_bytes(content)
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocab.json").write_text("{}")

    return fill


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here pulls the plug, so nothing needs to wait for the disk (the crash test is a process)."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def run(tmp_path):
    for step in (0, 100, 200):
        save(
            tmp_path, step, fill_with(b"weights" * (step + 1)), {"num_actions": step // 100, "rng": [1, step]}
        )
    return tmp_path


def names(run):
    return [info.name for info in checkpoints(run)]


def test_what_was_saved_is_listed_verified_and_loaded(run):
    assert names(run) == ["step-00000000", "step-00000100", "step-00000200"]
    newest, problems = newest_good(run)
    assert problems == []
    assert (newest.step, newest.num_actions, newest.sequence) == (200, 2, 3)
    files = [file for file in newest.path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    assert newest.bytes == sum(file.stat().st_size for file in files)
    assert load_state(newest.path) == {"num_actions": 2, "rng": [1, 200]}
    assert (newest.path / "tokenizer" / "vocab.json").read_text() == "{}"
    assert verify(newest.path) == []


def test_no_checkpoints(tmp_path):
    assert checkpoints(tmp_path / "gone") == []
    assert newest_good(tmp_path) == (None, [])


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "tokenizer/vocab.json", "manifest.json"])
@pytest.mark.parametrize("bit", [0, 77, 555, 1234])
def test_one_flipped_bit_is_found_and_the_one_before_is_taken(run, name, bit):
    flip(run / "checkpoints" / "step-00000200" / name, bit)
    newest, problems = newest_good(run)
    assert newest.step == 100
    assert len(problems) == 1
    assert f"step-00000200: {name} is damaged" in problems[0]


def test_every_kind_of_damage_is_named(run):
    folder = run / "checkpoints"
    (folder / "step-00000200" / "model.safetensors").unlink()
    (folder / "step-00000200" / "state.json").write_text("{")
    (folder / "step-00000100" / "manifest.json").unlink()
    newest, problems = newest_good(run)
    assert newest.step == 0
    assert sorted(problems) == [
        "step-00000100: manifest.json is missing",
        "step-00000200: model.safetensors is missing",
        "step-00000200: state.json has 1 bytes, not 54",
    ]
    shutil.rmtree(folder / "step-00000000" / "tokenizer")
    newest, problems = newest_good(run)
    assert newest is None
    assert len(problems) == 4


def test_only_those_on_the_line_are_considered(run):
    newest, problems = newest_good(run, lambda info: info.step <= 100)
    assert newest.step == 100
    assert problems == []


def test_after_a_rewind_the_newest_is_the_last_saved_not_the_highest_step(run):
    save(run, 150, fill_with(b"new"), {})
    newest, _ = newest_good(run)
    assert newest.step == 150


def test_saving_a_step_again_replaces_it(run):
    again = save(run, 100, fill_with(b"again"), {"num_actions": 5})
    assert [(info.step, info.num_actions) for info in checkpoints(run)] == [(0, 0), (200, 2), (100, 5)]
    assert again.path.name == "step-00000100-2"
    save(run, 100, fill_with(b"and again"), {"num_actions": 6})
    assert sorted(names(run)) == ["step-00000000", "step-00000100", "step-00000200"]


def test_a_save_that_fails_leaves_what_was_there(run):
    def fail(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for step in (100, 300):
        with pytest.raises(OSError, match="No space left"):
            save(run, step, fail, {})
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000000", "step-00000100", "step-00000200"]
    assert newest_good(run)[1] == []


def test_pruning_keeps_the_first_and_the_newest(run):
    save(run, 50, fill_with(b"x"), {})  # after a rewind
    (run / "checkpoints" / ".aside-dead").mkdir()
    assert prune(run, keep=1, protect=[run / "checkpoints" / "step-00000100"]) == ["step-00000200"]
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000000", "step-00000050", "step-00000100"]
    assert prune(run, keep=1) == ["step-00000100"]
    assert prune(run, keep=9) == []


def test_saving_the_first_step_again_does_not_make_another_the_first(run):
    save(run, 0, fill_with(b"x"), {})
    assert prune(run, keep=1) == ["step-00000100", "step-00000200"]


def test_adopting_copies_into_another_run_and_starts_its_count(run, tmp_path):
    child = tmp_path / "child"
    child.mkdir()
    parent = checkpoints(run)[-1]
    info = adopt(parent, child, note="fork")
    assert (info.step, info.num_actions, info.sequence) == (200, 0, 1)
    assert load_state(info.path) == {"num_actions": 0, "rng": [1, 200], "note": "fork"}
    assert (info.path / "model.safetensors").read_bytes() == (parent.path / "model.safetensors").read_bytes()
    assert verify(info.path) == []
    flip(parent.path / "model.safetensors", 9)
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        adopt(parent, child)


def test_a_manifest_cannot_reach_outside(run, tmp_path):
    (tmp_path / "secret").write_text("s")
    path = run / "checkpoints" / "step-00000200"
    for name in ("../../../secret", "/etc/passwd", "a/../../b", "..\\x", "c:x", ""):
        manifest = json.loads((path / "manifest.json").read_text())
        manifest.pop("sha256")
        manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
        manifest["sha256"] = checkpoint._digest(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert "is not a name inside the checkpoint" in verify(path)[0]
        manifest["files"].pop(name)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other/9"},
        {"step": -1},
        {"step": "200"},
        {"bytes": 1.5},
        {"time": "x"},
        {"files": []},
        {"files": {"state.json": 7}},
        {"files": {}},
    ],
)
def test_a_manifest_may_hold_anything(run, change):
    path = run / "checkpoints" / "step-00000200"
    manifest = json.loads((path / "manifest.json").read_text()) | change
    manifest.pop("sha256")
    (path / "manifest.json").write_text(json.dumps({**manifest, "sha256": checkpoint._digest(manifest)}))
    assert names(run) == ["step-00000000", "step-00000100"]
    assert "manifest.json is damaged" in newest_good(run)[1][0]


def test_a_state_that_cannot_be_read_is_a_clear_error(run):
    with pytest.raises(RunError, match=r"state.json cannot be read"):
        load_state(run)


def test_odd_entries_are_no_checkpoints(run):
    for name in ("step-1", "step-00000300.txt", "notes", ".aside-1"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "step-00000999").write_text("a file")
    assert names(run) == ["step-00000000", "step-00000100", "step-00000200"]
    assert newest_good(run)[1] == []


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_checkpoints_behind_a_link_are_neither_taken_nor_touched(run, tmp_path_factory):
    mine = tmp_path_factory.mktemp("mine")
    (mine / "checkpoints").symlink_to(run / "checkpoints")
    (run / "checkpoints" / ".aside-dead").mkdir()
    held = sorted(os.listdir(run / "checkpoints"))
    assert checkpoints(mine) == []
    assert newest_good(mine) == (None, [])
    assert prune(mine, keep=1) == []
    with pytest.raises(OSError, match="checkpoints/ is a link"):
        save(mine, 300, fill_with(b"weights"), {})
    assert sorted(os.listdir(run / "checkpoints")) == held
    (mine / "checkpoints").unlink()
    save(mine, 0, fill_with(b"weights"), {})
    (mine / "checkpoints" / "step-00000100").symlink_to(run / "checkpoints" / "step-00000100")
    save(mine, 100, fill_with(b"weights"), {})
    assert names(mine) == ["step-00000000", "step-00000100-2"]
    assert prune(mine, keep=1) == []
    assert sorted(os.listdir(run / "checkpoints")) == held


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json", "tokenizer/vocab.json"])
@pytest.mark.parametrize("what", ["link", "pipe", "device"])
def test_what_is_no_file_in_a_checkpoint_is_damage_found_at_once(run, tmp_path_factory, name, what):
    file = run / "checkpoints" / "step-00000200" / name
    copy = tmp_path_factory.mktemp("copy") / "copy"
    shutil.copyfile(file, copy)
    file.unlink()
    if what == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(copy if what == "link" else "/dev/zero")
    newest, problems = newest_good(run)
    assert newest.step == 100
    assert name in problems[0]


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_linked_folder_in_a_checkpoint_is_damage(run, tmp_path_factory):
    folder = run / "checkpoints" / "step-00000200" / "tokenizer"
    copy = tmp_path_factory.mktemp("copy") / "copy"
    shutil.move(folder, copy)
    folder.symlink_to(copy)
    assert newest_good(run)[1] == ["step-00000200: tokenizer/vocab.json is a link, or not a file"]


def test_a_run_that_was_deleted_is_not_made_anew(run, tmp_path):
    shutil.rmtree(run)
    with pytest.raises(FileNotFoundError):
        save(run, 300, fill_with(b"weights"), {})
    assert not run.exists()


# Children write events and checkpoints as fast as they can and are killed at a random moment; what a child
# said was saved must be there, whole, or something newer.
CRASH = """
import os, random, signal, sys, time
from nbllm.runs import checkpoint
from nbllm.runs.commands import CommandInbox, send
from nbllm.runs.events import EventReader, EventWriter
folder, num_kills = sys.argv[1], int(sys.argv[2])
rng = random.Random(5)
os.mkdir(os.path.join(folder, "commands"))

def child(first):
    def fill(aside):
        for name in ("a", "b"):
            (aside / name).write_bytes(os.urandom(20_000))
    writer = EventWriter(folder)
    writer.write("start", first, from_step=first)
    step = first
    while True:  # each step is saved three times
        step += 1
        writer.write("step", step, loss=1.0, text="x" * 300)
        info = checkpoint.save(folder, step - step % 3, fill, {"num_actions": step})
        writer.write("checkpoint", info.step, saved=info.num_actions)
        checkpoint.prune(folder, keep=2)
        send(folder, "pause")
        CommandInbox(folder).take()

first = 0
for kill in range(num_kills):
    pid = os.fork()
    if pid == 0:
        child(first)
    deadline = time.monotonic() + 30
    while not checkpoint.checkpoints(folder) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(rng.random() * 0.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    reader = EventReader(folder)
    events = reader.poll()
    assert reader.damaged == 0, "a torn line was glued to another"
    info, problems = checkpoint.newest_good(folder)
    assert not problems, problems
    said = [e["saved"] for e in events if e["kind"] == "checkpoint"]
    assert info.num_actions >= max(said, default=0), (info, said[-1:])
    assert checkpoint.load_state(info.path)["num_actions"] == info.num_actions
    inbox = CommandInbox(folder)
    inbox.take()
    assert inbox.drain_warnings() == []
    first = info.num_actions
print("survived", first)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_any_moment_nothing_that_was_saved_is_lost(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CRASH, tmp_path, "20"], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("survived"), done.stderr
    assert int(done.stdout.split()[1]) > 20, "hardly anything was saved: the kills came too early"


def test_a_checkpoint_that_is_deleted_while_it_is_verified_is_no_damage(run, monkeypatch):
    """A trainer that goes on saves a newer one and deletes it: that one is the newest, not an older one."""
    verified = []

    def late(path):
        if not verified:
            save(run, 300, fill_with(b"new"), {})
            prune(run, keep=1)
        verified.append(path.name)
        return verify(path)

    monkeypatch.setattr(checkpoint, "verify", late)
    newest, problems = newest_good(run)
    assert newest.step == 300 and problems == []
    assert verified == ["step-00000200", "step-00000300"]
