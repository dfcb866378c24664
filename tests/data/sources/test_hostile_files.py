"""Files that would fill memory or disk, never end, or lead elsewhere."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from nbllm.core.errors import DataError, SkippedWarning
from nbllm.data import load
from nbllm.data.sources import budget as budget_module, collecting

PACK = {
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.fixture
def small(monkeypatch):
    """Bombs of 300 MB would do the same as of 6 GB, but take their time."""
    monkeypatch.setattr(budget_module, "LEAST_BYTES", 1 << 20)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
def test_a_small_archive_does_not_fill_the_memory(tmp_path, small, suffix, kind):
    path = tmp_path / f"a{kind}{suffix}"
    path.write_bytes(PACK[suffix](b" " * (64 << 20)))
    with pytest.raises(DataError, match="More than [0-9,]+ bytes would be read, a hundred times") as caught:
        load(path)
    assert "max_bytes=" in str(caught.value.hint)
    assert str(path) in str(caught.value.where)


def test_memory_stays_small_while_a_bomb_is_read(tmp_path):
    """As it is: 2 GB of text in 2 MB, read where 1.2 GB of memory are allowed."""
    path = tmp_path / "a.txt.zst"
    with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        for _ in range(2000):
            writer.write(b"\n" * (1 << 20))
    code = (
        "import resource, nbllm.data as d, datasets\nfrom nbllm.core.errors import DataError\n"
        f"used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 800_000_000,) * 2)\n"
        f"try: d.load({str(path)!r})\n"
        "except DataError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "bytes would be read" in done.stdout


def test_a_legitimate_repetitive_text_can_be_allowed(tmp_path, small):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"line\n" * 1_000_000))
    assert len(load(path, max_bytes=5_000_000)["text"][0]) == 5_000_000
    with pytest.raises(DataError, match=r"More than 4,999,999 bytes would be read\."):
        load(path, max_bytes=4_999_999)


def test_what_lies_within_the_limit_is_kept_when_asked(tmp_path):
    (tmp_path / "a.txt").write_text("line\n" * 1_000_000)
    with pytest.warns(SkippedWarning, match="1 x text beyond max_bytes"):
        data = load(tmp_path / "a.txt", sample_by="line", on_error="skip", max_bytes=1_000_000)
    assert 100_000 < len(data) <= 200_000


def parquet_bomb(path, text_bytes, rows):
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * text_bytes]))
    pq.write_table(pa.table({"text": values.cast(pa.string())}) if rows * text_bytes < 1 << 27 else
                   pa.table({"text": values}), path, compression="zstd")  # fmt: skip


def test_a_small_parquet_file_does_not_fill_memory_or_disk(tmp_path, cache, small, monkeypatch):
    monkeypatch.setattr(collecting, "SPILL_BYTES", 1 << 18)
    path = tmp_path / "a.parquet"
    parquet_bomb(path, 100_000, 1_000_000)  # 100 GB of text
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match="bytes would be read"):
        load(path)
    left = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    assert left == 0  # at once, not when Python ends


def test_empty_rows_count_too(tmp_path, small):
    path = tmp_path / "a.parquet"
    parquet_bomb(path, 0, 10_000_000)
    with pytest.raises(DataError, match="bytes would be read"):
        load(path)


def test_zip_archives(tmp_path, small):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/two.jsonl.gz", gzip.compress(b'{"text": "two"}\n'))
        archive.writestr("a.txt", "one")
        archive.writestr("table.parquet", parquet())
        archive.writestr("picture.png", b"\x89PNG")
        archive.writestr("__MACOSX/._a.txt", "never")
    data = load(path)
    assert data["text"][:] == ["one", "two", "three"]
    assert data["source"][:] == ["a.zip/a.txt", "a.zip/b/two.jsonl.gz:1", "a.zip/table.parquet:1"]
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "a.zip")
    (tmp_path / "folder" / "x.txt").write_text("beside")
    assert load(tmp_path / "folder")["text"][:] == ["beside"]  # what a folder's archives hold may be anything


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["three"]}), sink)
    return sink.getvalue().to_pybytes()


def test_a_zip_member_that_would_lie_elsewhere_is_only_read(tmp_path):
    path = tmp_path / "inner" / "a.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.txt", "text")
        archive.writestr("/abs\x1b[31m.txt", "more")
    before = set(tmp_path.rglob("*"))
    data = load(path)
    assert sorted(data["text"]) == ["more", "text"]
    assert not any("\x1b" in source for source in data["source"])
    assert {entry for entry in tmp_path.rglob("*") if "nbllm-cache" not in str(entry)} == before


def test_a_zip_bomb(tmp_path, small):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(10):
            archive.writestr(f"{n}.txt", b"x" * (4 << 20))
    with pytest.raises(DataError, match="bytes would be read"):
        load(path)


def test_zip_archives_that_cannot_be_read(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match="archive is damaged"):
        load(tmp_path / "no.zip")
    path = tmp_path / "locked.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the bit for encryption, in the member's header and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="it is encrypted"):
        load(path)


def test_links_out_of_a_folder_are_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("good")
    (folder / "again.txt").symlink_to("a.txt")
    (folder / "loop").symlink_to(folder)
    assert load(folder)["text"][:] == ["good", "good"]
    for target in (tmp_path / "outside" / "secret.txt", tmp_path / "outside"):
        link = folder / "link.txt"
        link.symlink_to(target)
        with pytest.raises(DataError, match="a link to something outside"):
            load(folder)
        with pytest.warns(SkippedWarning, match="1 x link out of the folder"):
            assert load(folder, on_error="skip")["text"][:] == ["good", "good"]
        link.unlink()
    direct = tmp_path / "direct.txt"
    direct.symlink_to(tmp_path / "outside" / "secret.txt")
    assert load(direct)["text"][:] == ["secret"]  # a link that the person named


def test_the_hubs_cache_is_made_of_links(tmp_path):
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "0123").write_text('{"text": "x"}\n')
    (snapshot / "a.jsonl").symlink_to("../../blobs/0123")
    assert load(snapshot)["text"][:] == ["x"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions differ")
def test_a_subfolder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "b.txt").write_text("unseen")
    scandir = os.scandir

    def refuse(path):  # for root nothing is closed
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="folder cannot be read: Permission denied") as caught:
        load(tmp_path)
    assert "closed" in str(caught.value.where)
    with pytest.warns(SkippedWarning, match="1 x unreadable folder"):
        assert load(tmp_path, on_error="skip")["text"][:] == ["good"]


def test_file_names_that_are_no_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("good")
    (tmp_path / os.fsdecode(b"b\xe9d.jsonl")).write_text("{")
    with pytest.warns(SkippedWarning, match="invalid JSON") as caught:
        data = load(tmp_path, on_error="skip")
    assert data["text"][:] == ["good"]
    assert data["source"][:] == ["caf\ufffd.txt"]
    str(caught[0].message).encode()
    data.info.description.encode()
    assert load(tmp_path / name)["text"][:] == ["good"]


@pytest.mark.parametrize("name", ["pipe.txt", "pipe.jsonl.gz", "pipe.parquet", "pipe.zip"])
def test_pipes_and_devices_are_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="not a regular file"):
        load(tmp_path / name)
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"):
        load(tmp_path / "zero.txt")


def test_a_pipe_that_takes_a_files_place_does_not_hang(tmp_path):
    from nbllm.core.io import open_regular

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError):
            open_regular(path)
