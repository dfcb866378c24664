"""The command line, as a person types it: output, errors, exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from nbllm.cli import main

SMALL = """
[data]
source = "{source}"
validation = 0.2
[tokenizer]
vocab_size = 300
[model]
family = "gpt2"
num_layers = 1
hidden_size = 16
num_heads = 2
max_positions = 32
[train]
steps = {steps}
batch_size = 2
sequence_length = 16
num_threads = 1
sample_interval = 0
validation_interval = 5
precision = "float32"
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a configuration file; everything happens in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n\n".join(f"Line {n} of a text about {n * n}." for n in range(400)))
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(10):
        (folder / f"{n}.txt").write_text(" ".join(f"word{n * i % 97}" for i in range(200)))

    def write(steps=10, **replace):
        text = SMALL.format(steps=steps, source="texts")
        for old, new in replace.items():
            text = text.replace(old, new)
        path = tmp_path / "small.toml"
        path.write_text(text)
        return path

    return write


def test_train_show_list_steer(config, capsys):
    assert main(["train", str(config()), "--name", "first"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["runs"]) == 0
    assert "first" in capsys.readouterr().out
    assert main(["runs", "list", "--folder", "runs"]) == 0
    assert "first" in capsys.readouterr().out
    assert main(["runs", "show", "first"]) == 0
    assert "step 10 of 10" in capsys.readouterr().out
    assert main(["runs", "steer", "first", "pause"]) == 1
    assert "has finished" in capsys.readouterr().err


def test_a_detached_run_is_steered_from_the_command_line(config, capsys):
    assert main(["train", str(config(steps=1_000_000)), "--name", "far", "--detach"]) == 0
    deadline = time.monotonic() + 120
    while main(["runs", "steer", "far", "set", "lr=1e-4", "clip=0.5"]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert "lr=0.0001, clip=0.5 applied at step" in capsys.readouterr().out
    steps = [
        ["pause"],
        ["resume"],
        ["save"],
        ["evaluate"],
        ["freeze", "embedding.*"],
        ["unfreeze", "embedding.*"],
    ]
    for words in steps:
        assert main(["runs", "steer", "far", *words, "--actor", "agent:test"]) == 0
        assert "applied" in capsys.readouterr().out
    assert main(["runs", "steer", "far", "sample", "word1 word2"]) == 0
    assert main(["runs", "steer", "far", "set", "lr=7"]) == 1
    assert "at most 1" in capsys.readouterr().err
    assert main(["runs", "steer", "far", "stop"]) == 0
    from nbllm.runs.run import Run

    run = Run("runs/far")
    run.wait(timeout=60, progress=False)
    assert run.state == "stopped"
    assert {e["actor"] for e in run.events("action") if e["action"] == "freeze"} == {"agent:test"}


def test_a_launch_is_as_the_file_and_the_command_say(config, capsys, monkeypatch):
    from nbllm.runs.run import Run
    from nbllm.training.launcher import Launcher

    monkeypatch.setattr(Launcher, "start", lambda self, path: Run(path, launcher=self))
    file = config()
    file.write_text(file.read_text() + "[plan]\nzero = 2\n")
    assert main(["launch", str(file), "--name", "wide", "--processes", "3", "--detach"]) == 0
    run = Run("runs/wide")
    assert run.record["launch"]["processes"] == 3
    assert run.record["plan"]["zero"] == 2
    assert main(["runs", "steer", "wide", "fork", "wider", "steps=20"]) == 0
    assert Run("runs/wider").record["launch"] == run.record["launch"]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["launch", str(file)]) == 1
    assert "Under torchrun a run needs a name" in capsys.readouterr().err


def test_what_is_resumed_from_the_command_line_outlives_the_command(config, capsys, monkeypatch):
    """Also a run that was started in a thread of a kernel: this process ends in a moment."""
    import nbllm as nb

    text = nb.data.load("texts")
    tokenizer = nb.data.train_tokenizer(text, vocab_size=300)
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=32)
    small = {
        "steps": 1_000_000,
        "batch_size": 2,
        "sequence_length": 16,
        "num_threads": 1,
        "sample_interval": 0,
    }
    run = nb.train(lm, text, name="mine", precision="float32", **small)
    run.stop()
    run.wait(progress=False)
    steer = [sys.executable, "-m", "nbllm", "runs", "steer", "mine"]
    subprocess.run([*steer, "resume"], check=True, capture_output=True)
    step = run.step
    run.wait(step=step + 20, timeout=60, progress=False)
    assert run.step > step
    assert run.events("start")[-1]["where"] == "process"
    assert main(["runs", "steer", "mine", "stop"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_ctrl_c_stops_the_run_with_a_checkpoint_and_says_how_to_go_on(config, tmp_path):
    command = [sys.executable, "-m", "nbllm", "train", str(config(steps=1_000_000)), "--name", "cut"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    from nbllm.runs.run import Run

    deadline = time.monotonic() + 120
    while not (tmp_path / "runs" / "cut" / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    run = Run(tmp_path / "runs" / "cut")
    run.wait(step=3, timeout=120, progress=False)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nbllm runs steer cut resume" in out
    assert run.state == "stopped"
    assert run.checkpoints[-1].step == run.step


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"[train]": "[trian]"}, "Did you mean 'train'"),
        ({"hidden_size": "hiden_size"}, "Did you mean 'hidden_size'"),
        ({"validation =": "validaton ="}, "Did you mean 'validation'"),
        ({"batch_size": "batchsize"}, "Did you mean 'batch_size'"),
        ({"steps = 10": "steps = 10\nwhere = 'thread'"}, "has no 'where'"),
        ({"[data]": "[data"}, "not TOML"),
        ({"texts": "nowhere.txt"}, "nowhere.txt"),
        ({"vocab_size = 300": "vocab_size = 10"}, "at least"),
        ({'"gpt2"': '"gpt9"'}, "gpt9"),
        ({"num_heads = 2": "num_heads = 3"}, "num_heads"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(config, capsys, replace, message):
    assert main(["train", str(config(**replace))]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_other_errors_are_said_without_a_traceback(config, capsys, tmp_path):
    assert main(["train", "absent.toml"]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["runs", "show", "absent"]) == 1
    assert "There is no run 'absent'" in capsys.readouterr().err
    assert main(["runs"]) == 0
    assert capsys.readouterr().out
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert main(["tour", "--folder", str(tmp_path / "full")]) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["lab", "99-nothing.ipynb"]) == 1
    assert "00-tour.ipynb" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["runs", "steer", "x", "explode"],
        ["runs", "steer", "x", "set"],
        ["runs", "steer", "x", "set", "lr"],
        ["runs", "steer", "x", "rewind", "far"],
        ["runs", "steer", "x", "pause", "now"],
    ],
)
def test_steering_that_makes_no_sense(config, words, capsys):
    assert main(["train", str(config(steps=1)), "--name", "x"]) == 0
    capsys.readouterr()
    assert main(words) == 1
    assert "hint:" in capsys.readouterr().err


def test_lab_starts_jupyterlab_on_the_tour_also_as_root(monkeypatch, capsys):
    import os

    started = []
    monkeypatch.setattr(subprocess, "call", lambda command: started.append(command) or 0)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    assert main(["lab", "--no-browser", "--port", "9000", "--ServerApp.token=x"]) == 0
    assert started[0][1:3] == ["-m", "jupyterlab"]
    assert started[0][3].endswith("00-tour.ipynb")
    assert started[0][4:] == ["--port=9000", "--no-browser", "--allow-root", "--ServerApp.token=x"]
    assert "root" in capsys.readouterr().out
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    assert main(["lab"]) == 0
    assert "--allow-root" not in started[1]
    monkeypatch.setattr(subprocess, "call", lambda command: 3)
    assert main(["lab"]) == 1
    assert "exit code 3" in capsys.readouterr().err


def test_usage_errors_exit_with_2(capsys):
    for words in ([], ["fly"], ["train"], ["runs", "steer", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2


@pytest.mark.parametrize(
    "words",
    [["--help"], ["lab", "--help"], ["tour", "--help"], ["train", "--help"], ["runs", "--help"],
     ["runs", "steer", "--help"], ["runs", "list", "--help"], ["doctor", "--help"]],
)  # fmt: skip
def test_help_has_examples(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    assert "example" in capsys.readouterr().out


def test_the_installed_command_and_the_module_answer():
    out = subprocess.run(
        [sys.executable, "-m", "nbllm", "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: nbllm" in out.stdout


def test_doctor_prints_what_this_machine_has(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "GFLOP/s" in out
    assert "GB/s" in out


def test_hostile_names_and_settings_reach_no_terminal(config, capsys):
    assert main(["train", str(config(**{"texts": "\\u001b]0;owned\\u0007\\u202e.txt"}))]) == 1
    error = capsys.readouterr().err
    assert "There is no file" in error
    assert not set("\x1b\x07\u202e") & set(error)


def test_every_argument_of_load_stands_in_data(config, capsys, tmp_path):
    """Here: a table in another encoding, split by what the file says, with its column named."""
    import json

    rows = "".join(f"{n};größer {n * n};x\n" for n in range(400))
    (tmp_path / "a.csv").write_text("n;body;title\n" + rows + "1;2\n", encoding="cp1252")
    settings = (
        'on_error = "skip"\nencoding = "cp1252"\ncolumn = "body"\nmax_bytes = 100000\nsample_by = "line"'
    )
    path = config(**{'"texts"': f'["a.csv"]\n{settings}'})
    with pytest.warns(UserWarning, match="1 x broken CSV row"):
        assert main(["train", str(path), "--name", "table"]) == 0
    data = json.loads((tmp_path / "runs" / "table" / "run.json").read_text())["data"]
    assert data["train"]["num_documents"] + data["validation"]["num_documents"] == 400
    assert "finished" in capsys.readouterr().out


def test_a_single_text_file_trains(config, capsys):
    assert main(["train", str(config(texts="text.txt")), "--name", "one"]) == 0
    out = capsys.readouterr().out
    assert "text.txt is one document, so it is split by position" in out
    assert "finished" in out


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({'"texts"': '"a.csv"'}, 'column = "..." in [data]'),
        ({'"texts"': '"b.jsonl"'}, 'on_error = "skip" in [data]'),
        ({'"texts"': '"same"'}, 'sample_by = "paragraph" in [data]'),
        ({"sequence_length = 16": "sequence_length = 99"}, "sequence_length = 32 in [train]"),
        ({"vocab_size = 300": "vocab_size = 'x'"}, "vocab_size must be a whole number"),
        ({"vocab_size = 300": "kind = 'charcter'"}, "Did you mean 'character'"),
        ({"vocab_size = 300": "path = 5"}, 'path must be the name of a folder or file, such as "my-model"'),
        ({'"texts"': "5"}, "source must be a name"),
        ({'"texts"': '"texts"\ncolumn = 5'}, "column must be a name"),
        ({'"texts"': '"texts"\nlod = 5'}, "[data] has no 'lod'"),
    ],
)
def test_messages_speak_the_language_of_the_file(config, capsys, tmp_path, replace, message):
    (tmp_path / "a.csv").write_text("a,b\nx,y\n")
    (tmp_path / "b.jsonl").write_text("{\n")
    (tmp_path / "same").mkdir()
    for name in "ab":
        (tmp_path / "same" / f"{name}.txt").write_text("same")
    assert main(["train", str(config(**replace))]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "load(" not in error
    assert "Traceback" not in error


def test_a_tokenizers_own_code_is_never_run(config, capsys, tmp_path, monkeypatch):
    import json

    folder = tmp_path / "tok"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    (folder / "evil.py").write_text("open('ran', 'w')\nclass Evil: pass\n")
    (folder / "vocab.json").write_text("{}")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run foreign code"))
    assert main(["train", str(config(**{"vocab_size = 300": "path = 'tok'"}))]) == 1
    assert "tokenizer cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_runs_are_renamed_and_deleted(tmp_path, monkeypatch, capsys):
    from nbllm.runs.store import create

    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        create("runs", name, {"created": 0.0})
    assert main(["runs", "rename", "first", "baseline"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "runs" / "baseline")
    assert main(["runs", "rename", "baseline", "second"]) == 1
    assert "There is 'second' already" in capsys.readouterr().err
    assert main(["runs", "delete", "baseline"]) == 1  # nobody can be asked here
    assert "Add --yes" in capsys.readouterr().err
    answers = iter(["n\n", "yes\n"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: next(answers), raising=False)
    assert main(["runs", "delete", "baseline"]) == 1
    assert (tmp_path / "runs" / "baseline").exists()
    assert main(["runs", "delete", "baseline"]) == 0
    assert main(["runs", "delete", "baselin", "--yes"]) == 1
    (tmp_path / "runs" / "link").symlink_to("second")
    for command in (["delete", "link", "--yes"], ["rename", "link", "other"]):
        assert main(["runs", *command]) == 1
        assert "link is a link" in capsys.readouterr().err
    (tmp_path / "runs" / "link").unlink()
    assert main(["runs", "delete", "second", "second", "--yes"]) == 0
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_ended_run_is_replaced_only_by_name(config, capsys):
    assert main(["train", str(config()), "--name", "first"]) == 0
    assert main(["train", str(config(5)), "--replace"]) == 1
    assert "--replace needs the name" in capsys.readouterr().err
    assert main(["train", str(config(5)), "--name", "first", "--replace"]) == 0
    capsys.readouterr()
    assert main(["runs"]) == 0
    assert "5 / 5" in capsys.readouterr().out
    runs = config().parent / "runs"
    assert [path.name for path in runs.iterdir()] == ["first"]
    assert main(["runs", "delete", "first", "--yes"]) == 0
    for thread in threading.enumerate():  # those that wait for the trainers' processes make nothing anew
        if thread.name == "watch first":
            thread.join(30)
    assert list(runs.iterdir()) == []


def test_the_cache_is_shown_and_cleared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path))
    store = tmp_path / "tokens" / ("0a" * 16)
    store.mkdir(parents=True)
    (store / "tokens.bin").write_bytes(b"0" * 1000)
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "texts as tokens" in shown and "1 kB" in shown and str(tmp_path / "tokens") in shown
    assert main(["cache", "clear", "tokens"]) == 1
    assert "Add --yes" in capsys.readouterr().err and store.exists()
    assert main(["cache", "clear", "tokns", "--yes"]) == 1
    assert "Did you mean 'tokens'" in capsys.readouterr().err
    assert main(["cache", "clear", "tokens", "--yes"]) == 0
    assert "1 kB deleted" in capsys.readouterr().out and not store.exists()
