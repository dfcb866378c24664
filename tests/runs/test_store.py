import json
import os
import threading
import time

import pytest

import nbllm.runs
from nbllm.core.errors import RunError
from nbllm.runs.events import EventWriter
from nbllm.runs.listing import list_runs
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.store import check_name, create, read_record, run_folders


def test_a_new_run_has_its_record_and_folders(tmp_path):
    path = create(
        tmp_path / "new" / "runs", "tour", {"config": {"lr": 0.1}, "schema": "mine", "name": "other"}
    )
    record = read_record(path)
    assert record["schema"] == "nbllm-run/1"
    assert record["name"] == "tour"
    assert record["config"] == {"lr": 0.1}
    assert abs(record["created"] - time.time()) < 60
    assert sorted(os.listdir(path)) == ["checkpoints", "commands", "events", "logs", "run.json"]
    assert os.listdir(path.parent) == ["tour"]  # nothing is left aside


def test_names_that_are_taken_get_a_number(tmp_path):
    (tmp_path / "tour-2").mkdir()
    (tmp_path / "tour-2" / "mine.txt").write_text("")
    assert [create(tmp_path, "tour", {}).name for _ in range(3)] == ["tour", "tour-3", "tour-4"]
    assert (tmp_path / "tour-2" / "mine.txt").exists()


def test_many_at_once_each_get_their_own(tmp_path):
    made = []
    threads = [
        threading.Thread(target=lambda n=n: made.append((n, create(tmp_path, "tour", {"n": n}))))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path for _, path in made}) == 8
    assert all(read_record(path)["n"] == n for n, path in made)


@pytest.mark.parametrize(
    "name", ["tour", "a b", "lr=1e-3".replace("=", "-"), "größer", "v1.2+x", "_x", "日本"]
)
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        ".hidden",
        "a.",
        "a ",
        " a",
        "a\nb",
        "a\x00b",
        "<script>",
        "-rf",
        "~",
        "a:b",
        "CON",
        "nul.txt",
        "x" * 81,
        None,
        7,
    ],
)
def test_names_that_are_refused(tmp_path, name):
    with pytest.raises(RunError, match="cannot be the name of a run") as caught:
        create(tmp_path / "runs", name, {})
    suggested = caught.value.hint.rpartition(": ")[2].rstrip(".").strip("'\"")
    assert check_name(suggested) == suggested
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be created: (Not a directory|File exists)"):
        create(tmp_path / "file", "tour", {})


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="cannot be created: No space left on device"):
        create(tmp_path, "tour", {})
    assert os.listdir(tmp_path) == []


def test_listing(tmp_path, capsys):
    runs = tmp_path / "runs"
    assert repr(list_runs(runs)) == f"No runs in {runs}."
    assert "No runs in" in list_runs(runs)._repr_html_()
    first = create(runs, "first", {"steps": 10, "created": time.time() - 7300})
    fork = create(runs, "fork", {"parent": {"name": "first", "step": 5}})
    (runs / "no-run").mkdir()
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    (runs / ".aside-1").mkdir()
    with EventWriter(first) as writer:
        writer.write("start", 0, from_step=0, **this_process())
        writer.write("step", 10, loss=1.25)
        writer.write("end", 10, state="finished")
    listed = nbllm.runs(runs)
    assert [run.name for run in listed] == ["fork", "first"]  # newest first
    assert listed.rows()[1] == ("first", "finished", "10 / 10", "1.250", "", "2 h 1 min")
    assert listed.rows()[0][1:5] == ("starting", "5", "", "first at 5")
    assert "broken: unreadable (The run's record is damaged" in repr(listed)
    assert "broken: unreadable" in listed._repr_html_()
    assert listed["first"].path == listed[1].path == first
    assert len(listed[:1]) == 1
    with pytest.raises(RunError, match=r"no run 'frist'[\s\S]*Did you mean 'first'"):
        listed["frist"]
    assert fork.name in repr(listed)
    assert run_folders(runs / "gone") == []


def test_listing_agrees_with_the_runs_themselves(path, start):
    loop = start()
    run = Run(path)
    run.wait(step=5, timeout=10, progress=False)
    run.pause()
    row = list_runs(path.parent).rows()[0]
    assert row[1] == "paused"
    assert row[2] == f"{run.step:,} / 500"
    run.save()
    loop.steps = loop.step + 3
    run.resume()
    loop.join(10)
    loss = f"{5 / loop.steps:.3f}"
    assert list_runs(path.parent).rows()[0][1:4] == ("finished", f"{loop.steps:,} / 500", loss)


def test_a_plan_that_was_changed_is_shown_as_changed(path):
    answered = {"actor": "person", "action": "set", "outcome": "applied"}
    with EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **this_process())
        writer.write("step", 1, loss=1.0)
        writer.write("action", 1, id="1", args={"steps": 9000}, **answered)
        writer.write("step", 2, loss=1.0)
        assert Run(path).steps == 9000
        assert list_runs(path.parent).rows()[0][2] == "2 / 9,000"
        writer.write("action", 2, **{**answered, "id": "2", "action": "rewind"}, args={"to": 0, "keep": 0})
        assert Run(path).steps == 500
        assert list_runs(path.parent).rows()[0][2] == "0 / 500"


def test_the_package_needs_no_torch_and_is_callable(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, nbllm.runs; r = nbllm.runs(sys.argv[1]); r._repr_html_(); import nbllm.runs.compare;"
        "heavy = {'torch', 'numba', 'transformers', 'datasets', 'pandas', 'IPython'} & sys.modules.keys();"
        "assert not heavy, heavy; print(len(r), sorted(nbllm.runs.__all__)[:2])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip() == "0 ['Action', 'CheckpointInfo']", done.stderr
    assert json.dumps(nbllm.runs.Setting(name="lr").to_dict())


PARTS = ["run.json", "events", "commands", "checkpoints", "trainer.json", "trainer.lock", "process.log"]
INSIDE = ["events/trainer-0009.jsonl", "checkpoints/step-00000009", "commands/rejected"]
needs_links = pytest.mark.skipif(os.name == "nt", reason="links and pipes")


@needs_links
@pytest.mark.parametrize("name", [*PARTS, *INSIDE])
def test_a_run_with_a_link_inside_is_refused_and_listed_with_the_reason(tmp_path, name):
    path, other = create(tmp_path, "run", {}), create(tmp_path, "other", {})
    with EventWriter(other) as writer:
        writer.write("step", 10, loss=1.25)
    if (path / name).is_dir():
        (path / name).rmdir()
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(other / name)
    with pytest.raises(RunError, match=f"^{name} is a link"):
        Run(path)
    listed = list_runs(tmp_path)
    assert [run.name for run in listed] == ["other"]
    assert f"run: unreadable ({name} is a link" in repr(listed)


@needs_links
def test_a_link_to_a_whole_run_is_the_run(tmp_path):
    path = create(tmp_path / "disk", "run", {"steps": 7})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "near").symlink_to(path)
    assert [run.steps for run in list_runs(tmp_path / "runs")] == [7]


@needs_links
def test_a_record_that_is_no_file_is_neither_waited_for_nor_read(tmp_path):
    for name in ("pipe", "folder", "large"):
        (create(tmp_path, name, {}) / "run.json").unlink()
    os.mkfifo(tmp_path / "pipe" / "run.json")
    (tmp_path / "folder" / "run.json").mkdir()
    with open(tmp_path / "large" / "run.json", "wb") as file:
        file.truncate(1 << 40)  # a file with a hole: it takes no place
    reasons = dict(list_runs(tmp_path).unreadable)
    assert "Not a regular file" in reasons["pipe"]
    assert "cannot be read" in reasons["folder"]
    assert "More than 67,108,864 bytes" in reasons["large"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_folder_that_may_not_be_entered_is_listed_as_such(tmp_path, monkeypatch):
    create(tmp_path, "mine", {})
    closed = create(tmp_path, "closed", {})
    if os.geteuid() == 0:  # whom no permission stops
        lstat, open_file = os.lstat, os.open

        def refuse(function):
            def asked(path, *args, **kwargs):
                if str(path).startswith(f"{closed}/"):
                    raise PermissionError(13, "Permission denied", str(path))
                return function(path, *args, **kwargs)

            return asked

        monkeypatch.setattr(os, "lstat", refuse(lstat))
        monkeypatch.setattr(os, "open", refuse(open_file))
    else:
        closed.chmod(0)
    try:
        listed = list_runs(tmp_path)
        assert [run.name for run in listed] == ["mine"]
        assert listed.unreadable == [("closed", "The run's record cannot be read: Permission denied.")]
        with pytest.raises(RunError, match="Permission denied"):
            Run(closed)
    finally:
        closed.chmod(0o700)


def test_a_folder_of_runs_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    create(tmp_path, "mine", {})

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(RunError, match="The folder of runs cannot be read: Permission denied"):
        list_runs(tmp_path)
