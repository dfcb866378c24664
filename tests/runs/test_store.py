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
    assert sorted(os.listdir(path)) == ["checkpoints", "commands", "events", "run.json"]
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
