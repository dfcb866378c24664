import pytest

from nbllm.core.errors import RunError
from nbllm.runs.locating import find, locate
from nbllm.runs.run import Run
from nbllm.runs.store import create


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create("runs", "demo", {})
    create("runs", "warmer", {})
    create("elsewhere", "other", {})
    return tmp_path


@pytest.mark.parametrize("path", ["runs/demo", "demo"])
def test_a_name_a_path_and_a_handle_mean_the_same(path, folder):
    assert locate(path).resolve() == locate(Run(path if "/" in path else "runs/demo")) == folder / "runs/demo"


def test_other_folders(folder, monkeypatch):
    assert locate("other", "elsewhere").samefile("elsewhere/other")
    assert locate(folder / "elsewhere" / "other") == folder / "elsewhere" / "other"
    monkeypatch.setenv("HOME", str(folder))
    assert locate("~/elsewhere/other") == folder / "elsewhere" / "other"
    monkeypatch.chdir("runs")
    assert locate("demo").resolve() == folder / "runs" / "demo"


def test_a_name_where_runs_are_kept_comes_before_a_folder_of_that_name(folder):
    create(".", "demo", {})
    assert locate("demo").resolve() == folder / "runs" / "demo"
    assert locate("./demo") == locate("demo")
    assert locate(folder / "demo") == folder / "demo"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("demmo", r"There is no run 'demmo'[\s\S]*Did you mean 'demo'"),
        ("runs/wamer", r"There is no run here[\s\S]*runs/wamer[\s\S]*Did you mean 'warmer'"),
        ("runs", r"There is no run 'runs'[\s\S]*This folder holds runs: demo, warmer"),
        ("quite different", r"Known: demo, warmer"),
        ("x" * 5000, r"There is no run 'xxx"),
        ("a\0b", "There is no run"),
        (7, "int is not a run"),
        (None, r"NoneType is not a run[\s\S]*nb\.runs"),
    ],
)
def test_what_is_none_is_answered_by_the_nearest(asked, message):
    with pytest.raises(RunError, match=message):
        locate(asked)


def test_nothing_at_all(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(RunError, match=r"There is no run 'demo'[\s\S]*make runs"):
        locate("demo")
    assert find("demo") is None and find("x" * 5000) is None
