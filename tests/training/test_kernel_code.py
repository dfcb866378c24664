"""What a cell of a notebook declares is known to the processes that train by it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.core.registry import Registry, adopt, entries_from_outside
from nbllm.objectives import OBJECTIVES
from nbllm.training.config import TrainConfig
from nbllm.training.kernel_code import kernel_code, register
from nbllm.training.optimizers import OPTIMIZERS

REGISTRIES = {"objective": (OBJECTIVES, "causal_lm"), "optimizer": (OPTIMIZERS, "adamw")}


@pytest.fixture
def declare(monkeypatch):
    """Register a subclass of what is usual, as a cell would."""

    def declare(what, **fields):
        registry, usual = REGISTRIES[what]
        made = type("OfACell", (registry[usual],), {"__module__": "__main__", **fields})
        monkeypatch.setitem(registry._entries, "of_a_cell", made)
        return {what: "of_a_cell"}

    return declare


@pytest.mark.parametrize(
    ("what", "where"),
    [("objective", nb.Launch(processes=2)), ("optimizer", "process")],
    ids=["ranks", "process"],
)
def test_what_a_cell_declares_trains_in_other_processes(lm, store, config, tmp_path, declare, what, where):
    given = {**config, "steps": 2, "sample_interval": 0, **declare(what)}
    run = nb.train(lm, store, folder=tmp_path, name="there", where=where, **given).wait(progress=False)
    assert run.state == "finished"
    assert not [file for file in run.path.rglob("*") if file.is_file() and b"OfACell" in file.read_bytes()]


@pytest.mark.parametrize("where", ["process", nb.Launch()], ids=["process", "ranks"])
def test_what_cannot_be_sent_is_refused_by_name_before_anything_starts(
    lm, store, config, tmp_path, declare, where
):
    given = {**config, "steps": 2, **declare("objective", lock=threading.Lock())}
    with pytest.raises(
        UserError, match=r"objective 'of_a_cell' is declared in __main__ and cannot be sent.*lock"
    ) as caught:
        nb.train(lm, store, folder=tmp_path / "runs", where=where, **given)
    assert 'where="thread"' in caught.value.hint
    assert not (tmp_path / "runs").exists()
    run = nb.train(lm, store, folder=tmp_path / "runs", name="here", **given).wait(progress=False)
    assert run.state == "finished"
    with pytest.raises(UserError, match="declared in __main__"):
        nb.attach(run.path, where=where).fork("there", steps=4)
    assert [each.name for each in nb.runs(tmp_path / "runs")] == ["here"]


def test_what_a_run_does_not_name_may_stay_behind(declare):
    before = kernel_code(TrainConfig())  # of other tests of this process
    declare("objective", lock=threading.Lock())
    declare("optimizer")
    code = kernel_code(TrainConfig())
    assert b"lock" not in code
    assert b"OfACell" in code
    declare("optimizer", lock=threading.Lock())
    assert kernel_code(TrainConfig()) == before


def test_a_fresh_interpreter_knows_what_was_declared(declare):
    declare("objective", answer=42)
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from nbllm.training.kernel_code import register\n"
            "register(sys.stdin.buffer.read())\n"
            "from nbllm.objectives import OBJECTIVES\n"
            "print(OBJECTIVES['of_a_cell'].answer, issubclass(OBJECTIVES['of_a_cell'], OBJECTIVES['causal_lm']))",
        ],
        input=kernel_code(TrainConfig(objective="of_a_cell")),
        capture_output=True,
    )
    assert said.stdout.decode().split() == ["42", "True"], said.stderr.decode()


def test_registries_that_are_made_later_hold_it_too():
    kind = "thing of a test"
    adopt({kind: {"one": len}})
    later = Registry(kind)
    adopt({kind: {"two": max}})
    assert list(later) == ["one", "two"]
    assert entries_from_outside()[kind] == {"one": len, "two": max}
    register(b"")
