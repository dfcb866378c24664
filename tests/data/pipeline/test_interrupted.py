import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap

import pyarrow.parquet as pq
import pytest

from nbllm.core.errors import DataError
from nbllm.data.pipeline import shards
from nbllm.data.pipeline.pipeline import Pipeline
from tests.data.pipeline.example_steps import STEPS, Length, documents
from tests.data.pipeline.test_pipeline import contents

SCRIPT = """
import os, signal, sys
from nbllm.data.pipeline import parts, shards, stage
from nbllm.data.pipeline.pipeline import Pipeline
from tests.data.pipeline.example_steps import STEPS
shards.BATCH_ROWS = stage.BATCH_ROWS = 16

def dies(module, name, left):
    function = getattr(module, name)
    def wrapped(*given, **settings):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **settings)
    setattr(module, name, wrapped)

left = [int(sys.argv[3])]
for module, name in ((os, "replace"), (os, "link"), (parts.PartWriter, "add"), (parts.PartWriter, "commit")):
    dies(module, name, left)
Pipeline(STEPS, part_bytes=1500).run(sys.argv[1], sys.argv[2], workers=2)
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        lines = [json.dumps({"text": text}) + "\n" for text in documents(80, seed=number)]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(shards, "BATCH_ROWS", 16)
    monkeypatch.setattr("nbllm.data.pipeline.stage.BATCH_ROWS", 16)


def test_a_killed_run_goes_on_and_writes_the_same_bytes(folder, tmp_path, small_batches):
    Pipeline(STEPS, part_bytes=1500).run(folder, tmp_path / "whole")
    rng = random.Random(7)
    out = tmp_path / "out"
    killed = 0
    while True:
        command = [sys.executable, "-c", SCRIPT, str(folder), str(out), str(rng.randint(5, 40))]
        code = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}).returncode
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        assert killed < 20, "it makes progress"
    assert killed >= 3
    assert contents(out) == contents(tmp_path / "whole")
    assert not [path for path in out.rglob(".aside-*")]


def test_a_full_disk_is_named_and_loses_nothing(folder, tmp_path, small_batches, monkeypatch):
    pipeline = Pipeline(STEPS, part_bytes=1500)
    pipeline.run(folder, tmp_path / "whole")
    write = pq.ParquetWriter.write_table
    left = [5]

    def full(self, *given, **settings):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *given, **settings)

    with monkeypatch.context() as disk:
        disk.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(DataError, match="disk is full"):
            pipeline.run(folder, tmp_path / "out")
    assert list((tmp_path / "out" / "stages").glob("0-*/u*-p*.json"))
    assert not list((tmp_path / "out").rglob(".aside-*"))
    pipeline.run(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_interrupted_run_stops_and_goes_on(folder, tmp_path, small_batches, monkeypatch):
    signals, left = Length.signals, [4]

    def interrupts(self, texts):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return signals(self, texts)

    with monkeypatch.context() as hands:
        hands.setattr(Length, "signals", interrupts)
        with pytest.raises(KeyboardInterrupt):
            Pipeline(STEPS, part_bytes=1500).run(folder, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".aside-*"))
    Pipeline(STEPS, part_bytes=1500).run(folder, tmp_path / "out")
    Pipeline(STEPS, part_bytes=1500).run(folder, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


MEMORY = """
import resource, sys
from nbllm.data.pipeline.pipeline import Pipeline
from tests.data.pipeline.example_steps import Distinct, Length

def data_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))

steps = [Length(3, 1 << 20), Distinct(), Length(4, 1 << 20)]
Pipeline(steps, part_bytes=1 << 23).run(sys.argv[2], sys.argv[3] + "-warm", workers=2)
limit = data_bytes() + (int(sys.argv[4]) << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
prepared = Pipeline(steps, part_bytes=1 << 23).run(sys.argv[1], sys.argv[3], workers=2)
assert prepared.funnel.raw.bytes > 150 << 20, prepared.funnel
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_is_bounded(tmp_path):
    rng = random.Random(0)
    line = ["".join(rng.choices("abcdefgh ", k=4000)) for _ in range(50)]
    with open(tmp_path / "large.jsonl", "w") as file:
        for number in range(40_000):
            file.write(json.dumps({"text": f"{number} {line[number % 50]}"}) + "\n")
    with open(tmp_path / "small.jsonl", "w") as file:
        for number in range(4000):
            file.write(json.dumps({"text": f"{number} {line[number % 50]}"}) + "\n")
    paths = [str(tmp_path / name) for name in ("large.jsonl", "small.jsonl", "out")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), *paths, "64"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
