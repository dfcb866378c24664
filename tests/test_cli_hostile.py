"""Whatever is typed, or stands in a configuration file: a short error and exit code 1 or 2, no traceback."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys

import pytest

from nbllm.cli import main
from nbllm.runs.events import EventWriter
from nbllm.training import launcher

CONFIG = """
[data]
source = "texts"
validation = 0.2
[tokenizer]
kind = "byte"
[model]
family = "gpt2"
num_layers = 1
hidden_size = 16
num_heads = 2
max_positions = 32
[train]
steps = 10
batch_size = 2
sequence_length = 16
num_threads = 1
precision = "float32"
"""

WORDS = [
    "", " ", "-1", "0", "1", "²", "٣", "x", "=", "a=b=c", "self=1", "timeout=x", "action=pause", "name=x", "step=x",
    "optimizer_settings=5", "optimizer=[]", "lr=", "lr=nan", "lr=1e999", "lr=true", "lr=null", 'lr="x"',
    "lr=" + "[" * 100_000, "lr=" + "9" * 5000, "lr=\u0663", "steps=1e3", "[" * 5000, "a" * 5000, "=" * 5000,
    "../..", "/", "~", "~nobody-of-this-name/x", "/dev/null", "/dev/zero", "\x1b]0;owned\x07\u202e", "\udce9",
    "caf\udce9=\udce9", "loop", "pipe", "texts", "nul", "$HOME", "{}", "*", "[",
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Everything happens in a folder of its own, with something odd of each kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for n in range(8):
        (tmp_path / "texts" / f"{n}.txt").write_text(" ".join(f"word{n * i % 97}" for i in range(50)))
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("nbllm.core.io.sync_file", lambda path: None)  # hundreds of runs are made here
    monkeypatch.setattr(launcher.Launcher, "start", lambda self, path: launcher.Run(path, launcher=self))
    monkeypatch.setattr(
        launcher.Launcher, "resume", lambda self, run: pytest.fail("resumed by a word too many")
    )
    return tmp_path


@pytest.fixture
def run(place, capsys):
    """A run that was stopped at once; nothing trains here."""
    (place / "good.toml").write_text(CONFIG)
    assert main(["train", "good.toml", "--name", "x", "--detach"]) == 0
    with EventWriter(place / "runs" / "x", "trainer") as writer:
        writer.write("start", 0, from_step=0, where="process")
        writer.write("end", 0, state="stopped", reason="", digest=None)
    capsys.readouterr()


def answer(words, capsys):
    """Run a command line; return its exit code after looking at what it said."""
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    assert code in (0, 1, 2), words
    assert bool(said.err) == (code != 0), (words, said.err)
    assert "Traceback" not in said.err and not set("\x1b\x07\u202e") & set(said.err + said.out)
    assert len(said.err) < 10_000
    (said.err + said.out).encode()
    return code


ACTIONS = [
    "set", "rewind", "fork", "freeze", "unfreeze", "sample", "rule", "pause", "resume", "stop", "save", "evaluate",
    "scale", "replay", "start_again",
]  # fmt: skip


def test_whatever_is_asked_of_a_run(run, capsys):
    for action, word in itertools.product(ACTIONS, WORDS):
        for words in ([word], ["y", word], [word, word], [word, "lr=1e-3"]):
            answer(["runs", "steer", "x", action, "--", *words], capsys)


def test_whatever_is_a_runs_name_an_action_or_an_actor(run, capsys):
    for word in WORDS:
        answer(["runs", "show", "--", word], capsys)
        answer(["runs", "show", "x", f"--folder={word}"], capsys)
        answer(["runs", "list", f"--folder={word}"], capsys)
        answer(["runs", "steer", "--", word, "pause"], capsys)
        answer(["runs", "steer", "--", "x", word], capsys)
        answer(["runs", "steer", "x", "pause", f"--actor={word}"], capsys)


def test_whatever_is_renamed_deleted_or_cleared(run, capsys):
    for word in WORDS:
        answer(["runs", "delete", "--", word], capsys)
        answer(["runs", "delete", "--yes", "--", word, word], capsys)
        answer(["runs", "rename", "--", word, "z"], capsys)
        answer(["runs", "rename", "--", "x", word], capsys)
        answer(["cache", "--", word], capsys)
        answer(["cache", "clear", "--", word], capsys)


def test_whatever_else_is_typed(place, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "call", lambda command: 0)
    monkeypatch.setattr("nbllm.notebook.execute", lambda *args, **kwargs: None)
    (place / "good.toml").write_text(CONFIG)
    for word in WORDS:
        answer([word], capsys)
        for command in ("runs", "models", "doctor", "train"):
            answer([command, "--", word, word], capsys)
        for command in ("train", "fetch", "lab"):
            answer([command, "--", word], capsys)
        answer(["lab", f"--port={word}"], capsys)
        answer(["tour", f"--folder={word}"], capsys)
        answer(["train", "good.toml", "--detach", f"--name={word}"], capsys)
        if word not in ("/", "/dev/null", "/dev/zero", "~", "../.."):  # a folder may be anywhere
            answer(["train", "good.toml", "--detach", f"--folder={word}"], capsys)


VALUES = [
    "true", "-1", "0", "1000000", "2147483648", "1.5", "nan", "-inf", "1e308", "9223372036854775808", "1" + "0" * 400,
    '""', '"x"', '"a\\u0000b"', '"\\u001b]0;owned\\u0007\\u202e"', '"' + "x" * 5000 + '"', "[]", '["x"]', "[[1], {}]",
    "{}", "{a = 1}", "1979-05-27T07:32:00", "07:32:00", '"loop"', '"pipe"', '"~nobody-of-this-name/x"', '"/dev/zero"',
]  # fmt: skip


def names(section):
    from nbllm.models.config import ModelConfig
    from nbllm.training.config import TrainConfig

    return {
        "data": ["source", "column", "on_error", "sample_by", "encoding", "subset", "split", "max_bytes", "validation",
                 "seed"],
        "tokenizer": ["vocab_size", "kind", "path"],
        "model": ["path", "seed", "tokenizer", *(field.name for field in dataclasses.fields(ModelConfig))],
        "train": [*TrainConfig.names({}), "optimizer_settings", "epochs", "lm", "data", "where", "self"],
    }[section]  # fmt: skip


@pytest.mark.parametrize("section", ["data", "tokenizer", "model", "train"])
def test_whatever_stands_in_the_file(place, capsys, section):
    for index, name in enumerate(names(section)):
        lines = [line for line in CONFIG.splitlines() if not line.startswith(f"{name} =")]
        if name == "vocab_size":
            lines.remove('kind = "byte"')
        for value in VALUES[index % 2 :: 2]:  # half of them, the other half for the next name
            for number, line in enumerate(lines):
                if line == f"[{section}]":
                    text = "\n".join([*lines[: number + 1], f"{name} = {value}", *lines[number + 1 :]])
            (place / "odd.toml").write_text(text)
            code = answer(["train", "odd.toml", "--detach"], capsys)
            assert code in (0, 1), text


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"x" * (2 << 20), b"a = " + b"[" * 100_000, b"a = " + b"1" * 5000, b"[data]\n" * 2, b"train = 5",
     b"\n".join(b"[section%d]" % n for n in range(50_000)), b'["\\u001b]0;owned\\u0007"]', b"[train]\n[train.steps]"],
)  # fmt: skip
def test_whatever_the_file_is(place, capsys, content):
    (place / "odd.toml").write_bytes(content)
    answer(["train", "odd.toml", "--detach"], capsys)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_output_that_cannot_be_written(run):
    def code_of(*words, **streams):
        with open("/dev/full", "wb") as full:
            given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | dict.fromkeys(streams, full)
            done = subprocess.run([sys.executable, "-m", "nbllm", *words], **given, check=False)
        return done.returncode, (done.stderr or b"").decode()

    for words in (["runs"], ["--help"], ["runs", "show", "x"]):
        code, error = code_of(*words, stdout=True)
        assert code == 1 and "No space left on device" in error and error.count("\n") == 1, error
    assert code_of("runs", "show", "y", stderr=True)[0] == 1
    assert code_of("runs", stdout=True, stderr=True)[0] == 1
