import os

import pytest

from nbllm.core.io import (
    atomic_directory,
    is_link,
    open_log,
    open_regular,
    read_json,
    read_regular,
    remove_leftovers,
    sha256_file,
)

needs_links = pytest.mark.skipif(os.name == "nt", reason="links and pipes")


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="More than 4 bytes"):
        read_regular(tmp_path / "file", 4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 4)


@needs_links
def test_what_is_no_file_is_neither_waited_for_nor_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(OSError, match=r"Not a regular file|Is a directory"):
            open_regular(tmp_path / name)
    with pytest.raises(OSError, match="Not a regular file"):
        sha256_file(tmp_path / "pipe")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match=f"{name}"):
            open_log(tmp_path / name)


@needs_links
def test_links_are_followed_only_where_that_is_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert is_link(tmp_path / "link")
    assert not is_link(tmp_path / "file")
    assert read_regular(tmp_path / "link", 10) == b"mine"
    with pytest.raises(OSError, match="link"):
        read_regular(tmp_path / "link", 10, follow=False)
    with pytest.raises(OSError, match="link"):
        open_log(tmp_path / "link")


def test_a_log_is_made_and_appended_to(tmp_path):
    for line in (b"one\n", b"two\n"):
        with open_log(tmp_path / "log") as log:
            log.write(line)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


@needs_links
def test_leftovers_are_removed_and_nothing_that_they_lead_to(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("years")
    folder = tmp_path / "folder"
    (folder / ".aside-1").mkdir(parents=True)
    (folder / ".aside-2").write_text("")
    (folder / ".aside-3").symlink_to(kept)
    (folder / "other").write_text("")
    remove_leftovers(folder)
    assert os.listdir(folder) == ["other"]
    assert (kept / "thesis.txt").read_text() == "years"


def test_a_folder_that_is_made_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OSError, match="not empty|exists"), atomic_directory(tmp_path / "model") as aside:
        (aside / "weights").write_text("new")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "thesis").write_text("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["thesis"]


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000, b"1" * 5000, b'"' + b"a" * 20_000 + b'"'])
def test_what_is_no_short_json_is_a_value_or_os_error(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises((ValueError, OSError)):
        read_json(path, 10_000)
