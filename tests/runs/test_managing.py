import os

import pytest

from nbllm.core.errors import RunError
from nbllm.runs import checkpoint, commands, managing
from nbllm.runs.events import EventWriter
from nbllm.runs.listing import list_runs
from nbllm.runs.lock import TrainerLock
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.store import create, read_record


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def make(runs):
    """Make a run that has ended, with a step, a checkpoint and a command that nobody took."""

    def make(name="demo", **record):
        path = create(runs, name, record)
        with EventWriter(path) as writer:
            writer.write("start", 0, from_step=0, **this_process())
            writer.write("step", 5, loss=1.5)
            checkpoint.save(path, 5, lambda folder: (folder / "weights").write_bytes(b"w") and None, {})
            writer.write("end", 5, state="finished")
        commands.send(path, "pause")
        (path / "process.log").write_text("said something")
        return path

    return make


def test_a_renamed_run_is_the_same_under_another_name(make, runs):
    run = Run(make())
    assert run.rename("first try") is run
    assert (run.name, run.path, run.step, run.state) == ("first try", runs / "first try", 5, "finished")
    assert run.record["name"] == "first try"
    assert [info.path.parent.parent for info in run.checkpoints] == [run.path]
    assert [run.name for run in list_runs(runs)] == ["first try"]
    assert not (run.path / "trainer.json").exists()


def test_forks_and_replays_follow_a_new_name(make, runs):
    run = Run(make())
    make("warmer", parent={"run": "demo", "step": 5, "actor": "person"})
    make("demo-replay", replay={"of": "demo", "script": []})
    other = make("other", parent={"run": "else", "step": 1})
    untouched = (other / "run.json").stat()
    run.rename("first")
    assert Run(runs / "warmer").parent == {"run": "first", "step": 5, "actor": "person"}
    assert Run(runs / "warmer").summary.parent_text == "first at 5"
    assert read_record(runs / "demo-replay")["replay"] == {"of": "first", "script": []}
    assert (other / "run.json").stat() == untouched


@pytest.mark.parametrize("name", ["", "../x", "a/b", "CON", None])
def test_a_name_that_cannot_be_one(make, name):
    run = Run(make())
    with pytest.raises(RunError, match="cannot be the name of a run"):
        run.rename(name)
    assert run.name == "demo" and run.path.exists()


def test_a_name_that_is_taken_and_its_own(make, runs):
    run = Run(make())
    make("other")
    (runs / "file").write_text("mine")
    (runs / "dangling").symlink_to(runs / "nowhere")
    for taken in ("other", "file", "dangling"):
        with pytest.raises(RunError, match=f"There is '{taken}' already"):
            run.rename(taken)
    assert run.rename("demo").path == runs / "demo"
    assert (runs / "file").read_text() == "mine"


def test_a_live_run_is_neither_renamed_nor_deleted(run):
    for manage in (lambda: run.rename("other"), run.delete):
        with pytest.raises(RunError, match=r"tour is running; a live run cannot be[\s\S]*run\.stop\(\)"):
            manage()
    assert run.is_live and run.path.exists()
    run.stop()
    run.wait(timeout=10, progress=False)  # its trainer may hold the lock a moment longer
    run.delete()
    assert not run.path.exists()


def test_a_run_that_may_be_starting(runs):
    path = create(runs, "new", {})
    with pytest.raises(RunError, match=r"new is starting[\s\S]*try again in two minutes"):
        managing.delete(path)
    with TrainerLock(path), pytest.raises(RunError, match=r"new is starting[\s\S]*run\.stop\(\)"):
        managing.delete(path)


def test_a_deleted_run_leaves_nothing(make, runs, capsys):
    run = Run(make())
    (run.path / "checkpoints" / f".aside-{'0' * 32}").mkdir()
    run.delete()
    assert os.listdir(runs) == []
    assert run.state == "lost" and run.problems == ["The run's folder is gone."]
    assert capsys.readouterr().out == ""
    with pytest.raises(RunError, match="There is no run here"):
        run.delete()


def test_what_is_not_the_runs_own_stays(make, capsys):
    path = make()
    mine = ["thesis.txt", "checkpoints/best/model", "events/notes.md", "commands/later.json", ".aside-mine"]
    for name in mine:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("mine")
    assert managing.foreign_files(path) == sorted(path / name for name in mine)
    Run(path).delete()
    left = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    assert sorted(left) == sorted(str(path / name) for name in mine)
    assert "stays, for files that are no part of the run: .aside-mine, checkpoints/best/model" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("part", ["checkpoints", "commands", "events"])
def test_links_are_removed_and_never_followed(make, runs, part):
    victim = make("victim")
    before = sorted(os.walk(victim))
    path = make()
    os.rename(path / part, path / "old")
    (path / "old").rename(runs.parent / "old")
    (path / part).symlink_to(victim / part)
    assert managing.delete(path) == []
    assert not path.exists()
    assert sorted(os.walk(victim)) == before


def test_a_link_among_what_is_ours(make, runs):
    victim, path = make("victim"), make()
    before = sorted(os.walk(victim))
    (path / "checkpoints" / "step-00000099").symlink_to(victim / "checkpoints")
    (path / "checkpoints" / "step-00000005" / "more").symlink_to(victim)
    (path / "mine").symlink_to(victim)
    assert managing.delete(path) == [path / "mine"]
    assert sorted(os.walk(victim)) == before


def test_a_run_folder_that_is_a_link_is_left_alone(make, runs):
    path = make()
    link = runs / "link"
    link.symlink_to(path)
    before = sorted(os.walk(path))
    handle = Run(link)  # reading through it is fine
    managed = [
        lambda: handle.delete(),
        lambda: handle.as_actor("agent:x").delete(),
        lambda: handle.rename("other"),
        lambda: managing.delete(link),
        lambda: managing.rename(link, "other"),
        lambda: managing.check_replaceable(link),
    ]
    for manage in managed:
        with pytest.raises(RunError, match=r"link is a link, and is not [\s\S]*demo"):
            manage()
    assert sorted(os.walk(path)) == before and link.is_symlink()
    runs.rename(runs.with_name("moved"))
    runs.symlink_to(runs.with_name("moved"))  # a link on the way to the folder does no harm
    Run(runs / "demo").delete()
    assert os.listdir(runs) == ["link"]


@pytest.mark.parametrize("name", ["run.json", "trainer.lock", "trainer.json", "process.log"])
def test_files_that_are_links(make, runs, name):
    (runs.parent / "thesis").write_text("mine")
    path = make()
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(runs.parent / "thesis")
    assert managing.delete(path) == []
    assert not path.exists() and (runs.parent / "thesis").read_text() == "mine"


def test_forks_of_a_deleted_run_do_not_take_another_for_their_parent(make, runs):
    run = Run(make())
    fork = make("warmer", parent={"run": "demo", "step": 5, "actor": "person"})
    run.delete()
    assert Run(fork).summary.parent_text == "demo (deleted) at 5"
    make()  # another run of the old name
    assert Run(fork).summary.parent == "demo (deleted)"
    assert Run(fork).state == "finished"


def test_a_damaged_run_can_be_deleted(make, runs):
    path = make()
    (path / "run.json").write_text("{")
    assert managing.delete(path) == []
    assert os.listdir(runs) == []


def test_an_interrupted_deletion_can_be_repeated(make, runs, monkeypatch):
    path = make()

    def full(target):
        raise PermissionError(13, "Permission denied", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(managing.shutil, "rmtree", full)
        with pytest.raises(RunError, match=r"demo cannot be deleted: Permission denied[\s\S]*right to write"):
            managing.delete(path)
    assert [run.name for run in list_runs(runs)] == ["demo"]
    managing.delete(path)
    assert os.listdir(runs) == []
