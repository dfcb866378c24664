"""What `nb.train` takes as text: files, frames, shares to hold out."""

import gc
import threading
import weakref

import pandas as pd
import pytest

import nbllm as nb
from nbllm.core.errors import DataError, RunError, UserError
from nbllm.data import pack, train_tokenizer

TEXT = "\n".join(f"Line {n} of a text about {n * n}." for n in range(400))
SMALL = {"steps": 2, "batch_size": 2, "sequence_length": 16, "num_threads": 1, "sample_interval": 0,
         "precision": "float32", "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_tokenizer([TEXT], 280)
    return nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=32)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "input.txt").write_text(TEXT)
    return tmp_path


def data_of(run):
    run.wait(progress=False)
    assert run.state == "finished"
    return run.record["data"]


def test_a_file_is_trained_on_by_its_name(lm, folder):
    expected = pack([TEXT], lm.tokenizer).fingerprint
    frame = pd.DataFrame({"n": [1], "body": [TEXT]})
    for source in ("input.txt", folder / "input.txt", ["input.txt"], "*.txt", frame, [TEXT]):
        data = data_of(nb.train(lm, source, **SMALL))
        assert data["train"]["fingerprint"] == expected
        assert data["validation"] is None


def test_a_share_is_held_out(lm, capsys):
    data = data_of(nb.train(lm, "input.txt", validation=0.25, **SMALL))
    assert "input.txt is one document, so it is split by position" in capsys.readouterr().out
    total = data["train"]["num_bytes"] + data["validation"]["num_bytes"]
    assert total == len(TEXT)
    assert data["validation"]["num_bytes"] / total == pytest.approx(0.25, abs=0.03)
    training, held = nb.data.split(TEXT.split("\n"), 0.1, seed=7)
    data = data_of(nb.train(lm, TEXT.split("\n"), validation=0.1, seed=7, **SMALL))
    assert data["train"]["fingerprint"] == pack(training, lm.tokenizer).fingerprint
    assert data["validation"]["fingerprint"] == pack(held, lm.tokenizer).fingerprint


def test_held_out_text_may_be_a_file_too(lm, folder):
    (folder / "held.txt").write_text("Held out. " * 20)
    for given in ({"data": ("input.txt", "held.txt")}, {"data": "input.txt", "validation": "held.txt"}):
        data = data_of(nb.train(lm, **given, **SMALL))
        assert data["validation"]["num_bytes"] == 200


def test_shares_that_cannot_be_held_out(lm):
    for wrong in (0, 1, 1.5, True, -0.1):
        with pytest.raises(UserError, match="between 0 and 1"):
            nb.train(lm, "input.txt", validation=wrong, **SMALL)
    with pytest.raises(DataError, match="packed cannot be split") as caught:
        nb.train(lm, pack([TEXT], lm.tokenizer), validation=0.1, **SMALL)
    assert "nb.data.split" in caught.value.hint


def test_what_is_no_file_is_not_trained_on(lm):
    for source in ("inputt.txt", ["inputt.txt"], "https://example.org/input.txt"):
        with pytest.raises(DataError):
            nb.train(lm, source, **SMALL)


def test_the_folder_may_be_in_the_home_directory(lm, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    for _ in range(2):
        run = nb.train(lm, "input.txt", name="demo", folder="~/mine", replace=True, **SMALL).wait(
            progress=False
        )
        assert run.path == folder / "mine" / "demo"


def test_a_run_that_has_ended_is_replaced(lm, folder):
    first = nb.train(lm, "input.txt", name="demo", **SMALL).wait(progress=False)
    child = first.fork("child", steps=4).wait(progress=False)
    numbered = nb.train(lm, "input.txt", name="demo", **SMALL).wait(progress=False)
    assert numbered.name == "demo-2"
    again = nb.train(lm, "input.txt", name="demo", replace=True, **{**SMALL, "steps": 3})
    assert again.name == "demo" and again.path == first.path
    again.wait(progress=False)
    assert (again.step, again.record["name"]) == (3, "demo")
    assert sorted(run.name for run in nb.runs()) == ["child", "demo", "demo-2"]
    assert child.summary.parent == "demo (deleted)"  # not the new one
    assert nb.train(lm, "input.txt", name="new", replace=True, **SMALL).wait(progress=False).name == "new"


def test_what_is_not_replaced(lm, folder):
    endless = {**SMALL, "steps": 1_000_000}
    run = nb.train(lm, "input.txt", name="demo", **endless)
    other = lm.copy()
    try:
        with pytest.raises(RunError, match=r"a live run cannot be replaced[\s\S]*run\.stop\(\)"):
            nb.train(other, "input.txt", name="demo", replace=True, **SMALL)
    finally:
        run.stop()
        run.wait(progress=False)
    (run.path / "notes.md").write_text("mine")
    with pytest.raises(RunError, match=r"no part of the run: 'notes\.md'"):
        nb.train(lm, "input.txt", name="demo", replace=True, **SMALL)
    (folder / "runs" / "plain").mkdir()
    (folder / "runs" / "link").symlink_to(run.path)
    for name, message in (
        ("plain", "There is no run here"),
        ("link", "link is a link"),
        (None, "needs the name"),
    ):
        with pytest.raises(UserError, match=message):
            nb.train(lm, "input.txt", name=name, replace=True, **SMALL)
    assert run.checkpoints and (run.path / "notes.md").exists()


def test_a_new_run_that_cannot_be_made_replaces_nothing(lm, folder, monkeypatch):
    run = nb.train(lm, "input.txt", name="demo", **SMALL).wait(progress=False)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nbllm.training.start.checkpoints.save", full)
    with pytest.raises(RunError, match="No space left on device"):
        nb.train(lm, "input.txt", name="demo", replace=True, **SMALL)
    assert run.state == "finished" and [each.name for each in nb.runs()] == ["demo"]


def test_a_model_that_a_run_trains_is_not_trained_by_a_second(lm, folder):
    endless = {**SMALL, "steps": 100_000}
    run = nb.train(lm, "input.txt", name="demo", **endless)
    try:
        for where in ("thread", "process"):
            with pytest.raises(RunError, match="trained by the run 'demo'") as caught:
                nb.train(nb.LM(lm.model, lm.tokenizer), "input.txt", name="again", where=where, **endless)
            assert "nb.panel('demo')" in caught.value.hint and "nb.attach('demo').stop()" in caught.value.hint
            assert "nb.train(lm.copy(), ...)" in caught.value.hint
        assert [other.name for other in nb.runs()] == ["demo"]
        other = nb.train(lm.copy(), "input.txt", name="other", **SMALL).wait(progress=False)
        assert (run.state, other.state) == ("running", "finished")
    finally:
        nb.attach("demo").stop()
    # At once: the trainer may still be on its way out.
    again = nb.train(lm, "input.txt", name="again", **SMALL).wait(progress=False)
    assert again.state == "finished"
    with pytest.raises(UserError, match="has finished"):
        again.resume()
    run.resume()  # by the run itself: it is its own model
    try:
        with pytest.raises(RunError, match="trained by the run 'demo'"):
            nb.train(lm, "input.txt", **SMALL)
    finally:
        run.stop()


def test_a_run_is_not_resumed_into_a_model_that_another_trains(lm, folder):
    endless = {**SMALL, "steps": 100_000}
    first = nb.train(lm, "input.txt", name="first", **endless)
    first.stop()
    second = nb.train(lm, "input.txt", name="second", **endless)
    try:
        with pytest.raises(RunError, match="trained by the run 'second'"):
            first.resume()
    finally:
        second.stop()


def test_the_handle_of_a_run_that_has_ended_does_not_keep_the_model(folder):
    lm = nb.LM.new(
        "gpt2",
        tokenizer=train_tokenizer([TEXT], 280),
        num_layers=1,
        hidden_size=16,
        num_heads=2,
        max_positions=32,
    )
    held = weakref.ref(lm.model)
    run = nb.train(lm, "input.txt", name="ended", **SMALL)
    run.wait(progress=False)
    for thread in threading.enumerate():
        if thread.name == "nbllm run ended":
            thread.join(30)
    del lm
    gc.collect()
    assert held() is None
    assert run.state == "finished"
